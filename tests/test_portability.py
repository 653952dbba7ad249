"""What breaks on Windows or macOS, found by reading the code; neither was at hand to run it."""

import ast
import os
import subprocess
import sys

import pytest

import utils

FOLDERS = (
    ".",
    "preprocessing",
    "training",
    "evaluation",
    "llm",
    "rehearsal",
    "scale",
    "benchmarks",
    "solutions",
    "assets",
)
MODULES = [path for folder in FOLDERS for path in sorted((utils.ROOT / folder).glob("*.py"))]
EVERY = pytest.mark.parametrize("path", MODULES, ids=lambda path: utils.short(path))


def calls(path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def is_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text, as far as the code says."""
    if name(call) in ("read_text", "write_text"):
        return True
    options = {option.arg: option.value for option in call.keywords}
    if name(call) in ("run", "Popen", "check_output"):
        return bool({"text", "universal_newlines"} & set(options))
    if name(call) not in ("open", "NamedTemporaryFile", "TemporaryFile"):
        return False
    method = isinstance(call.func, ast.Attribute) and name(call) == "open"
    given = call.args[0 if method else 1 :] if name(call) == "open" else call.args
    mode = options.get("mode", given[0] if given else None)
    if mode is None:  # open() is in text mode, a temporary file is not; .open() may be anything's
        return name(call) == "open" and not method
    if not isinstance(mode, ast.Constant):
        return False
    return isinstance(mode.value, str) and mode.value[0] in "rwax" and "b" not in mode.value


@EVERY
def test_every_text_has_its_encoding(path):
    """Without one Windows reads and writes cp949 or cp1252, and Hangul does not survive it."""
    for call in calls(path):
        if is_text(call):
            options = {option.arg for option in call.keywords}
            assert "encoding" in options, f"{path.name}, line {call.lineno}: {name(call)}"


@EVERY
def test_what_only_unix_has_stays_in_scale(path):
    """`import fcntl` fails on Windows; scale/ runs on clusters of Linux machines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
    allowed = {"fcntl"} if path.parent.name == "scale" else set()
    assert not found & {"fcntl", "pwd", "grp", "termios", "resource"} - allowed


@EVERY
def test_only_a_file_that_is_open_for_writing_is_synced(path):
    """Windows refuses to sync a handle that was opened for reading."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith) and "os.fsync" in ast.unparse(node):
            opened = [item.context_expr for item in node.items if "open(" in ast.unparse(item)]
            for call in opened:
                assert not ast.unparse(call).endswith("'rb')"), f"{path.name}, line {node.lineno}"


def test_a_terminal_without_hangul_is_no_reason_to_stop():
    """A pipe on Windows is cp1252 or cp949, and `python run.py > log.txt` died at the first row."""
    program = (
        "import sys; sys.argv = ['run.py', '--run', 'no/run']\n"
        "import run; print(run.main(), '한국어')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=utils.ROOT,
        capture_output=True,
        encoding="cp1252",
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    assert done.stdout == "1 ???\n" and "Stopped: RUN is 'no/run'" in done.stderr
