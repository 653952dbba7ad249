"""What do rows of several turns and long rows teach? The packaged student, as in train.ipynb, on as
many rows without and with them, and what it then answers to long requests and to second turns.

Run: .venv/bin/python -m benchmarks.kinds_effect [--only "all kinds"] [--minutes 30]
Both trainings see the same number of shipped rows, once plain ones only and once all kinds in their
shares. HELD conversations and HELD long rows are kept from both; the tuned models are asked
those and the evaluation's own, and their answers are counted. Each condition is written to
benchmarks/results/kinds_effect.json when it is done, and what is there is not done again.
An hour a condition on one core of a laptop.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import settings
import utils
from benchmarks import short_training
from evaluation import measures
from training import chat, generation, sft

RESULTS = Path(__file__).parent / "results" / "kinds_effect.json"
CONDITIONS = ("plain rows only", "all kinds")
ROWS = 300  # to train on: what a CPU takes in train.ipynb
HELD = 24  # long rows, and conversations, that are asked
RATE, LONGEST = 5e-4, 1152  # the student's own settings in train.ipynb
SHORT, LONG = 96, 512  # tokens of an answer, as in evaluation.ipynb on a CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after so many")
    options = parser.parse_args()
    short_training.give_way()
    deadline = time.time() + 60 * options.minutes
    for name in options.only:
        record = utils.read_json(RESULTS) or {"model": settings.PACKAGED_HUB_ID, "rows": ROWS}
        measured = record.setdefault("conditions", {})
        if name not in measured and time.time() < deadline:
            measured[name] = run(name)
            utils.write_json(RESULTS, record)
    print(table(), f"\nwritten to {utils.short(RESULTS)}")


def items(rows: list[dict]) -> list[dict]:
    """Rows in the form of evaluation prompts: each user turn with the row's own answer to it."""
    found = []
    for row in rows:
        turns = [turn["content"] for turn in chat.conversation(row)]
        asked = [
            {"prompt": prompt, "reference": answer}
            for prompt, answer in zip(turns[::2], turns[1::2], strict=True)
        ]
        found.append({"language": row["language"], "kind": sft.kind(row)} | asked[0])
        found[-1]["follow_ups"] = asked[1:]
    return found


def examined() -> tuple[list[dict], list[dict]]:
    """HELD long rows and HELD conversations as prompts, with the evaluation's own long prompts and
    conversations; and the shipped rows without those."""
    shipped = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    held = []
    for kind in ("long", "turns"):
        of_kind = [row for row in shipped if sft.kind(row) == kind]
        held += sft.split(of_kind, HELD, short_training.SEED)[1]
    names = {row["id"] for row in held}
    prompts = [
        item
        for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
        if item.get("kind") == "long" or item.get("follow_ups")
    ]
    return items(held) + prompts, [row for row in shipped if row["id"] not in names]


def run(name: str) -> dict:
    """Train under one condition, ask, and count."""
    prompts, rows = examined()
    if name == "plain rows only":
        rows = [row for row in rows if sft.kind(row) == "plain"]
    rows = sft.split(rows, ROWS, short_training.SEED)[1]
    model, tokenizer, stop = short_training.base()
    encoded, _ = chat.encode_all(rows, tokenizer, stop, LONGEST)
    trainer = short_training.trainer(
        model, tokenizer, encoded, utils.CACHE / "kinds_effect", learning_rate=RATE
    )
    trainer.train()
    model = trainer.trained_model()
    decoding = generation.Decoding(SHORT, LONG)
    writer = generation.Transformers(model, tokenizer, stop, decoding)
    answers = generation.converse(writer, prompts, adapter=True)
    long = [
        said[0].tokens
        for item, said in zip(prompts, answers, strict=True)
        if item.get("kind") == "long"
    ]
    return {
        "kinds": dict(Counter(sft.kind(row) for row in rows)),
        "lengths": measures.lengths(prompts, answers),
        "long_tokens": sorted(long),
        "ended": sum(said[-1].stopped for said in answers) / len(answers),
        "recall": measures.recall(prompts, answers),
        "answers": generation.texts(answers),
    }


def table() -> str:
    """The measured conditions as Markdown."""
    lines = [
        "| trained on | tokens of long answers, median | gain from earlier turns | end |",
        "|---|---|---|---|",
    ]
    for name, point in conditions().items():
        lines.append(
            f"| {name} | {point['lengths']['long']:.0f} | {point['recall']:+.3f} | "
            f"{point['ended']:.0%} |"
        )
    return "\n".join(lines)


def conditions() -> dict:
    return utils.read_json(RESULTS).get("conditions", {})


if __name__ == "__main__":
    main()
