"""How long the packaged student takes to become ordinary weights, beside gguf's own reader: the
files must be the same, byte for byte.

    .venv/bin/python -m benchmarks.conversion

Prints the seconds of this process on a CPU (not of the clock, which other programs stretch) and
their ratio.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from unittest import mock

import utils
from training import gguf_reader, student

FILES = ("model.safetensors", "tokenizer.json", "config.json")


def convert(folder: Path) -> tuple[float, list[str]]:
    """Convert into `folder`; the CPU seconds, and the hash of each file."""
    started = time.process_time()
    student._convert(folder)
    seconds = time.process_time() - started
    return seconds, [utils.file_hash(folder / name) for name in FILES]


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        ours, files = convert(Path(work) / "ours")
        with mock.patch.object(gguf_reader, "reading_once", contextlib.nullcontext):
            theirs, expected = convert(Path(work) / "theirs")
    assert files == expected, "the fast reader read something else"
    print(f"gguf's reader {theirs:.0f} s, ours {ours:.0f} s of a CPU: {theirs / ours:.1f} times")
    print("the same weights, tokenizer and config")


if __name__ == "__main__":
    main()
