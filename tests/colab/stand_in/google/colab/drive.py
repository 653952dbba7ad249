"""Google Drive, which is mounted if the reader allows it."""

from pathlib import Path

from google.colab.told import said


def mount(mountpoint: str, force_remount: bool = False) -> None:
    if not said().get("drive"):
        raise ValueError("Mountpoint was not mounted: credential propagation was unsuccessful")
    Path(mountpoint, "MyDrive").mkdir(parents=True, exist_ok=True)
