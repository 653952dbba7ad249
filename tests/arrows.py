"""The house's arrows: which module may import which. `python -m tests.arrows`, part of `make lint`.

The contract stands in pyproject.toml and import-linter checks it. That reads packages only, and the
root holds plain modules and notebooks, so it is shown a view of the house: a folder of links in
which each root module is a package of one file, and the notebooks' code a package `notebooks`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "pyproject.toml"


def code(notebook: Path) -> str:
    """The code of a notebook as Python: magics and shell lines as calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(TransformerManager().transform_cell(source) for source in sources)


def view(folder: Path) -> None:
    """Lay the house into the empty `folder` as packages."""
    contract = tomllib.loads(CONTRACT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    for name in contract["root_packages"]:
        if (ROOT / name).is_dir():
            (folder / name).symlink_to(ROOT / name, target_is_directory=True)
        elif name != "notebooks":
            (folder / name).mkdir()
            (folder / name / "__init__.py").symlink_to(ROOT / f"{name}.py")
    (folder / CONTRACT.name).symlink_to(CONTRACT)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "__init__.py").touch()
    for notebook in ROOT.glob("*.ipynb"):
        module = notebook.stem.replace(".", "_")
        (folder / "notebooks" / f"{module}.py").write_text(code(notebook), encoding="utf-8")


def check(folder: Path) -> subprocess.CompletedProcess:
    """import-linter's verdict on a view; its report is the `stdout`."""
    program = Path(sys.executable).parent / "lint-imports"
    return subprocess.run(
        [program, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        view(Path(folder))
        done = check(Path(folder))
    print(done.stdout.partition("Contracts\n")[2], done.stderr, sep="")  # without its logo
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
