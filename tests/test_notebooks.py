"""The notebooks as pages: frame, size, clean outputs. Each test is named after what goes wrong
without it."""

import ast
import copy
import json
import re
import types

import nbformat
import pytest

import run
import settings
import utils
from settings import NOTEBOOKS
from training.machine import Device

BOOKS = {name: nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS}
EVERY = pytest.mark.parametrize("name", NOTEBOOKS)


def code(name: str) -> list:
    return [cell for cell in BOOKS[name].cells if cell.cell_type == "code"]


def prose(name: str) -> str:
    return "\n".join(cell.source for cell in BOOKS[name].cells if cell.cell_type == "markdown")


def lessons(name: str) -> list:
    """The code cells without form and bootstrap."""
    return [cell for cell in code(name) if not cell.id.endswith(("-form", "-bootstrap"))]


def parsed(source: str):
    """A cell's syntax tree; cells may await at the top."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    return compile(source, "cell", "exec", flags)


def in_lines(path) -> bool:
    """Whether a notebook's file has a line for each line of its cells, as Jupyter writes it."""
    return all(isinstance(cell["source"], list) for cell in utils.read_json(path)["cells"])


@EVERY
def test_a_changed_line_is_a_changed_line_to_git(name, tmp_path):
    assert in_lines(utils.ROOT / f"{name}.ipynb")
    run.write(copy.deepcopy(BOOKS[name]), name, tmp_path)
    assert in_lines(tmp_path / f"{name}.ipynb"), "`make outputs` copies what a run has written"


@EVERY
def test_valid_and_every_cell_has_a_speaking_id(name):
    nbformat.validate(BOOKS[name])
    ids = [cell.id for cell in BOOKS[name].cells]
    assert len(set(ids)) == len(ids) and all(cell.source.strip() for cell in BOOKS[name].cells)
    assert all(re.fullmatch(r"(pre|train|eval)(-[a-z0-9]+)+", one) for one in ids)


@EVERY
def test_a_cell_is_read_once(name):
    """Three ideas shared a line because a fourth line was not allowed; what counts is how much
    stands on one (rasbt's LLMs-from-scratch has 6 nodes a line)."""
    nodes = lines = 0
    for cell in lessons(name):
        written = [line for line in cell.source.splitlines() if line.strip()]
        assert len(written) <= 12, f"{cell.id} has {len(written)} lines"
        nodes += sum(1 for _ in ast.walk(parsed(cell.source)))
        lines += sum(not line.lstrip().startswith("#") for line in written)
        assert not re.search(r"\|=|:=", cell.source), f"{cell.id} has a trick to save a line"
        assert cell.id.endswith("check-cell") or "S.smoke" not in cell.source, cell.id
    assert nodes / lines <= 9, f"{nodes / lines:.1f} syntax nodes a line"


@EVERY
def test_outputs_are_there_clean_and_small(name):
    outputs = [output for cell in code(name) for output in cell.outputs]
    assert sum(bool(cell.outputs) for cell in code(name)) >= 0.6 * len(code(name)), (
        "readers on GitHub need to see results"
    )
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for output in outputs
    )
    assert all(cell.execution_count is None for cell in code(name))
    assert "widgets" not in BOOKS[name].metadata
    assert not any("widget" in key for output in outputs for key in output.get("data", {}))
    assert len(json.dumps(outputs)) <= 125_000


@EVERY
def test_no_output_names_this_machine(name):
    text = json.dumps([cell.get("outputs", []) for cell in code(name)])
    assert not re.search(r"/root/|/home/|/work/|/tmp/|127\.0\.0\.1:\d", text)


@EVERY
def test_stand_ins_are_labelled_where_they_speak(name):
    text = json.dumps([cell.get("outputs", []) for cell in code(name)])
    assert text.count("stand-in") >= 2


def test_the_repository_in_the_cell_is_the_one_in_the_badge():
    """`make owner` changes both; a badge of another account than the cell's opens one course and
    fetches another."""
    for name in NOTEBOOKS:
        badge = re.search(r"google\.com/github/(\S+?)/blob", prose(name))
        assert f'REPOSITORY = "https://github.com/{badge[1]}"' in code(name)[1].source


def test_bootstrap_cell_is_the_same_everywhere():
    cells = {
        next(cell.source for cell in code(name) if "settings.resolve(globals())" in cell.source)
        for name in NOTEBOOKS
    }
    assert len(cells) == 1


@EVERY
def test_the_form_is_the_one_that_settings_makes(name):
    """A setting that is added in settings.py and not in the form could not be chosen in Colab."""
    forms = [i for i, cell in enumerate(BOOKS[name].cells) if "@title" in cell.source]
    assert len(forms) == 1 and BOOKS[name].cells[forms[0]].metadata.cellView == "form"
    assert BOOKS[name].cells[forms[0]].source == settings.form(name)
    assert "settings.resolve(globals())" in BOOKS[name].cells[forms[0] + 1].source


@EVERY
def test_frame(name):
    text = prose(name)
    assert f"blob/main/{name}.ipynb" in text.splitlines()[0]
    assert "colab-badge.svg" in text.splitlines()[0]
    for part in (
        "You will learn",
        "**Needs**",
        "**Makes**",
        "| section | time",
        "> **Predict.**",
        "## Recap",
        "## Exercises",
        "## Make it yours",
    ):
        assert part in text, part
    assert "assert " in code(name)[-1].source and "All checks passed." in code(name)[-1].source
    assert len(re.findall(r"^\d\. ", text[text.index("## Exercises") :], re.MULTILINE)) == 3


@EVERY
def test_metadata_for_colab(name):
    metadata = BOOKS[name].metadata
    assert metadata.kernelspec.name == "python3" and metadata.language_info.name == "python"
    assert (metadata.get("accelerator"), metadata.colab.get("gpuType")) == (
        (None, None) if name == "preprocess" else ("GPU", "L4")
    )


@EVERY
def test_links_between_notebooks_exist(name):
    for target in re.findall(r"\]\(([\w./]+\.ipynb)\)", prose(name)):
        assert (utils.ROOT / target).exists(), target


def settings_of(packaged: bool) -> dict:
    """What train.ipynb sets for a model on an L4: its own cells, executed."""
    scope = {
        "device": Device("cuda", "bfloat16", "flash_attention_2", "an L4"),
        "S": types.SimpleNamespace(seed=42, packaged=packaged, max_steps=0),
    }
    for part in ("pace", "all", "machine"):
        (cell,) = [cell for cell in code("train") if cell.id == f"train-settings-{part}"]
        exec(cell.source, scope)
    chosen = scope["training_settings"]
    assert isinstance(chosen, dict)
    return chosen


def test_the_course_settings_for_gemma_2b_it_are_the_specified_ones():
    """r=4, alpha=32, bf16, 1e-4 with a cosine, fused AdamW, batches of 4 accumulated twice
    (FlashAttention-2: tests of choose_device)."""
    specified = {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "bf16": True,
        "fp16": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    course = settings_of(packaged=False)
    assert {name: course[name] for name in specified} == specified
    text = re.sub(r"\s+", " ", " ".join(cell.source for cell in code("train")))
    assert re.search(r"LoraConfig\( ?r=4, lora_alpha=32, target_modules=\"all-linear\"", text)
    small = settings_of(packaged=True)  # the student's own, from benchmarks/sweep.py
    assert (small["learning_rate"], small["num_train_epochs"]) == (5e-4, 1)
