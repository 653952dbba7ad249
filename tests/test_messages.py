"""What a run says to a Korean reader: every sentence and label has its Korean, and none is
stale."""

import ast
import builtins
import re
import string

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import prompts
import settings
import utils

MESSAGES = prompts.LANGUAGES["ko"].messages
PRINTED = prompts.LANGUAGES["ko"].printed
KOREAN = MESSAGES | PRINTED
PLACE = "\0"  # stands for whatever differs
# Whose sentences of errors a reader meets before anything runs, and whose figures and headlines
REFUSING = ("settings.py", "utils.py", "bootstrap.py", "llm/endpoint.py", "evaluation/vote.py")
DRAWING = (
    *("evaluation/figures.py", "training/sft.py", "preprocessing/curation.py"),
    *("preprocessing/diversity.py", "preprocessing/ledger.py", "benchmarks/sweep.py"),
    "benchmarks/data_effect.py",
)
# Whose lines a reader meets in a notebook or in `run.py`
PRINTING = (
    *("bootstrap.py", "run.py", "preprocessing/self_instruct.py", "llm/client.py"),
    *("training/adapter.py", "training/data.py", "training/student.py", "evaluation/judge.py"),
    "evaluation/vote.py",
)
LABELS = {"title", "xlabel", "ylabel", "label", "suptitle", "set_title", "set_ylabel"}


def skeleton(text: str) -> str:
    """A message without the names of its places."""
    parts = string.Formatter().parse(text)
    return "".join(literal + (PLACE if name is not None else "") for literal, name, _, _ in parts)


def of_code(node: ast.AST) -> str | None:
    """The same of a string that stands in code."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else PLACE for part in node.values]
        return "".join(map(str, parts))
    return None


def strings(path: str) -> list[tuple[ast.AST, str]]:
    tree = ast.parse((utils.ROOT / path).read_text(encoding="utf-8"))
    found = [(node, of_code(node)) for node in ast.walk(tree)]
    return [(node, text) for node, text in found if text is not None]


def has_words(text: str) -> bool:
    return re.search(r"[A-Za-z]{2}", text) is not None


KNOWN = {skeleton(text) for text in KOREAN}


def in_print(line: str) -> bool:
    """Is a line, with some number or word in its places, one that is looked up?"""
    tried = [line.replace(PLACE, "7"), line.replace(PLACE, "word")]
    return any(utils.translated(one, "ko", "printed") != one for one in tried)


@pytest.mark.parametrize("path", REFUSING)
def test_every_refusal_has_its_korean(path):
    tree = ast.parse((utils.ROOT / path).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    said = [
        of_code(call.args[0])
        for call in calls
        if getattr(call.func, "id", getattr(call.func, "attr", "")) == "CourseError"
    ]
    returned = [
        of_code(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Return) and node.value
    ]
    said += [text for text in returned if text and re.search(r"\w{2} \w.*\.$", text)]
    missing = [text for text in said if text and text not in KNOWN]
    assert not missing, "write their Korean under [messages] in data/languages/ko.toml"


@pytest.mark.parametrize("path", DRAWING)
def test_every_word_of_a_figure_has_its_korean(path):
    tree = ast.parse((utils.ROOT / path).read_text(encoding="utf-8"))
    drawn = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in LABELS:
            drawn.append(of_code(node.value))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in LABELS:
            drawn += [of_code(argument) for argument in node.args]
    missing = {text for text in drawn if text and has_words(text.replace(PLACE, ""))} - KNOWN
    assert not missing, "write their Korean under [messages] in data/languages/ko.toml"


def lines_printed(code: str) -> set[str]:
    """What the calls of `print` in some code say, a line each, with the names of its places."""
    said = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            parts = [of_code(part) or PLACE for part in node.args]
            said |= set(" ".join(parts).split("\n"))
    names = re.compile(f"{PLACE}|ROUGE-L|MB")
    return {line for line in said if has_words(names.sub("", line))}


@pytest.mark.parametrize("path", PRINTING)
def test_every_line_that_a_module_prints_has_its_korean(path):
    said = lines_printed((utils.ROOT / path).read_text(encoding="utf-8"))
    missing = [line for line in said if not in_print(line)]
    assert not missing, "write their Korean under [printed] in data/languages/ko.toml"


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_every_line_that_a_cell_prints_has_its_korean(name):
    magic = TransformerManager()
    said = set()
    for cell in nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            said |= lines_printed(magic.transform_cell(cell.source))
    missing = [line for line in said if not in_print(line)]
    assert not missing, "write their Korean under [printed] in data/languages/ko.toml"


def test_no_korean_is_left_of_a_sentence_that_the_code_no_longer_says():
    """Its longest piece stands somewhere in the code, or in a notebook; labels of one or two words
    are often put together there, so they are not looked for."""
    code = set()
    for path in utils.ROOT.rglob("*.py"):
        inside = path.relative_to(utils.ROOT)
        if inside.parts[0] not in (".venv", ".cache", "tests", "runs"):
            code |= {text for _, text in strings(str(inside))}
    for name in settings.NOTEBOOKS:
        code.add((utils.ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))
    everything = "\1".join(code)
    stale = []
    for text in KNOWN:
        longest = max(text.split(PLACE), key=len).strip(" (){}%:.,;\n")
        if len(longest.split()) > 2 and longest not in everything:
            stale.append(text)
    assert not stale, "the English has changed: bring [messages] in data/languages/ko.toml up to it"


@pytest.mark.parametrize("english", KOREAN)
def test_a_translation_is_korean_and_has_the_same_places(english):
    def places(text):
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    assert places(english) == places(KOREAN[english])
    spoken = re.search("[가-힣]", KOREAN[english])
    assert spoken or not has_words(skeleton(english).replace(PLACE, ""))


@pytest.fixture
def korean(monkeypatch):
    monkeypatch.setattr(utils, "_reader", "ko")


def test_an_error_is_korean_for_a_korean_reader(monkeypatch):
    monkeypatch.setattr(utils, "_reader", "en")
    with pytest.raises(utils.CourseError) as caught:
        settings.resolve({"LANGUAGE": "ko", "PROFILE": "tiny"})
    assert str(caught.value) == (
        "PROFILE의 값이 'tiny'입니다. 다음 가운데 하나를 골라 주세요: full, smoke"
    )
    assert caught.value._render_traceback_()[0].startswith("멈췄습니다: PROFILE")
    monkeypatch.setattr(utils, "secret", lambda name, without="": None)
    with pytest.raises(utils.CourseError, match="gpt-4o 모델은 유료인데"):
        settings.resolve({"READER": "ko", "TEACHER": "gpt-4o", "BASE_URL": ""})
    with pytest.raises(utils.CourseError, match="choose one of full, smoke"):
        settings.resolve({"PROFILE": "tiny"})


def test_what_is_not_known_stays_as_it_is(korean):
    assert utils.translated("a sentence that nobody has translated") == (
        "a sentence that nobody has translated"
    )
    braces = 'X is "[]"; give a JSON object such as {"reasoning_effort": "low"} (null leaves a '
    assert '{"reasoning_effort": "low"}와 같은' in utils.translated(braces + "parameter out).")


def test_what_is_printed_is_korean_for_a_korean_reader(monkeypatch, capsys):
    monkeypatch.setattr(builtins, "print", print)  # put back afterwards
    utils.print_to_reader()
    for reader in ("ko", "en"):
        monkeypatch.setattr(utils, "_reader", reader)
        print("4 of 6 rows are left", "\nall of these rows", sep="")
        print(4, "of", 6, "rows are left", sep=None, end="!\n")
    said = "6행 가운데 4행이 남았습니다"
    english = "4 of 6 rows are left"
    same = "\nall of these rows\n"
    assert capsys.readouterr().out == f"{said}{same}{said}!\n{english}{same}{english}!\n"


def test_a_figure_has_a_korean_twin_from_the_same_run(tmp_path, monkeypatch):
    """And a Korean reader's own figure is Korean."""
    plt = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr(utils, "_reader", "en")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gca().get_xlabel()))

    def drawn():
        figure, axes = plt.subplots()
        axes.bar([0, 1], [1, 2], label="won")
        axes.set(xlabel="share of prompts", xticks=[0, 1], xticklabels=["English (30)", "x"])
        axes.legend()
        return figure

    figure = drawn()
    utils.show(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists() and (tmp_path / "a.ko.png").exists()
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["영어 (30)", "x"]
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "승"
    monkeypatch.setattr(utils, "_reader", "ko")
    utils.show(drawn(), tmp_path / "b.png")
    assert shown == ["share of prompts", "문항의 비율"]
    assert not (tmp_path / "b.ko.png").exists()
