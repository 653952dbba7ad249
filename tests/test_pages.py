"""README, guide, glossary, figures and licence: links that work, commands that exist, numbers and
pictures that are the code's own."""

import ast
import copy
import importlib
import inspect
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import rouge
import settings
import utils
from assets import draw, estimates, results, svg
from preprocessing import grounding
from training import chat, student

# Every page of the repository, by its path; not those that a run or an install leaves behind
PAGES = sorted(
    path.relative_to(utils.ROOT).as_posix()
    for path in (*utils.ROOT.glob("*.md"), *utils.ROOT.glob("[!.]*/**/*.md"))
    if not path.is_relative_to(utils.ROOT / "runs")
)
READMES = results.PAGES
DRAWN = draw.drawn()


def read(name: str) -> str:
    return (utils.ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """A page, or the text cells of a notebook."""
    if not name.endswith(".ipynb"):
        return read(name)
    cells = json.loads(read(name))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def links(name: str) -> list[str]:
    """What a page links to or shows within the repository, as Markdown or as HTML."""
    text = re.sub(r"```.*?```", "", prose(name), flags=re.DOTALL)
    found = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("name", [*PAGES, *(f"{book}.ipynb" for book in settings.NOTEBOOKS)])
def test_links_and_images_exist(name):
    """Relative to the page's own folder, as GitHub reads them; headings too."""
    for target in links(name):
        path, _, anchor = target.partition("#")
        file = (utils.ROOT / name).parent / path if path else utils.ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name} links to {target}"


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings: lower case, spaces as hyphens, no punctuation."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", (utils.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(
            re.findall(
                r"(?:`|^)make ([a-z-]+)",
                (utils.ROOT / name).read_text(encoding="utf-8"),
                re.MULTILINE,
            )
        )
        <= targets
    )


def test_options_of_run_py_in_the_readme_exist(capsys, monkeypatch):
    import run

    monkeypatch.setattr("sys.argv", ["run.py", "--help"])
    with pytest.raises(SystemExit):
        run.parse()
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    commands = re.findall(r"python run\.py (.*)", read("README.md"))
    assert commands
    for command in commands:
        assert set(re.findall(r"--[a-z-]+", command)) <= options, command


FOLDERS = ("preprocessing", "training", "evaluation", "llm", "rehearsal", "scale", "benchmarks")


def test_the_map_names_every_folder():
    for name in READMES:
        text = read(name)
        for folder in (
            *FOLDERS,
            "solutions",
            "tests",
            "assets",
            "data",
            "docs",
            "requirements",
            "translations",
        ):
            assert f"`{folder}/`" in text, f"{name} does not name {folder}/"


@pytest.mark.parametrize("folder", ["", "scale/"])
def test_both_readmes_have_the_same_commands_links_and_sections(folder):
    """A translation that is not kept up leads its readers into commands that are gone."""
    pages = [read(folder + name) for name in ("README.md", "README.ko.md")]
    commands, links, headings, files = (
        [found(page) for page in pages]
        for found in (
            lambda page: [
                re.sub(r"\s*#.*", "", line)
                for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
                for line in block.splitlines()
            ],
            lambda page: sorted(
                {
                    re.sub(r"#.*|\bko/|\.ko(?=\.(?:svg|png|ipynb|md))", "", link)
                    for link in re.findall(r"\]\(([^)]+)\)", page)
                }
                - set(READMES)
            ),
            lambda page: len(re.findall(r"^## ", page, re.MULTILINE)),
            lambda page: sorted(set(re.findall(r"`([\w/]+\.(?:py|ipynb|md|jsonl))`", page))),
        )
    )
    assert commands[0] == commands[1]
    assert links[0] == links[1]
    assert headings[0] == headings[1]
    assert files[0] == files[1]


def test_no_number_is_left_open():
    assert not any(
        re.search(r"@[A-Z]{2,}", (utils.ROOT / name).read_text(encoding="utf-8")) for name in PAGES
    )


def test_licence_notes_models_and_data():
    text = (utils.ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License") and "Gemma" in text and "data/" in text


def modules() -> dict[str, Path]:
    """Every module of the course by its dotted name, without the programs that draw and measure."""
    paths = [*utils.ROOT.glob("*.py")]
    for folder in FOLDERS[:6]:
        paths += (utils.ROOT / folder).glob("*.py")
    names = [".".join(path.relative_to(utils.ROOT).with_suffix("").parts) for path in paths]
    return dict(sorted(zip(names, paths, strict=True)))


@pytest.mark.parametrize("module", modules())
def test_public_names_have_docstrings(module):
    loaded = importlib.import_module(module.removesuffix(".__init__"))
    assert loaded.__doc__
    for name, value in vars(loaded).items():
        own = inspect.isfunction(value) and value.__module__ == module
        if own and not name.startswith("_") and name != "main":
            short = len(inspect.getsource(value).splitlines()) <= 8
            assert value.__doc__ or short, f"{module}.{name}"


PACKAGES = {"sklearn": "scikit-learn", "PIL": "matplotlib", "rouge_score": "rouge-score"}
COMES_WITH = {
    "nbformat": "nbclient",
    "huggingface_hub": "transformers",
    "safetensors": "transformers",
    "tokenizers": "transformers",
    "pyarrow": "datasets",
}  # a requirement needs them itself
OPTIONAL = {
    "IPython",  # there wherever a notebook runs
    "llama_cpp",
    "google",
    "kaggle_secrets",
    "flash_attn",
    "kernels",
    "bitsandbytes",
    "vllm",
}  # only where the machine has them, with a sentence where not


def imported() -> dict[str, set[str]]:
    """The packages that each module and notebook imports."""
    found = {}
    for name, path in modules().items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        found[name] = {name.split(".")[0] for name in names}
    for path in utils.ROOT.glob("*.ipynb"):  # by line, because cells hold shell commands too
        cells = [
            cell["source"]
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]
        found[path.name] = set(
            re.findall(
                r"^\s*(?:import|from) (\w+)",
                "\n".join("".join(cell) for cell in cells),
                re.MULTILINE,
            )
        )
    return found


def test_every_import_is_covered_by_a_requirement():
    """A module that works here because something else happened to install it fails on a fresh
    machine."""
    lines = [
        line
        for path in [utils.ROOT / "requirements.txt", *utils.ROOT.glob("requirements/*.txt")]
        for line in path.read_text().splitlines()
    ]
    # To pip json_repair and json-repair are the same name
    required = {
        re.split(r"[\[><=!;~ ]", line)[0].lower().replace("_", "-")
        for line in lines
        if line and not line.startswith("#")
    }
    own = {path.stem for path in utils.ROOT.glob("*.py")} | set(FOLDERS)
    for name, modules in imported().items():
        for module in modules - own - OPTIONAL - set(sys.stdlib_module_names):
            package = COMES_WITH.get(module, PACKAGES.get(module, module.replace("_", "-")))
            assert package.lower() in required, (
                f"{name} imports {module}, which no requirements file names"
            )


@pytest.mark.parametrize(
    "path",
    sorted(
        [
            *utils.ROOT.glob("*.ipynb"),
            *utils.ROOT.glob("*.md"),
            *(utils.ROOT / "data").glob("*.jsonl"),
        ]
    ),
)
def test_no_key_is_in_the_repository(path):
    assert not re.search(
        r"\b(sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,})\b", path.read_text(encoding="utf-8")
    )


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_figures_are_those_of_the_code(name):
    """A picture of an older code tree sends its readers the wrong way: `make figures` draws it
    again."""
    assert (utils.ROOT / "assets" / name).read_text(encoding="utf-8") == DRAWN[name], (
        "run `make figures` and look at it"
    )


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_figures_are_small_and_legible_on_any_background(name):
    root = ElementTree.fromstring(DRAWN[name])
    assert len(DRAWN[name].encode()) < 60_000
    assert root.get("role") == "img"
    assert len(root.get("aria-label")) > 10
    style = root.find("{*}style").text
    card = root.find("{*}rect")  # the first thing drawn: all text lies on it
    assert card.get("class") == "card"
    assert float(card.get("width")) >= svg.WIDTH - 1
    assert "@media (prefers-color-scheme: dark)" in style
    written = [
        element
        for element in root.iter()
        if element.tag.endswith(("}text", "}tspan")) and element.text
    ]
    assert written
    assert {element.get("class").split()[0] for element in written} <= {
        "ink",
        "soft",
        "deep",
    }
    for colours in (svg.LIGHT, svg.DARK):
        for ink in ("ink", "soft", "deep"):
            assert contrast(colours[ink], colours["card"][0]) >= 4.5, ink  # WCAG AA
        for box in ("plain", "blue", "green", "red", "yellow"):
            assert contrast(colours["ink"], colours[box][0]) >= 4.5, box


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_figure_is_shown_and_described():
    for name, korean in zip(READMES, (False, True), strict=True):
        images = dict(
            reversed(image) for image in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", read(name))
        )
        assert {f"assets/{figure}" for figure in DRAWN if (".ko." in figure) == korean} <= set(
            images
        )
        assert all(len(alt) > 15 for alt in images.values())
        assert not korean or all(utils.hangul_share(alt) > 0.2 for alt in images.values())


def test_a_text_that_does_not_fit_is_an_error():
    picture = svg.Picture("x", 100, False)
    with pytest.raises(ValueError, match="pixels wide"):
        picture.box(10, 10, 60, 30, "much too long for this")
    picture.box(10, 10, 60, 30, "fits")


def test_the_code_tree_has_every_module_and_notebook():
    rooms = draw.modules()
    root = {path.stem for path in utils.ROOT.glob("*.py")} - {"run"}
    assert root == set(rooms["root"]), "a module of the root is missing from the figure"
    for name in ("code_tree.svg", "code_tree.ko.svg"):
        for names in rooms.values():
            assert all(f">{module}.py<" in DRAWN[name] for module in names)
        assert all(f">{book}.ipynb<" in DRAWN[name] for book in settings.NOTEBOOKS)


def test_the_code_tree_sees_imports_as_python_does():
    code = (
        "from llm import models, replies\nfrom llm.client import Client\n    import "
        "utils\nimport json"
    )
    expected = {("llm", "models"), ("llm", "replies"), ("llm", "client"), ("root", "utils")}
    assert draw.imported(code, draw.modules()) == expected


def test_the_join_in_the_figure_is_what_rouge_does(monkeypatch):
    from rapidfuzz import process

    compared = []
    real = process.cpdist

    def recorded(left, right, **options):
        compared.extend(zip(left, right, strict=True))
        return real(left, right, **options)

    texts = list(draw.JOIN_TEXTS)
    forms = rouge.RougeLIndex()._encode(texts)
    bits, (lengths, near, alike) = draw.join()
    monkeypatch.setattr(process, "cpdist", recorded)
    i, j, scores = rouge.rouge_l_above(texts, np.triu_indices(len(texts), 1))
    of_the_code = {frozenset(pair) for pair in compared}
    assert of_the_code == {frozenset((forms[i], forms[j])) for i, j in near}, "what the LCS meets"
    assert alike == dict(zip(zip(i.tolist(), j.tolist(), strict=True), scores, strict=True))
    removed = rouge.rouge_l_duplicates(texts).removed
    assert {j: (i, score) for (i, j), score in alike.items()} == {
        j: (match.index, match.score) for j, match in removed.items()
    }
    assert len(alike) < len(near) < len(lengths) < 28, "each step leaves fewer"
    # No two words of these texts share one of the 1,024 bits: what differs are words
    words = [Counter(rouge.tokenize(text)) for text in texts]
    assert [len(row) for row in bits] == [each.total() for each in words]
    for i, j in near:
        assert near[i, j] == ((words[i] - words[j]) + (words[j] - words[i])).total()


@pytest.mark.parametrize("name", READMES)
def test_the_alt_text_of_the_join_gives_its_numbers(name):
    (alt,) = re.findall(r"!\[([^\]]*)\]\(assets/dedup_join[^)]*\)", read(name))
    steps = draw.join()[1]
    assert re.findall(r"\d+", alt) == ["28", *(str(len(step)) for step in steps)]


@pytest.mark.packaged
def test_the_tokens_in_the_mask_figure_are_the_students():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student.packaged_student())
    stop = chat.Stop("<eos>", tokenizer.eos_token_id, 0, 0, 0)
    for (instruction, output), asked, answer in draw.MASKED:
        encoded = chat.encode({"instruction": instruction, "output": output}, tokenizer, stop)
        pieces = [tokenizer.decode([i]) for i in encoded["input_ids"]]
        learnt = [label != chat.IGNORED for label in encoded["labels"]]
        assert pieces == asked.split("|") + answer.split("|")
        assert learnt.index(True) == len(asked.split("|"))


# --- numbers --------------------------------------------------------------------------------------


def ran() -> tuple[dict, dict]:
    """`(results.json, training.json)` of the committed run, with the fields that the notebooks
    write: the first from what evaluation.ipynb prints, the second from the example adapter."""
    training = json.loads(read("data/example_adapter/training.json"))
    shown = ""
    for cell in json.loads(read("evaluation.ipynb"))["cells"]:
        for output in cell.get("outputs", ()):
            shown += (
                "".join(output.get("text") or output.get("data", {}).get("text/plain", "")) + "\n"
            )

    def numbers(line: str) -> list[float]:
        (found,) = re.findall(rf"^{re.escape(line)}(?=[ :])(.+)$", shown, re.MULTILINE)
        return [float(number) for number in re.findall(r"\d+\.?\d*", found)]

    table = (
        "loss on the references, nats per token",
        "answers that end by themselves",
        "answers that loop",
        "ROUGE-L to the references",
    )
    measured = {name: numbers(name) for name in table}
    right, low, high, n = numbers("verdicts that are right")
    cells = json.loads(read("evaluation.ipynb"))["cells"]
    (told,) = [cell for cell in cells if cell["id"] == "eval-headline-print"]
    headline = "".join(told["outputs"][0]["text"]).strip()
    scores = None  # the gate is closed
    if re.search("^mean score: base", shown, re.MULTILINE):
        scores = dict(zip(("base", "tuned"), numbers("mean score"), strict=True))
    evaluation = {
        "headline": headline,
        "judge": "rehearsal (stand-in, a rule and not an LLM)",
        "base_model": "gemma-3-270m",
        "calibration": {
            "n": int(n),
            "accuracy": {"value": right / 100, "low": low / 100, "high": high / 100, "n": int(n)},
        },
        "single_scores": scores,
        "measures": {
            model: {key: pair[i] for key, pair in measured.items()}
            for i, model in enumerate(("base", "tuned"))
        },
        "held_out": {when: training[when] for when in ("before", "after")},
    }
    return evaluation, copy.deepcopy(training)


@pytest.mark.parametrize("name", READMES)
def test_results_of_the_same_run_leave_a_readme_as_it_is(name):
    assert results.fill(read(name), results.slots(*ran())) == read(name)


@pytest.mark.parametrize("name", READMES)
def test_results_of_another_run_change_numbers_and_nothing_else(name):
    evaluation, training = ran()
    evaluation |= {"headline": "a new headline", "single_scores": None}  # None: the gate is closed
    evaluation["measures"]["tuned"]["answers that loop"] = 0.25
    evaluation["calibration"]["n"] = 130
    training["after"]["loss"] = evaluation["held_out"]["after"]["loss"] = 3.1
    training["before"]["loss"] = evaluation["held_out"]["before"]["loss"] = 3.0
    evaluation["measures"]["base"]["answers that loop"] = 0.5
    page = results.fill(read(name), results.slots(evaluation, training))
    closed = "not shown" if name == "README.md" else "내지 않음"
    for new in (
        "3.100 (+3.3%)",
        "| 50% | 25% |",
        f"| {closed} | {closed} |",
        "> a new headline\n",
        "-->130<!--",
    ):
        assert new in page, new
    old, new = (
        re.sub(r"<!-- results:\w+ -->.*?<!-- /results -->", "", text, flags=re.DOTALL)
        for text in (read(name), page)
    )
    assert old == new and len(page.splitlines()) == len(read(name).splitlines())


def test_results_that_do_not_belong_together_are_refused():
    evaluation, training = ran()
    with pytest.raises(utils.CourseError, match="another adapter"):
        results.slots(evaluation, training | {"after": {"loss": 2.0}})
    with pytest.raises(utils.CourseError, match="judged by gpt-4o"):
        results.slots(evaluation | {"judge": "gpt-4o"}, training)
    with pytest.raises(utils.CourseError, match="results:pairs --> is missing"):
        results.fill("<!-- results:table -->x<!-- /results -->", {"table": "y", "pairs": "1"})
    with pytest.raises(utils.CourseError, match="2 rows, but there are 1"):
        results.cells("| a | b |\n|---|---|\n| x | 1 |\n| y | 2 |", [("3",)])


def test_results_without_a_run_say_what_to_do(course, monkeypatch):
    monkeypatch.setattr("sys.argv", ["results.py"])
    sentence = "results.json is missing or torn: `make run` writes it"
    with pytest.raises(utils.CourseError, match=sentence):
        results.main()


def test_the_readmes_show_the_committed_run():
    """Table, adapter and notebook come from one run: `make outputs` copies all three."""
    training = json.loads(
        (utils.ROOT / "data" / "example_adapter" / "training.json").read_text(encoding="utf-8")
    )
    losses = [f"{training[when]['loss']:.3f}" for when in ("before", "after")]
    headline = re.search(r"^> (.+)$", read("README.md"), re.MULTILINE)[1]
    assert all(f"| {losses[0]} | {losses[1]} (" in read(name) for name in READMES)
    assert f"> {utils.translated_lines(headline, 'ko')}\n" in read("README.ko.md")
    notebook = json.loads(read("evaluation.ipynb"))
    assert headline in json.dumps([cell.get("outputs") for cell in notebook["cells"]])
    written = read("evaluation/results.py")
    for field in (*ran()[0], "accuracy"):
        assert f'"{field}"' in written, f"the evaluation writes no {field}"


@pytest.mark.parametrize("name", PAGES)
def test_comments_for_numbers_do_not_break_a_paragraph(name):
    """In Markdown a line that begins with a comment is HTML up to its end, so what follows the
    comment would not be rendered."""
    assert not re.search(r"^ *<!--.*-->.*\S", read(name), re.MULTILINE)


def test_estimates_are_tokens_times_prices():
    def entry(schema: str, answer: int) -> dict:
        body = {
            "messages": [{"content": "x" * 30}],
            "max_completion_tokens": 100,
            "response_format": {"json_schema": {"name": schema}},
        }
        return {"request": body, "usage": {"completion_tokens": answer}}

    journal = [
        entry("TaskBatch", 50),
        entry("Critique", 10),
        *[entry("Verdict", 20)] * 6,
        *[entry("Score", 20)] * 2,
    ]
    *steps, total = estimates.prices(journal, judged=1, prompts=2)
    assert [step["requests"] for step in steps] == [1, 1, 4, 4, 4] and total["requests"] == 14
    prompt = estimates.replies.most_tokens(journal[0]["request"])[0]
    assert steps[0]["usd"]["gpt-4o"] == pytest.approx(
        ((prompt * 2.5 + 50 * 10) / 1e6, (prompt * 2.5 + 100 * 10) / 1e6)
    )
    assert total["usd"]["gpt-4o"][1] == pytest.approx(
        sum(step["usd"]["gpt-4o"][1] for step in steps)
    )


def test_estimates_for_a_faster_gpu_are_shorter():
    forecasts = estimates.forecasts([100, 200, 300, 390], 0.5)
    speeds = {gpu: prediction.tokens_per_second for gpu, prediction in forecasts.items()}
    assert speeds["T4"] < speeds["L4"] < speeds["A100"]
    assert all(prediction.gb < 16 for prediction in forecasts.values())


# --- the other pages ------------------------------------------------------------------------------


def test_both_halves_of_the_guide_say_the_same():
    english, korean = read("colab_guide.md").split("\n---\n")
    assert utils.hangul_share(english) < 0.02 and utils.hangul_share(korean) > 0.4
    for found in (
        lambda half: [len(marks) for marks in re.findall(r"^(#+) ", half, re.MULTILINE)],
        lambda half: [
            link.replace(".ko.ipynb", ".ipynb")
            for link in re.findall(r"\]\(([^)]+)\)", half)
            if not link.startswith("#")
        ],
        lambda half: re.findall(r"^```.*?^```", half, re.DOTALL | re.MULTILINE),
        lambda half: sorted(
            set(
                re.findall(
                    r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", half, flags=re.DOTALL | re.MULTILINE)
                )
            )
        ),
        lambda half: [
            len(re.findall(r"(?<!\\)\|", line))
            for line in half.splitlines()
            if line.startswith("|")
        ],
        lambda half: re.findall(r"\| ([\d.,–]+)(?= \|)|<!-- estimate:(\w+) -->([\d,]*)", half),
        lambda half: len(re.findall(r"^\d\. ", half, re.MULTILINE)),
    ):
        assert found(english) == found(korean)


def test_the_guide_names_every_badge_key_and_gpu():
    text = read("colab_guide.md")
    for name in ("preprocess", "train", "evaluation"):
        assert text.count(f"/blob/main/{name}.ipynb)") == 1
        assert text.count(f"/blob/main/{name}.ko.ipynb)") == 1
    keys = (
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "WANDB_API_KEY",
        *grounding.HUB.keys,
        *grounding.DEVELOPERS.keys,
    )
    assert all(f"`{key}`" in text for key in keys)
    assert all(f"| {gpu}" in text for gpu in estimates.GPUS)
    assert "not measured" in text and text.count("*estimate*") + text.count("*추정값*") == 2


def test_the_glossary_leads_to_sections_that_speak_of_the_word():
    lines = re.findall(
        r"^\| \*\*(.+?)\*\* \| (.+?) \| (.+?) \| (.+?) \|$", read("docs/glossary.md"), re.MULTILINE
    )
    assert 35 <= len(lines) <= 45
    assert f"The {len(lines)} words" in read("docs/glossary.md")
    assert len({line[0] for line in lines}) == len(lines)
    assert all(len(meaning.split()) >= 6 for _, _, meaning, _ in lines)
    for word, *_, where in lines:
        names = [name.strip() for name in re.split(r", | and |\(", word.lower().replace(")", ""))]
        for book, sections in re.findall(r"\(\.\./(\w+\.ipynb)\), ([\d, and]+)", where):
            for number in re.findall(r"\d+", sections):
                # Sections move and numbers stay: the word must stand where its line leads
                section = numbered_sections(book).get(number, "")
                assert any(name in section for name in names if len(name) > 1), (word, where)


def numbered_sections(book: str) -> dict[str, str]:
    """Text and code of a notebook's sections by their number, in small letters."""
    found: dict[str, str] = {}
    number = ""
    for cell in json.loads(read(book))["cells"]:
        source = "".join(cell["source"])
        for part in re.split(r"^(?=## )", source, flags=re.MULTILINE):
            if cell["cell_type"] == "markdown" and part.startswith("## "):
                heading = re.match(r"## (\d+)\. ", part)
                number = heading[1] if heading else ""
            found[number] = found.get(number, "") + part.lower().replace("_", " ")
    return found
