"""What the default path takes, cell by cell, at two commits: the same rows trained, no key, no GPU.

    python -m benchmarks.notebook_times --before 67a8ea4            (half an hour on two cores)
    python -m benchmarks.notebook_times --before 67a8ea4 --profile smoke      (to try it)
    python -m benchmarks.notebook_times --before 67a8ea4 --float32     (as most laptops compute)

Each commit gets a worktree in a temporary folder, an empty cache and this environment's packages;
its three notebooks are executed one after the other, and a cell's seconds are those between "begun"
and "done" in the kernel's messages. The two commits have other rows and divide them otherwise, so
both train and hold out the same ones: rows of one turn that stand word for word in both commits'
data/instruction.jsonl. That, and nothing else, is put into the notebooks. Prints Markdown, writes
(of the full profile) benchmarks/results/notebook_times.json, and fails where other rows were
trained, a notebook stopped, or the held-out loss is more than one percent higher than before.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import settings
import utils

RESULTS = Path(__file__).parent / "results" / "notebook_times.json"
BEFORE = "67a8ea4"  # the last commit in which the notebooks were as slow as they were made
LONGEST = {"full": 1200, "smoke": 160}  # characters of a row that fits either commit's MAX_LENGTH
TRAINED, HELD_OUT = "train", "held out"
# Put behind the cell that imports the course; the older commit has its modules in the root
SAME_ROWS = """
def divide_as_the_benchmark(path):
    import json

    try:
        from training import sft
    except ImportError:
        import sft

    def split(rows, *_):
        known = {row["id"]: row for row in rows}
        with open(path, encoding="utf-8") as file:
            chosen = json.load(file)
        return [[known[name] for name in names] for names in chosen.values()]

    sft.split = split


divide_as_the_benchmark(PATH)
"""


# Put there too, so that a CPU which multiplies bf16 computes as one that does not
NO_BF16 = """
import torch

torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: False
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="a commit")
    parser.add_argument("--after", default="HEAD", help="a commit")
    parser.add_argument("--profile", choices=("full", "smoke"), default="full")
    parser.add_argument("--float32", action="store_true", help="also where the CPU has bf16")
    options = parser.parse_args()
    inserted = NO_BF16 if options.float32 else ""
    with tempfile.TemporaryDirectory(prefix="notebook-times-") as work:
        found = {}
        with contextlib.ExitStack() as open_trees:
            trees = {}
            for side in ("before", "after"):
                place = Path(work) / side
                trees[side] = open_trees.enter_context(worktree(getattr(options, side), place))
            rows = common_rows(trees["before"], trees["after"], options.profile)
            for side, tree in trees.items():
                cache = Path(work) / f"{side}-cache"
                found[side] = run(tree, rows, options.profile, cache, inserted)
                found[side]["commit"] = commit(tree)
    where = machine(options.float32)
    record = {"profile": options.profile, "machine": where, **found}
    print(report(found, options.profile, where))
    if options.profile == "full":
        utils.write_json(RESULTS, record)
    wrong = broken(found, rows, options.profile)
    for sentence in wrong:
        print(f"FAILED: {sentence}")
    return 1 if wrong else 0


@contextlib.contextmanager
def worktree(name: str, folder: Path) -> Iterator[Path]:
    """The files of a commit in `folder`, while this lasts."""
    git("worktree", "add", "--detach", str(folder), name)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def git(*arguments: str, tree: Path = utils.ROOT) -> str:
    done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise utils.CourseError(f"git {arguments[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def commit(tree: Path) -> str:
    return git("log", "-1", "--format=%h, %cs", tree=tree)


def machine(float32: bool) -> str:
    import torch

    cores = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()})"
    dtype = "float32" if float32 else "the precision that the course chooses"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cores}, torch {torch.__version__}, {capability}, {dtype}"


def common_rows(before: Path, after: Path, profile: str) -> dict[str, list[str]]:
    """Ids of the rows to train on and to hold out, drawn by a fixed seed from those that both
    commits have word for word."""
    known = []
    for tree in (before, after):
        rows = utils.read_jsonl(tree / "data" / "instruction.jsonl")
        known.append({row["id"]: said(row) for row in rows if "output" in row})
    names = []
    for name, text in known[0].items():
        if known[1].get(name) == text and sum(map(len, text)) <= LONGEST[profile]:
            names.append(name)
    sizes = settings.resolve({"PROFILE": profile})
    random.Random(0).shuffle(names)
    return {
        HELD_OUT: names[: sizes.held_out_rows],
        TRAINED: names[sizes.held_out_rows :][: sizes.train_rows or 300],
    }


def said(row: dict) -> tuple[str, ...]:
    return tuple(row[field] for field in ("language", "category", "instruction", "input", "output"))


def run(tree: Path, rows: dict[str, list[str]], profile: str, cache: Path, inserted: str) -> dict:
    """Execute the three notebooks of a tree, with `inserted` in front of the choice of rows; the
    seconds of each cell, what was trained on, and what it came to."""
    import nbformat
    from nbclient import NotebookClient

    chosen = tree / "same_rows.json"
    ordered = {TRAINED: rows[TRAINED], HELD_OUT: rows[HELD_OUT]}
    chosen.write_text(json.dumps(ordered), encoding="utf-8")
    found: dict = {"seconds": {}, "cells": {}, "errors": []}
    for name in settings.NOTEBOOKS:
        notebook = nbformat.read(tree / f"{name}.ipynb", as_version=4)
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        first = next(i for i, cell in enumerate(notebook.cells) if "import utils" in cell.source)
        text = inserted + SAME_ROWS.replace("PATH", repr(str(chosen)))
        notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(text))
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            allow_errors=True,  # a check may fail at another commit, and is told of below
            extra_arguments=["--IPKernelApp.log_level=40"],
            resources={"metadata": {"path": str(tree)}},
        )
        print(f"{tree.name}: {name}.ipynb ...", file=sys.stderr, flush=True)
        started = time.time()
        client.execute(env=environment(profile, cache))
        found["seconds"][name] = time.time() - started
        print(f"  {found['seconds'][name]:.0f} s", file=sys.stderr, flush=True)
        del notebook.cells[first + 1]
        found["cells"][name] = [(shown(cell.source), seconds(cell)) for cell in notebook.cells]
        for cell in notebook.cells:
            for output in cell.outputs:
                if output.output_type == "error":
                    said_so = f"{output.ename}: {output.evalue[:200]}"
                    found["errors"].append(f"{name}.ipynb, {shown(cell.source)}: {said_so}")
    (record,) = tree.glob("runs/*/adapter/training.json")
    trained = utils.read_json(record)
    for key in ("before", "after", "train_rows", "held_out_rows"):
        found[key] = trained[key]
    return found


def environment(profile: str, cache: Path) -> dict[str, str]:
    """The variables of `run.py`'s default path, an empty cache, and no key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COURSE_")}
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "WANDB_API_KEY"):
        kept.pop(name, None)
    kept |= {"COURSE_TEACHER": settings.REHEARSAL, "COURSE_JUDGE": settings.REHEARSAL}
    kept |= {"COURSE_BASE_MODEL": settings.PACKAGED_STUDENT, "COURSE_PROFILE": profile}
    kept |= {"COURSE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return kept | {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


def seconds(cell) -> float:
    """From the kernel's "begun" to its "done", as nbclient notes both."""
    noted = cell.metadata.get("execution", {})
    begun, done = noted.get("iopub.execute_input"), noted.get("shell.execute_reply")
    if not begun or not done:
        return 0.0
    first, last = (datetime.datetime.fromisoformat(time) for time in (begun, done))
    return (last - first).total_seconds()


def shown(source: str) -> str:
    """The line that says most of a cell: the first that is neither comment nor import."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("#", "import ", "from "))]
    return (telling or lines)[0].replace("|", "\\|")[:60]


def report(found: dict, profile: str, where: str) -> str:
    """Markdown: the seconds of every cell side by side, of each notebook, and what was learnt."""
    before, after = found["before"], found["after"]
    lines = [
        f"{profile} profile, {after['train_rows']} rows trained, {after['held_out_rows']} held "
        f"out, empty cache; {where}\n",
        f"| | {before['commit']}, s | {after['commit']}, s | ratio |",
        "|---|---|---|---|",
    ]
    for name in settings.NOTEBOOKS:
        lines.append(times(f"**{name}.ipynb**", before["seconds"][name], after["seconds"][name]))
    total = [sum(side["seconds"].values()) for side in (before, after)]
    lines.append(times("**all**", *total))
    for what in ("loss", "stop_rate"):
        ends = [
            f"{side['before'][what]:.3f} -> {side['after'][what]:.3f}" for side in found.values()
        ]
        lines.append(f"| held-out {what.replace('_', ' ')} | {ends[0]} | {ends[1]} | |")
    for name in settings.NOTEBOOKS:
        lines += ["", f"| {name}.ipynb, cell | before, s | after, s | ratio |", "|---|---|---|---|"]
        lines += aligned(before["cells"][name], after["cells"][name])
    for side, its in found.items():
        lines += ["", *(f"{side}: {error}" for error in its["errors"])]
    return "\n".join(lines)


def times(name: str, before: float, after: float) -> str:
    ratio = f"{after / before:.2f}" if before >= 0.5 else ""
    return f"| {name} | {before:.1f} | {after:.1f} | {ratio} |"


def aligned(before: list, after: list) -> list[str]:
    """A line for each cell, in order; a cell that is still there has both times and their ratio."""
    olds, news = [name for name, _ in before], [name for name, _ in after]
    lines = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, olds, news, False).get_opcodes():
        if kind == "equal":
            for (name, old), (_, new) in zip(before[a:b], after[c:d], strict=True):
                lines.append(times(f"`{name}`", old, new))
            continue
        lines += [f"| `{name}` | {old:.1f} | | |" for name, old in before[a:b]]
        lines += [f"| `{name}` | | {new:.1f} | |" for name, new in after[c:d]]
    return lines


def broken(found: dict, rows: dict[str, list[str]], profile: str) -> list[str]:
    """What was not kept of what this promises; the four steps of the smoke profile, of other
    sizes at the two commits, say nothing about the loss."""
    wrong = []
    for side, its in found.items():
        expected = (len(rows[TRAINED]), len(rows[HELD_OUT]))
        if (its["train_rows"], its["held_out_rows"]) != expected:
            wrong.append(f"{side}: other rows were trained than the {expected[0]} chosen ones")
        wrong += [f"{side}: {error}" for error in its["errors"]]
    losses = [side["after"]["loss"] for side in found.values()]
    if profile == "full" and losses[1] > 1.01 * losses[0]:
        wrong.append(f"the held-out loss is {losses[1]:.3f}, and was {losses[0]:.3f}")
    return wrong


if __name__ == "__main__":
    utils.run_command(main)
