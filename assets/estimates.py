"""What the course would cost and take on Colab, estimated and put into colab_guide.md: `make
estimates` (ARGS="--run NAME").

What it does: count the tokens of a rehearsal run's requests, multiply them by the prices in
llm/models.py, and let training/preflight.py predict the training of gemma-2b-it on each GPU. Both
are
arithmetic: nobody has paid for these requests or trained on these GPUs for this page.
What it does not do: price a GPU (Colab does that, and changes it), or predict the minutes of
installing, downloading and answering.
"""

from __future__ import annotations

from pathlib import Path

import settings
import utils
from assets.results import cells, rewrite
from llm import models, replies
from utils import CourseError

GUIDE = "colab_guide.md"
GPUS = {"T4": "float16", "L4": "bfloat16", "A100": "bfloat16"}
HELD_OUT, MAX_LENGTH, EPOCHS, RANK, BATCH = 48, 512, 3, 4, 4  # train.ipynb's
# Schemas of the requests
ASKED = {
    "tasks": ("TaskBatch",),
    "critique": ("Critique",),
    "verdicts": ("Verdict",),
    "scores": ("Score",),
}


def prices(journal: list[dict], judged: int, prompts: int) -> list[dict]:
    """Requests and dollars of each step of a run, for every model in models.PRICES.

    Args:
        journal: `requests.jsonl` of a rehearsal run by the method "alpaca".
        judged: evaluation prompts in that run.
        prompts: evaluation prompts that a GPU would answer, that is, all.

    Returns:
        One dictionary for tasks, critique, the judge's calibration, pairs and scores, and their
        sum: `requests`, and `{model: (dollars as the stand-ins reply, dollars if every reply were
        as long as it may be)}` in `usd`.
    """
    counted = {}
    for step, schemas in ASKED.items():
        entries = [
            e for e in journal if e["request"]["response_format"]["json_schema"]["name"] in schemas
        ]
        most = [replies.most_tokens(e["request"]) for e in entries]
        prompt = sum(m[0] for m in most)
        answer = sum(e["usage"]["completion_tokens"] for e in entries)
        counted[step] = (len(entries), prompt, answer, sum(m[1] for m in most))
    more = prompts / judged
    # Each pair is judged as often as its answers are scored
    asked, verdicts = counted["scores"][0], counted["verdicts"][0]
    steps = [
        (counted["tasks"], 1.0),
        (counted["critique"], 1.0),
        (counted["verdicts"], (verdicts - asked) / verdicts),
        (counted["verdicts"], asked / verdicts * more),
        (counted["scores"], more),
    ]
    table: list[dict] = []
    for (requests, prompt, answer, longest), share in steps:
        usd = {}
        for model, price in models.PRICES.items():
            low = models.cost(price, {"prompt_tokens": prompt, "completion_tokens": answer})
            high = models.cost(price, {"prompt_tokens": prompt, "completion_tokens": longest})
            usd[model] = (share * low, share * high)
        table.append({"requests": round(share * requests), "usd": usd})
    total = {}
    for model in models.PRICES:
        dollars = [step["usd"][model] for step in table]
        total[model] = (sum(low for low, _ in dollars), sum(high for _, high in dollars))
    return [*table, {"requests": sum(step["requests"] for step in table), "usd": total}]


def rows_as_tokens(made: list[dict]) -> tuple[list[int], float]:
    """Tokens of each row of a training on the shipped rows and these, counted by the packaged
    student's tokenizer; the share trained.

    Gemma 3's tokenizer stands in for Gemma's here: theirs are alike, not the same.
    """
    from transformers import AutoTokenizer

    from training import chat, sft, student

    tokenizer = AutoTokenizer.from_pretrained(student.packaged_student())
    stop = chat.Stop(
        "<eos>",
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<end_of_turn>"),
        0,
        len(tokenizer),
    )
    rows, _ = sft.split(utils.read_jsonl(utils.DATA / "instruction.jsonl") + made, HELD_OUT, 42)
    encoded, _ = chat.encode_all(rows, tokenizer, stop, MAX_LENGTH)
    lengths = [len(row["input_ids"]) for row in encoded]
    return lengths, sum(label != chat.IGNORED for row in encoded for label in row["labels"]) / sum(
        lengths
    )


def forecasts(lengths: list[int], trained: float) -> dict:
    """`{GPU: preflight.Prediction}` of the course's training: gemma-2b, r = 4, checkpointing, the
    four longest rows in one batch."""
    from training import architecture, machine, preflight

    config, largest = architecture.gemma_2b(), sum(sorted(lengths)[-BATCH:])
    return {
        gpu: preflight.predict(
            config,
            machine.Device("cuda", dtype, "sdpa", "data sheet"),
            1,
            largest,
            RANK,
            trained,
            checkpointing=True,
            gpu=gpu,
        )
        for gpu, dtype in GPUS.items()
    }


def slots(folder: Path) -> dict:
    """What `fill` puts into the guide, from a run's folder; a CourseError where a paid model
    answered."""
    journal, made, verdicts = (
        utils.read_jsonl(folder / name)
        for name in ("requests.jsonl", "instruction.jsonl", "verdicts.jsonl")
    )
    if odd := {entry["model"] for entry in journal} - {settings.REHEARSAL}:
        raise CourseError(
            f"{utils.short(folder)} was answered by {sorted(odd)[0]}: take a run of `make run`, "
            "or report what it cost."
        )
    money = prices(journal, len(verdicts), len(utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")))
    lengths, trained = rows_as_tokens(made)
    time = forecasts(lengths, trained).values()
    minutes = [
        (
            f"{p.gb:.1f}",
            f"{p.tokens_per_second:,.0f}",
            f"{p.seconds(EPOCHS * sum(lengths)) / 60:.0f}",
        )
        for p in time
    ]
    dollars = []
    for step in money:
        ranges = [f"{low:.2f}–{high:.2f}" for low, high in step["usd"].values()]
        dollars.append((step["requests"], *ranges))
    return {
        "money": lambda old: cells(old, dollars),
        "time": lambda old: cells(old, minutes),
        "rows": f"{len(lengths):,}",
        "tokens": f"{EPOCHS * sum(lengths):,}",
    }


def main() -> None:
    rewrite(__doc__.splitlines()[0], (GUIDE,), "estimate", slots)


if __name__ == "__main__":
    utils.run_command(main)
