"""What the house promises: arrows run downwards only, and the contract would notice one that does
not."""

from __future__ import annotations

import re

import arrows
import pytest

import utils


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
