"""What does an evaluation cost in time: verdicts over the wire, and the answers of two models?
(About six minutes on two cores.)

Run: .venv/bin/python -m benchmarks.judge [--only verdicts answers]
Verdicts: 60 prompts in both orders, by the rehearsal judge in a process of its own with 200 ms
latency, against the ideal of nothing but waiting. The stand-in's embeddings are computed in a first
round, whose time does not count: a real judge computes elsewhere. Answers: base and tuned (the
committed example adapter) for 60 evaluation prompts on this machine, and some of them again one by
one, which is what such notebooks do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time

import settings
import utils
from evaluation import judge
from llm.client import Client
from preprocessing import contamination
from rehearsal import stand_ins
from training import adapter, chat, generation, machine, student

LATENCY, LONGEST, ALONE = 0.2, 96, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument(
        "--only", nargs="+", choices=("verdicts", "answers"), default=("verdicts", "answers")
    )
    options = parser.parse_args()
    items = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", contamination.PROMPT_FIELDS)
    items = judge.sample(
        [item for item in items if not item.get("follow_ups")], options.prompts, seed=42
    )
    rows = []
    if "verdicts" in options.only:
        rows += verdicts(items)
    if "answers" in options.only:
        rows += answers(items)
    print(f"\nPython {sys.version.split()[0]}, {os.cpu_count()} cores, {len(items)} prompts\n")
    print("| measure | value | target | met |\n|---|---|---|---|")
    for name, value, target, met in rows:
        print(f"| {name} | {value} | {target} | {'yes' if met else 'NO'} |")
    assert all(met for *_, met in rows), "a target was missed"


def verdicts(items: list[dict]) -> list[tuple]:
    good = [item["reference"] for item in items]
    bad = [f"{item['reference'][:10]} ..." for item in items]
    with stand_ins.separate(latency=LATENCY) as url:

        def compare() -> tuple[float, list[dict], Client]:
            client = Client(stand_ins.MODEL, url, stand_ins.KEY)
            started = time.perf_counter()
            records = asyncio.run(judge.Judge(client).compare(items, good, bad))
            return time.perf_counter() - started, records, client

        _, expected, _ = compare()
        seconds, records, client = compare()
    assert records == expected, "the same questions had other verdicts"
    wins = sum(record["outcome"] == "win" for record in records)
    assert wins >= 0.9 * len(items), (
        f"the judge prefers a stump to the reference: {wins} wins of {len(items)}"
    )
    count = 2 * len(items)
    rounds = -(-count // client.max_concurrency)
    ideal = rounds * LATENCY
    name = f"{count} verdicts, {LATENCY * 1000:.0f} ms each, {client.max_concurrency} at once"
    return [
        (
            name,
            f"{seconds:.2f} s, ideal {ideal:.2f} s: {seconds / ideal:.2f} times",
            "<= 1.2",
            seconds <= 1.2 * ideal,
        )
    ]


def answers(items: list[dict]) -> list[tuple]:
    device = machine.choose_device()
    base, tokenizer = student.load_base(settings.PACKAGED_STUDENT, device)
    stop = chat.choose_stop(base, tokenizer)
    model = adapter.load_adapter(base, utils.DATA / "example_adapter")
    writer = generation.Transformers(model, tokenizer, stop, generation.Decoding(LONGEST))
    started = time.perf_counter()
    both = [generation.converse(writer, items, tuned) for tuned in (False, True)]
    seconds = time.perf_counter() - started
    some = [item["prompt"] for item in items[:: len(items) // ALONE]][:ALONE]
    one_by_one = []
    started = time.perf_counter()
    batched = writer.answers(some, adapter=False)
    batch_seconds = time.perf_counter() - started
    started = time.perf_counter()
    for text in some:
        one_by_one += writer.answers([text], adapter=False)
    alone_seconds = time.perf_counter() - started
    same = sum(a == b for a, b in zip(batched, one_by_one, strict=True))
    work = [sum(one.tokens for one in batched), sum(one.tokens for one in one_by_one)]
    assert abs(work[0] - work[1]) <= 0.1 * work[0], f"different work was compared: {work} tokens"
    ratio = alone_seconds / batch_seconds
    tokens = sum(turns[0].tokens for answers in both for turns in answers)
    return [
        (
            f"answers of base and tuned, {2 * len(items)}, {tokens:,} tokens, {device.dtype}",
            f"{seconds:.0f} s",
            "<= 180 s",
            seconds <= 180,
        ),
        (
            f"{ALONE} answers in a batch against one by one",
            f"{batch_seconds:.1f} s against {alone_seconds:.1f} s: {ratio:.1f} times",
            ">= 3",
            ratio >= 3,
        ),
        (
            f"of these {ALONE} answers the same to the token",
            f"{same}, the others differ by rounding in {device.dtype}",
            "",
            True,
        ),
    ]


if __name__ == "__main__":
    main()
