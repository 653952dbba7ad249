"""What `make` installs: PyTorch's CPU build where there is no NVIDIA driver, and what it says where
that cannot be had."""

import os
import platform
import shutil
import subprocess

import pytest

import utils

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="elsewhere torch has one build"
)


@pytest.fixture
def prepare(tmp_path):
    """`prepare(uv, driver)`: run make's preparation with programs that write down what they are
    asked; returns `(what was said, what was asked)`."""

    def program(path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(uv: str, driver: bool) -> tuple[str, list[str]]:
        shutil.rmtree(tmp_path, ignore_errors=True)
        asked, venv = tmp_path / "asked", tmp_path / "venv"
        program(venv / "bin" / "python", f'echo "$@" >> {asked}')
        program(venv / "bin" / "uv", f'echo "uv $@" >> {asked}; {uv}')
        program(tmp_path / "path" / "python3", "exit 0")
        program(tmp_path / "path" / "nvidia-smi", f"exit {0 if driver else 1}")
        command = ["make", "--no-print-directory", f"VENV={venv}", f"{venv}/.ready"]
        path = f"{tmp_path / 'path'}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        made = subprocess.run(
            command, capture_output=True, text=True, cwd=utils.ROOT, env=environment, check=True
        )
        return made.stdout, asked.read_text().splitlines()

    return run


def test_without_a_driver_the_cpu_build_comes_first(prepare):
    said, asked = prepare("exit 0", driver=False)
    assert "cannot be reached" not in said
    assert [line.split()[0] for line in asked] == ["-m", "uv", "-m"]
    version = next(
        line
        for line in (utils.ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    assert "--torch-backend cpu" in asked[1] and asked[1].endswith(version)
    assert "-r requirements.txt" in asked[2]


def test_where_it_cannot_be_had_a_sentence_says_so_and_pip_goes_on(prepare):
    said, asked = prepare("exit 2", driver=False)
    assert "PyTorch's CPU build cannot be reached from here" in said
    assert "-r requirements.txt" in asked[-1]


def test_with_a_driver_nothing_is_asked_of_uv(prepare):
    said, asked = prepare("exit 2", driver=True)
    assert "cannot be reached" not in said and len(asked) == 1
