"""Run one notebook as a person does in Colab, cell by cell, and print what they would see.

    python execute.py NOTEBOOK [NAME=VALUE ...]

What it does: fill in the form, run the cells in a kernel that has `google.colab` loaded, and, if
a cell asks for it, restart the session and begin again. What it does not do: know anything of the
course, whose folder is not on its path: simulate.py starts it, with the Python of a simulated Colab
and in an empty folder.
"""

from __future__ import annotations

import re
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ASKS_FOR_A_RESTART = "Restart session"


def fill_in(notebook, values: dict[str, str]) -> None:
    """Type values into the form."""
    form = next(cell for cell in notebook.cells if "@title Settings" in cell.source)
    for name, value in values.items():
        form.source, found = re.subn(
            rf'^{name} = "auto"', f"{name} = {value!r}", form.source, flags=re.MULTILINE
        )
        assert found == 1, f"the form has no {name}"


def run(notebook) -> str:
    """Run all cells; returns what stopped them, or "" if nothing did."""
    client = NotebookClient(notebook, timeout=None, kernel_name="python3")
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            started, stopped = time.time(), ""
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                stopped = str(error.evalue)
            show(cell, index, time.time() - started)
            if stopped:
                return stopped
    return ""


def show(cell, index: int, seconds: float) -> None:
    print(f"--- cell {index + 1}, {seconds:.0f} s")
    for output in cell.outputs:
        if output.output_type == "error":
            print("\n".join(output.traceback)[-3000:])
        elif output.get("name") != "stderr":
            print(output.get("text", output.get("data", {}).get("text/plain", ""))[:4000].rstrip())
    sys.stdout.flush()


def main() -> int:
    values = dict(argument.split("=", 1) for argument in sys.argv[2:])
    notebook = nbformat.read(sys.argv[1], as_version=4)
    fill_in(notebook, values)
    stopped = run(notebook)
    if ASKS_FOR_A_RESTART in stopped:
        print("=== session restarted")
        stopped = run(notebook)
    print(f"=== stopped: {stopped}" if stopped else "=== ran to its end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
