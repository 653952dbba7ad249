"""The overfitting lesson: learning rate and steps against held-out loss and stop rate, on the
packaged student.

Run: .venv/bin/python -m benchmarks.sweep [--rates 1e-4 5e-4 2e-3] [--minutes 7] One long run for
each learning rate on short shipped rows, at a constant rate after warm-up, so that every point says
what stopping there would have given. Every point is written to benchmarks/results/overfitting.json
as soon as it is measured and every run goes on from its last checkpoint (in .cache/sweep/), so that
it can be stopped at any time, by Ctrl-C or by --minutes; what is there is not done again.
train.ipynb draws the committed file with `figure()`; the file holds the rates that have been run.
That the small student trains for a single pass comes from it.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import prompts
import settings
import utils
from benchmarks import short_training
from training import chat, generation, losses, sft

RESULTS = Path(__file__).parent / "results" / "overfitting.json"
RATES = ("1e-4", "5e-4", "2e-3")
# Four passes, a point after each, a checkpoint every four steps
STEPS, EVERY, SAVE, BATCH = 64, 16, 4, 4
# The shortest shipped rows, and how many of them are held out and asked
ROWS, HELD_OUT, ASKED, NEW_TOKENS = 88, 24, 12, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after so many; run again to go on"
    )
    options = parser.parse_args()
    short_training.give_way()
    deadline = time.time() + 60 * options.minutes
    for rate in options.rates:
        if last_step(rate) < STEPS and time.time() < deadline:
            run(rate, deadline)
    print(table(), f"\nwritten to {utils.short(RESULTS)}")


def points(rate: str) -> list[dict]:
    return utils.read_json(RESULTS).get("runs", {}).get(rate, [])


def last_step(rate: str) -> int:
    return max((point["step"] for point in points(rate)), default=-1)


def write(rate: str, point: dict) -> None:
    """Add one measured point to the file."""
    record = utils.read_json(RESULTS) or {
        "model": settings.PACKAGED_HUB_ID,
        "rank": short_training.RANK,
        "batch": BATCH,
        "runs": {},
    }
    record |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "train_rows": ROWS - HELD_OUT,
        "held_out_rows": HELD_OUT,
    }
    record["runs"].setdefault(rate, []).append(point)
    utils.write_json(RESULTS, record)
    print(f"rate {rate}: {point}", flush=True)


def run(rate: str, deadline: float) -> None:
    """Train at one learning rate from where an earlier call stopped, measuring every `EVERY`
    steps."""
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    model, tokenizer, stop = short_training.base()
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    lengths = {row["id"]: len(chat.encode(row, tokenizer, stop)["input_ids"]) for row in rows}
    rows = sorted(rows, key=lambda row: lengths[row["id"]])[:ROWS]
    train, held_out = sft.split(rows, HELD_OUT, seed=42)
    encoded, held = (chat.encode_all(part, tokenizer, stop, 512)[0] for part in (train, held_out))

    def measure(state) -> None:
        step = state.global_step
        if step % EVERY or last_step(rate) >= step:
            return
        since_last_point = [
            float(entry["loss"])
            for entry in state.log_history
            if "loss" in entry and entry["step"] > step - EVERY
        ]
        mean = sum(since_last_point) / len(since_last_point) if since_last_point else None
        trained = trainer.trained_model()
        answers = generation.generate(
            trained,
            tokenizer,
            [prompts.user_message(row) for row in held_out[:ASKED]],
            stop,
            NEW_TOKENS,
            ASKED,
        )
        point = {
            "step": step,
            "epoch": round(step * BATCH / len(encoded), 2),
            "held_out_loss": round(losses.held_out_loss(trained, held, tokenizer.pad_token_id), 4),
            "train_loss": None if mean is None else round(mean, 4),
            "stop_rate": round(sum(answer.stopped for answer in answers) / len(answers), 3),
        }
        write(rate, point)

    class Measure(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            measure(state)  # step 0, or a checkpoint that was saved but not measured

        def on_save(self, args, state, control, **kwargs):
            measure(state)
            control.should_training_stop |= time.time() > deadline

    folder = utils.CACHE / "sweep" / rate
    trainer = short_training.trainer(
        model,
        tokenizer,
        encoded,
        folder,
        [Measure()],
        learning_rate=float(rate),
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVE,
        save_total_limit=1,
        logging_steps=1,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)


def table() -> str:
    """The measured points as Markdown."""
    lines = [
        "| learning rate | steps | passes | training loss | held-out loss | stop rate |",
        "|---|---|---|---|---|---|",
    ]
    for rate, measured in utils.read_json(RESULTS).get("runs", {}).items():
        for point in measured:
            trained = "" if point["train_loss"] is None else f"{point['train_loss']:.2f}"
            lines.append(
                f"| {rate} | {point['step']} | {point['epoch']:.1f} | {trained} | "
                f"{point['held_out_loss']:.3f} | {point['stop_rate']:.0%} |"
            )
    return "\n".join(lines)


def figure():
    """The committed points: held-out and training loss on the left, stop rate on the right, a
    colour for each learning rate."""
    import matplotlib.pyplot as plt

    record = utils.read_json(RESULTS)
    drawing, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    for (rate, measured), colour in zip(
        sorted(record["runs"].items(), key=lambda run: float(run[0])),
        ("#9aa5b1", "#3b7dd8", "#d8573b", "#6a51a3"),
        strict=False,
    ):
        steps = [point["step"] for point in measured]
        left.plot(
            steps,
            [point["held_out_loss"] for point in measured],
            "o-",
            color=colour,
            label=f"{float(rate):g}",
        )
        known = [point for point in measured if point["train_loss"] is not None]
        left.plot(
            [point["step"] for point in known],
            [point["train_loss"] for point in known],
            ":",
            color=colour,
        )
        right.plot(steps, [point["stop_rate"] for point in measured], "o-", color=colour)
    left.set(
        xlabel="step (passes over the rows)",
        ylabel="nats per token",
        title="held out (solid), training (dotted)",
    )
    right.set(
        xlabel="step (passes over the rows)",
        title="answers that stop by themselves",
        ylim=(-0.03, 1.03),
    )
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    longest = max(record["runs"].values(), key=len)
    for axes in (left, right):
        axes.set_xticks(
            [point["step"] for point in longest],
            [f"{point['step']}\n({point['epoch']:g})" for point in longest],
        )
    left.legend(frameon=False, title="learning rate", fontsize=8, title_fontsize=8)
    drawing.tight_layout()
    return drawing


if __name__ == "__main__":
    main()
