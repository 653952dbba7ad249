"""Near-duplicates on Ray: does it decide as the exact filter does, and how do time, memory and disk
grow, also when half of the rows are of one template?

Run: .venv/scale/bin/python -m benchmarks.scale_duplicates [--recall 52000] [--sizes 100000 316000
1000000] [--kinds varied templated] [--store-gib 2]

Prints one table and fails if too few of the
rows that the exact filter removes go, if the memory limit is passed, or if templated rows take more
than three times as long as varied ones. Needs `make .venv/scale/.ready`. The texts are those of
benchmarks/duplicates.py, about 410,000 real sentences; for more, and that share of the rows is
printed, halves of two of them are joined, one in ten a lightly changed copy. "templated" are half
such texts and half of one template, shuffled. Memory is that of the driver and all of Ray's
processes, shared pages counted once; disk is what Ray spilled at most, both looked at once a
second.
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

import rouge
import utils
from benchmarks.duplicates import corpus, templated
from scale import cluster, duplicates

LEAST_RECALL, MOST_GIB, MOST_TIMES = 0.97, 8.0, 3.0
KINDS = ("varied", "templated")
SHARD = 25_000  # rows


def texts(count: int, kind: str) -> tuple[list[str], float]:
    """`count` texts of a kind and the share of them that is real."""
    if kind == "templated":
        made, real_share = texts(count - count // 2, "varied")
        made += templated(count // 2)
        random.Random(0).shuffle(made)
        return made, real_share / 2
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
    spilled files (GiB), and the seconds of CPU that each process has used, which say more than the
    clock on a machine with other work."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib = self.spilled = 0.0
        self.cpu: dict[int, float] = {}
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
                    times = process.cpu_times()
                    self.cpu[process.pid] = times.user + times.system
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


def measure(count: int, kind: str, store_gib: float) -> dict:
    """One size in this process; printed as JSON by `--size`."""
    with tempfile.TemporaryDirectory(dir=utils.CACHE) as work:
        made, real = texts(count, kind)
        shard(made, Path(work) / "in")
        del made
        watch = Watch()
        watch.start()
        started = time.time()
        with cluster.connected(store_gib=store_gib):
            ready, before = time.time(), sum(watch.cpu.values())
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
        "cpu": sum(watch.cpu.values()) - before,
        "real": real,
        "gib": watch.gib,
        "spilled": watch.spilled,
        "kept_ids": kept,
    }
    return report


def child(count: int, kind: str, store_gib: float) -> dict:
    """`measure` in a process of its own, so that its peak memory is its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale_duplicates",
        "--size",
        str(count),
        "--kinds",
        kind,
        "--store-gib",
        str(store_gib),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def recall(count: int, kind: str, store_gib: float) -> None:
    """Against the exact filter, which compares every text with every one that it kept."""
    made, _ = texts(count, kind)
    started = time.time()
    expected = rouge.rouge_l_duplicates(made)
    exact = time.time() - started
    report = child(count, kind, store_gib)
    kept = set(report["kept_ids"])
    share = len(set(expected.removed) - kept) / len(expected.removed)
    same = 1 - len(set(expected.kept) ^ kept) / len(made)
    row(
        f"{count:,} {kind} texts: of the rows that the exact filter removes",
        f"{share:.4f} go",
        f"{len(made) - len(kept):,} removed, exactly {len(expected.removed):,}; exact filter "
        f"{exact:.1f} s, this {report['seconds']:.0f} s",
    )
    row(f"{count:,} {kind} texts: rows with the exact filter's decision", f"{same:.4%}", "")
    assert min(share, same) >= LEAST_RECALL, "recall target missed"


def growth(sizes: list[int], kinds: list[str], store_gib: float) -> None:
    seconds: dict[tuple[str, int], float] = {}  # of CPU
    for count in sizes:
        for kind in kinds:
            report = child(count, kind, store_gib)
            seconds[kind, count] = report["cpu"]
            row(
                f"{count:,} {kind} texts ({report['real']:.0%} real sentences)",
                f"{report['seconds']:.0f} s, {report['cpu']:.0f} s of CPU, {report['gib']:.1f} GiB",
                f"{report['pairs']:,} pairs, {report['removed']:,} removed, {report['rounds']} "
                f"rounds, {report['spilled']:.1f} GiB spilled, {report['pairs_left_out']:,} pairs "
                f"left out (Ray started in {report['start']:.0f} s)",
            )
            assert report["gib"] <= MOST_GIB, "memory target missed"
        if len(kinds) == len(KINDS):
            times = seconds["templated", count] / seconds["varied", count]
            row(f"{count:,} texts, templated against varied", f"{times:.2f} times the CPU", "")
            assert times <= MOST_TIMES, "time target missed"


def row(what: str, value: str, note: str) -> None:
    print(f"| {what} | {value} | {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recall", type=int, default=52_000, help="texts for the recall; 0: leave it out"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 316_000, 1_000_000])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--store-gib", type=float, default=2.0)
    parser.add_argument("--size", type=int, help="internal: one size, as JSON")
    a = parser.parse_args()
    if a.size:
        print(json.dumps(measure(a.size, a.kinds[0], a.store_gib)))
    else:
        print("| what | measured | |\n|---|---|---|")
        for kind in a.kinds if a.recall else ():
            recall(a.recall, kind, a.store_gib)
        growth(a.sizes, a.kinds, a.store_gib)


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
