"""How fast are the two near-duplicate filters, and do they decide as the slow references do?

Run: .venv/bin/python -m benchmarks.duplicates (about 7 minutes on two cores). Prints one table,
writes assets/duplicates.png, and fails if an answer differs or a target is missed. The texts are
real: sentences from the docstrings of the installed packages (English), and the course's own rows
(Korean).
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import similarity
import utils
from preprocessing import rows as reader

LONG = 20_000  # words of a long text
SIZES = (13_000, 26_000, 52_000, 104_000, 208_000)
CORPUS = utils.CACHE / "docstrings.txt"
MISSED: list[str] = []  # targets


def docstrings() -> Iterator[str]:
    """The docstrings of the installed packages, in the order of their files."""
    for file in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        source = file.read_text(encoding="utf-8", errors="ignore")
        yield from re.findall(r'"""(.*?)"""', source, re.DOTALL)


def corpus() -> list[str]:
    """Different sentences of 4 to 40 words from docstrings, shuffled; kept in .cache/ because
    reading them takes a minute."""
    if not CORPUS.exists():
        found: dict[str, None] = {}
        for docstring in docstrings():
            for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", docstring):
                if 4 <= len(sentence.split()) <= 40:
                    found[" ".join(sentence.split())] = None
        sentences = list(found)
        random.Random(0).shuffle(sentences)
        with utils.atomic(CORPUS) as file:
            file.write("\n".join(sentences))
    return CORPUS.read_text(encoding="utf-8").split("\n")


def measure(size: int, order: str = "") -> None:
    """In a process of its own, so that its peak memory is its own."""
    texts = corpus()[:size]
    if order:
        parts = [texts, templated(size)]
        if order == "templated first":
            parts.reverse()
        texts = parts[0] + parts[1]
        if order == "shuffled":
            random.Random(0).shuffle(texts)
    started = time.perf_counter()
    result = similarity.rouge_l_duplicates(texts)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {"texts": len(texts), "kept": len(result.kept), "seconds": seconds, "gib": peak_gib()}
        )
    )


def in_a_process(*options: str) -> dict:
    """What `measure` prints."""
    command = [sys.executable, "-m", "benchmarks.duplicates", *options]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, cwd=utils.ROOT
    )
    return json.loads(done.stdout)


def peak_gib() -> float:
    """Peak memory of this process alone (`ru_maxrss` would begin with the parent's). Linux."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", status)
    return int(kilobytes) / 2**20


def brute_force(texts: list[str], score) -> list[int]:
    """The greedy filter, one pair after another."""
    kept: list[int] = []
    for i, text in enumerate(texts):
        if not any(score(texts[j], text) > 0.7 for j in kept):
            kept.append(i)
    return kept


def plain_rouge_l(a: str, b: str) -> float:
    """The textbook's table over Unicode words, in plain Python."""
    x, y = similarity.tokenize(a), similarity.tokenize(b)
    row = [0] * (len(y) + 1)
    for token in x:
        diagonal = 0
        for j, other in enumerate(y, 1):
            diagonal, row[j] = row[j], diagonal + 1 if token == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(x) + len(y)) if x and y else 0.0


def decisions() -> None:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    sample = corpus()[:450]
    sample += [" ".join(text.split()[1:]) for text in sample[::3]]
    english = [text for text in sample if text.isascii()]
    started = time.perf_counter()
    expected = brute_force(english, lambda a, b: scorer.score(a, b)["rougeL"].fmeasure)
    slow = time.perf_counter() - started
    result = similarity.rouge_l_duplicates(english, tokenizer="rouge_score")
    assert result.kept == expected and result.removed, "decisions differ from rouge-score"
    report(
        "decisions equal to a loop over rouge-score",
        f"{len(english)} English texts, {len(result.removed)} removed",
        f"({slow:.0f} s)",
    )
    korean = [
        row.get("instruction", reader.questions(row)[0])
        for row in utils.read_jsonl(utils.DATA / "instruction.jsonl")
        if row["language"] == "ko"
    ]
    korean += [text.replace("주세요", "줘") for text in korean]
    result = similarity.rouge_l_duplicates(korean)
    assert result.kept == brute_force(korean, plain_rouge_l) and result.removed, (
        "decisions differ from the textbook's LCS"
    )
    report(
        "decisions equal to a plain LCS",
        f"{len(korean)} Korean texts, {len(result.removed)} removed",
        "",
    )


def throughput() -> None:
    """Pairs a second at each size, against Alpaca's own: `rouge_scorer._score_lcs` on text that it
    tokenised before."""
    from rouge_score import rouge_scorer

    tokens = [similarity.tokenize(text, "rouge_score") for text in corpus()[:200]]
    started = time.perf_counter()
    for a in tokens:
        for b in tokens:
            rouge_scorer._score_lcs(a, b)
    reference = len(tokens) ** 2 / (time.perf_counter() - started)
    report("Alpaca's pre-tokenised loop", f"{reference:,.0f} pairs/s", "")
    rows = []
    for size in SIZES:
        row = in_a_process("--size", str(size))
        rows.append(row)
        pairs = row["texts"] * (row["texts"] - 1) / 2 / row["seconds"]
        report(
            f"ours, {row['texts']:,} texts",
            f"{row['seconds']:.1f} s, {row['gib']:.2f} GiB",
            f"{pairs / reference:,.0f} times the pairs/s",
        )
        row["ratio"] = pairs / reference
    by_size = {row["texts"]: row for row in rows}
    target(by_size[52_000]["seconds"] <= 4, "52,000 texts within 4 s")
    target(by_size[52_000]["ratio"] >= 5000, "52,000 texts 5,000 times as fast as Alpaca's loop")
    target(by_size[208_000]["seconds"] <= 25, "208,000 texts within 25 s")
    target(by_size[208_000]["gib"] <= 2, "208,000 texts within 2 GiB")
    figure(rows, reference)


def templated(count: int) -> list[str]:
    """Sentences of one template, as of an encyclopedia's stubs."""
    rng, names = random.Random(1), [text.split()[0] for text in corpus()[:5000]]
    return [
        f"Farm to Market Road {number} is a highway in the county of {rng.choice(names)} and runs "
        f"for {rng.randint(1, 90)} miles"
        for number in range(count)
    ]


def orders() -> None:
    """Time and memory must not depend on where rejected texts stand, nor on how many they are."""
    half, found = SIZES[-1] // 2, []
    for name in ("varied first", "templated first", "shuffled"):
        twice = [in_a_process("--order", name, "--size", str(half)) for _ in range(2)]
        row = min(twice, key=lambda row: row["seconds"])  # the other was held up by something else
        found.append(row)
        report(
            f"{half:,} varied and {half:,} templated texts, {name}",
            f"{row['seconds']:.1f} s, {row['gib']:.2f} GiB",
            f"{row['kept']:,} kept",
        )
    seconds = [row["seconds"] for row in found]
    report(
        "the slowest order against the best",
        f"{max(seconds) / min(seconds):.1f} times",
        "target 1.5",
    )
    target(max(seconds) <= 1.5 * min(seconds), "any order within 1.5 times of the best")
    target(max(row["gib"] for row in found) <= 1, "templated texts within 1 GiB")


def long_and_char() -> None:
    """What compares much: the characters of English prose, and texts of 20,000 words."""
    texts = corpus()[:10_000]
    started = time.perf_counter()
    similarity.rouge_l_duplicates(texts, tokenizer="char")
    report("the characters of 10,000 English texts", f"{time.perf_counter() - started:.1f} s", "")
    words = " ".join(docstrings()).split()
    real = [" ".join(words[start : start + LONG]) for start in range(0, len(words), LONG)][:200]
    rng = random.Random(0)
    drawn = [" ".join(rng.choices(words, k=LONG)) for _ in range(40)]
    # Of drawn words any two texts have most in common, so that each pair needs its subsequence
    long = {"of docstrings as they follow": real, "of words drawn from them": drawn}
    for what, texts in long.items():
        started = time.perf_counter()
        similarity.rouge_l_duplicates(texts)
        seconds = time.perf_counter() - started
        report(f"{len(texts)} texts of {LONG:,} words, {what}", f"{seconds:.1f} s", "")
        target(seconds <= 60, f"texts {what} within a minute")


def figure(rows: list[dict], reference: float) -> None:
    import matplotlib.pyplot as plt

    utils.figure_style()
    drawing, axes = plt.subplots(figsize=(6, 3.2))
    sizes = np.array([row["texts"] for row in rows])
    axes.loglog(
        sizes, sizes**2 / 2 / reference, "--", color="#9aa5b1", label="Alpaca's loop, extrapolated"
    )
    axes.loglog(
        sizes, [row["seconds"] for row in rows], "o-", color="#3b7dd8", label="ours, measured"
    )
    for row in rows:
        axes.annotate(
            f"{row['seconds']:.1f} s",
            (row["texts"], row["seconds"]),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_xticks(sizes, [f"{size // 1000}k" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="texts", ylabel="seconds", title="Exact ROUGE-L near-duplicates on two cores")
    axes.legend(frameon=False, fontsize=8)
    drawing.tight_layout()
    drawing.savefig(utils.ROOT / "assets" / "duplicates.png")


def increment() -> None:
    texts = corpus()
    index = similarity.RougeLIndex()
    index.add(texts[:58_000])
    pool, times = len(index), []
    for start in range(60_000, 60_400, 20):
        started = time.perf_counter()
        index.add(texts[start : start + 20])
        times.append(time.perf_counter() - started)
    median = 1000 * statistics.median(times)
    report(
        f"a batch of 20 to a pool of {pool:,}",
        f"{median:.1f} ms",
        f"(worst of 20: {1000 * max(times):.0f} ms)",
    )
    assert pool >= 52_000
    target(median <= 50, "a batch of 20 within 50 ms")


def embeddings() -> None:
    """52,000 vectors of 384 in groups of about four, against paraphrase_mining of
    sentence-transformers on the same vectors."""
    from sentence_transformers.util import paraphrase_mining_embeddings

    rng = np.random.default_rng(0)
    count, threshold = 52_000, 0.8
    centres = rng.normal(size=(13_000, 384))
    # Close copies, or far from the threshold
    noise = rng.choice([0.2, 1.0], size=(count, 1)) * rng.normal(size=(count, 384))
    vectors = (centres[rng.integers(0, 13_000, count)] + noise).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    result = similarity.embedding_duplicates(vectors, threshold)
    ours = time.perf_counter() - started
    peak = peak_gib()
    import torch

    started = time.perf_counter()
    mined = paraphrase_mining_embeddings(torch.from_numpy(vectors), max_pairs=1_000_000)
    theirs = time.perf_counter() - started
    neighbours: dict[int, list[int]] = {}
    for score, i, j in mined:
        if score > threshold:
            earlier, later = sorted((int(i), int(j)))
            neighbours.setdefault(later, []).append(earlier)
    kept: set[int] = set()
    for i in range(count):
        if not kept.intersection(neighbours.get(i, ())):
            kept.add(i)
    assert result.kept == sorted(kept), "survivors differ from those of the mined pairs"
    report("paraphrase_mining_embeddings, 52,000 x 384", f"{theirs:.1f} s", "")
    report(
        "embedding_duplicates, the same survivors",
        f"{ours:.1f} s, {peak:.2f} GiB",
        f"{theirs / ours:.1f} times as fast",
    )
    target(ours <= 20 and ours < theirs, "52,000 embeddings within 20 s, and before the reference")
    target(peak <= 2, "52,000 embeddings within 2 GiB")


def report(what: str, value: str, note: str) -> None:
    print(f"| {what} | {value} | {note} |", flush=True)


def target(met: bool, what: str) -> None:
    """Answers must be equal, or this stops; a time that is missed is said at the end."""
    if not met:
        MISSED.append(what)


if __name__ == "__main__":
    if "--size" in sys.argv:
        measure(int(sys.argv[-1]), sys.argv[2] if "--order" in sys.argv else "")
    else:
        print("| what | measured | |\n|---|---|---|")
        for part in (decisions, throughput, orders, long_and_char, increment, embeddings):
            part()
        print(
            "\nAll answers equal,",
            f"missed: {', '.join(MISSED)}." if MISSED else "all targets met.",
        )
        sys.exit(1 if MISSED else 0)
