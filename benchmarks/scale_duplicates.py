"""Near-duplicates on Ray: how many of the exact join's pairs does LSH propose, and how do time,
memory and disk grow?

Run: .venv/scale/bin/python -m benchmarks.scale_duplicates [--recall 52000] [--sizes 100000 316000
1000000] [--store-gib 2] Prints one table and fails if recall is below 0.97 or the memory limit is
passed. Needs `make .venv/scale/.ready`. The texts are those of benchmarks/duplicates.py, about
410,000 real sentences; for more, and that share of the rows is printed, halves of two of them are
joined, one in ten a lightly changed copy. Memory is that of the driver and all of Ray's processes,
shared pages counted once; disk is what Ray spilled at most, both looked at once a second.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import rouge
import utils
from benchmarks.duplicates import corpus
from scale import cluster, duplicates

LEAST_RECALL, MOST_GIB = 0.97, 8.0
SHARD = 25_000  # rows


def texts(count: int) -> tuple[list[str], float]:
    """`count` texts and the share of them that is real."""
    real = corpus()
    made, rng = real[:count], random.Random(0)
    while len(made) < count:
        first, second = (rng.choice(real).split() for _ in range(2))
        if rng.random() < 0.1:
            first[rng.randrange(len(first))] = second[0]
            made.append(" ".join(first))
        else:
            made.append(" ".join(first[: len(first) // 2 + 1] + second[len(second) // 2 :]))
    return made, min(1.0, len(real) / count)


def shard(made: list[str], folder: Path) -> None:
    for k, start in enumerate(range(0, len(made), SHARD)):
        rows = (
            {"id": start + i, "instruction": text}
            for i, text in enumerate(made[start : start + SHARD])
        )
        utils.write_jsonl(folder / f"{k:05d}.jsonl", rows)


class Watch(threading.Thread):
    """The peak of memory (GiB, proportional set size of this process and its children) and of Ray's
    spilled files (GiB)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib = self.spilled = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        import psutil
        import ray

        while not self.over.wait(1.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    lines = (
                        Path(f"/proc/{process.pid}/smaps_rollup")
                        .read_text(encoding="ascii")
                        .splitlines()
                    )
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                except (OSError, psutil.Error):
                    continue
            self.gib = max(self.gib, total / 2**20)
            if ray.is_initialized():
                session = Path(ray._private.worker._global_node.get_session_dir_path())
                files = [
                    path
                    for folder in session.glob("ray_spilled_objects*")
                    for path in folder.rglob("*")
                ]
                self.spilled = max(
                    self.spilled,
                    sum(path.stat().st_size for path in files if path.exists()) / 2**30,
                )


def measure(count: int, store_gib: float) -> dict:
    """One size in this process; printed as JSON by `--size`."""
    with tempfile.TemporaryDirectory(dir=utils.CACHE) as work:
        made, real = texts(count)
        shard(made, Path(work) / "in")
        del made
        watch = Watch()
        watch.start()
        started = time.time()
        with cluster.connected(store_gib=store_gib):
            ready = time.time()
            report = duplicates.run([Path(work) / "in"], Path(work) / "out")
        seconds = time.time() - ready
        watch.over.set()
        kept = [
            json.loads(line)["id"]
            for path in sorted((Path(work) / "out" / "kept").glob("*"))
            for line in path.open(encoding="utf-8")
        ]
    report |= {
        "seconds": seconds,
        "start": ready - started,
        "real": real,
        "gib": watch.gib,
        "spilled": watch.spilled,
        "kept_ids": kept,
    }
    return report


def child(count: int, store_gib: float) -> dict:
    """`measure` in a process of its own, so that its peak memory is its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale_duplicates",
        "--size",
        str(count),
        "--store-gib",
        str(store_gib),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def recall(count: int, store_gib: float) -> None:
    """Against our exact join of every text with every other."""
    made, _ = texts(count)
    started = time.time()
    distinct = list({tuple(rouge.tokenize(text)): text for text in made}.values())
    exact = len(rouge.rouge_l_pairs(distinct)[0])
    join = time.time() - started
    expected = set(rouge.rouge_l_duplicates(made).kept)
    report = child(count, store_gib)
    kept = set(report["kept_ids"])
    # All of them are verified, so they are a part of the exact ones
    share = report["pairs"] / exact
    same = 1 - len(expected ^ kept) / len(made)
    row(
        f"recall of pairs above 0.7, {count:,} texts",
        f"{share:.4f}",
        f"{report['pairs']:,} of {exact:,} (exact join: {join:.1f} s)",
    )
    row(
        "rows with the decision of the exact filter",
        f"{same:.4%}",
        f"{len(made) - len(kept):,} removed, exactly {len(made) - len(expected):,}",
    )
    assert share >= LEAST_RECALL, "recall target missed"
    assert expected - kept == set() or share < 1, (
        "a row was removed that the exact filter keeps, without a missed pair"
    )


def growth(sizes: list[int], store_gib: float) -> None:
    seen = []
    for count in sizes:
        report = child(count, store_gib)
        seen.append((count, report["seconds"]))
        row(
            f"{count:,} texts ({report['real']:.0%} real sentences)",
            f"{report['seconds']:.0f} s, {report['gib']:.1f} GiB",
            f"{report['pairs']:,} pairs, {report['removed']:,} removed, {report['spilled']:.1f} "
            "GiB spilled, "
            f"{report['pairs_left_out']:,} pairs left out (Ray started in {report['start']:.0f} s)",
        )
        assert report["gib"] <= MOST_GIB, "memory target missed"
    if len(seen) > 1:
        (n, first), (m, last) = seen[0], seen[-1]
        row(
            f"growth, {m / n:.3g} times the texts",
            f"{last / first:.1f} times the seconds",
            f"power {np.log(last / first) / np.log(m / n):.2f}",
        )


def row(what: str, value: str, note: str) -> None:
    print(f"| {what} | {value} | {note} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recall", type=int, default=52_000, help="texts for the recall; 0: leave it out"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 316_000, 1_000_000])
    parser.add_argument("--store-gib", type=float, default=2.0)
    parser.add_argument("--size", type=int, help="internal: one size, as JSON")
    a = parser.parse_args()
    try:
        if a.size:
            print(json.dumps(measure(a.size, a.store_gib)))
        else:
            print("| what | measured | |\n|---|---|---|")
            if a.recall:
                recall(a.recall, a.store_gib)
            growth(a.sizes, a.store_gib)
    except utils.CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        raise SystemExit(2) from None
