"""The browser at the other end: it takes downloads and gives one file."""

import shutil
from pathlib import Path

from google.colab.told import said


def download(filename: str) -> None:
    if not Path(filename).exists():
        raise FileNotFoundError(f"Cannot find file: {filename}")
    folder = Path(said()["downloads"])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(filename, folder)


def upload() -> dict[str, bytes]:
    path = said().get("upload")
    return {Path(path).name: Path(path).read_bytes()} if path else {}
