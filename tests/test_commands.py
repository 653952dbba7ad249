"""The commands of both READMEs, run as they are written; those that need a key or a server of the
reader's are left out. What takes minutes is made short: the smoke profile, one notebook."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

import pytest

import utils
from assets import results

KEYED = re.compile(r"^export |--(teacher|judge|base-url) ")


def commands() -> list[str]:
    """Every line of the shell blocks of both pages, once, without its comment."""
    found: dict[str, None] = {}
    for page in results.PAGES:
        text = (utils.ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                found[re.sub(r"\s+#.*", "", line)] = None
    return list(found)


KEYLESS = [command for command in commands() if not KEYED.search(command)]


def finished(command: str, more: str = "") -> str:
    """What a command prints, with `more` added to its ARGS. Fails where the command does."""
    words = shlex.split(command)
    made = words.index("make")
    environment = dict(word.split("=", 1) for word in words[:made])
    target, *rest = words[made + 1 :]
    arguments = [word.removeprefix("ARGS=") for word in rest] + [more]
    done = subprocess.run(
        # What is installed is taken as it is: `-o` calls it up to date
        ["make", "-o", ".venv/.ready", target, f"ARGS={' '.join(arguments)}"],
        cwd=utils.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"COURSE_TRACKING": "disabled"} | environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_readmes_have_commands_with_and_without_a_key():
    """Else the tests below would run nothing and say nothing."""
    assert "make run" in KEYLESS and "make test" in KEYLESS and len(KEYLESS) >= 4
    assert len(KEYLESS) < len(commands())


@pytest.mark.skipif(shutil.which("make") is None, reason="this test needs make")
def test_make_help_lists_every_target_of_the_readmes():
    listed = set(re.findall(r"^make ([a-z-]+)", finished("make help"), re.MULTILINE))
    for page in results.PAGES:
        text = (utils.ROOT / page).read_text(encoding="utf-8")
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) - {"owner"} <= listed


@pytest.mark.skipif(shutil.which("make") is None, reason="this test needs make")
def test_make_test_finds_the_tests():
    assert re.search(r"\d{3,} tests collected", finished("make test", "--collect-only"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="this test needs make")
@pytest.mark.parametrize("command", [c for c in KEYLESS if "make run" in c])
def test_commands_without_a_key_run(command):
    run = f"readme-{os.getpid()}"
    try:
        said = finished(command, f"--profile smoke --only preprocess --run {run}")
        assert f"runs/{run}/" in said
        assert (utils.ROOT / "runs" / run / "instruction.jsonl").exists()
    finally:
        shutil.rmtree(utils.ROOT / "runs" / run, ignore_errors=True)
