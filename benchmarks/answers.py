"""What it saves that rows which have ended leave the batch: the same answers, beside one call of
`generate` that computes every row until the longest has ended.

    .venv/bin/python -m benchmarks.answers

Answers the evaluation's prompts with the packaged student and the example adapter, in float32, and
prints the seconds of each way. The answers must be equal.
"""

from __future__ import annotations

import time

import settings
import utils
from training import adapter, chat, generation, machine, student

LONGEST = 96  # tokens of an answer
ROWS = 30


def answered(model, tokenizer, stop, texts: list[str], slice_tokens: int):
    """`(answers, seconds)` with so many tokens between two looks at which rows have ended."""
    before = generation.SLICE
    generation.SLICE = slice_tokens
    started = time.perf_counter()
    try:
        answers = generation.generate(model, tokenizer, texts, stop, LONGEST, batch_size=ROWS)
    finally:
        generation.SLICE = before
    return answers, time.perf_counter() - started


def main() -> None:
    device = machine.Device("cpu", "float32", "sdpa", "for equal answers")
    base, tokenizer = student.load_base(settings.PACKAGED_STUDENT, device)
    stop = chat.choose_stop(base, tokenizer)
    model = adapter.load_adapter(base, utils.DATA / "example_adapter")
    items = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", ("id", "prompt"))
    texts = [item["prompt"] for item in items[:: len(items) // ROWS]][:ROWS]
    whole, reference = answered(model, tokenizer, stop, texts, LONGEST)
    ours, seconds = answered(model, tokenizer, stop, texts, generation.SLICE)
    assert ours == whole, "rows that stayed in the batch were changed by those that left"
    tokens = sum(answer.tokens for answer in ours)
    print(f"{len(texts)} answers, {tokens:,} tokens, the same both ways")
    print(f"all rows to the end {reference:.1f} s, ended rows leave {seconds:.1f} s")
    print(f"{reference / seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
