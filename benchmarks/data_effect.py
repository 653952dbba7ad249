"""What do more data, another language or other data change? The packaged student, one pass each, on
the same held-out rows.

Run: .venv/bin/python -m benchmarks.data_effect [--only "100 rows" "English only"] [--minutes 30]
Trains on 100, 300 and all shipped rows; on 100 rows of one language or of both; on 100 seeds or 100
rows that preprocess.ipynb made (from runs/default/). Rows are at most LONGEST tokens long, so that
two cores get through. One pass means more steps for more rows, as in life. Each condition is
written to benchmarks/results/data_effect.json when it is done, and what is there is not done again.
train.ipynb draws that file with `figure()`.
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

RESULTS = Path(__file__).parent / "results" / "data_effect.json"
RATE, LONGEST = 5e-4, 128  # the student's own settings in train.ipynb, and tokens of a row
# Rows, how many of them are asked, and tokens of an answer
HELD_OUT, ASKED, NEW_TOKENS = 48, 24, 64
BASE = "no training"
GROUPS = {  # panels of the figure: condition, label ({rows}: how many)
    "how many rows": {BASE: "0", "100 rows": "100", "300 rows": "300", "all rows": "all {rows}"},
    "which language, 100 rows": {
        "English only": "English",
        "Korean only": "Korean",
        "100 rows": "both",
    },
    "which rows, 100 of each": {
        "seeds only": "seeds",
        "generated only": "generated",
        "100 rows": "shipped",
    },
}
CONDITIONS = list(dict.fromkeys(name for group in GROUPS.values() for name in group))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument(
        "--minutes",
        type=float,
        default=1e9,
        help="start no condition after so many; run again to go on",
    )
    options = parser.parse_args()
    short_training.give_way()
    deadline = time.time() + 60 * options.minutes
    for name in options.only:
        if name not in conditions() and time.time() < deadline:
            point = run(name)
            record = utils.read_json(RESULTS) or {
                "model": settings.PACKAGED_HUB_ID,
                "rank": short_training.RANK,
                "rate": RATE,
                "conditions": {},
            }
            record |= {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "longest": LONGEST,
                "held_out_rows": HELD_OUT,
            }
            record["conditions"][name] = point
            utils.write_json(RESULTS, record)
            print(f"{name}: {point}", flush=True)
    print(table(), f"\nwritten to {utils.short(RESULTS)}")


def conditions() -> dict:
    return utils.read_json(RESULTS).get("conditions", {})


def run(name: str) -> dict:
    """Train under one condition; what came of it."""
    model, tokenizer, stop = short_training.base()

    def short(path: Path) -> list[dict]:
        rows = utils.read_jsonl(path)
        return [
            row for row in rows if len(chat.encode(row, tokenizer, stop)["input_ids"]) <= LONGEST
        ]

    shipped, held_out = sft.split(short(utils.DATA / "instruction.jsonl"), HELD_OUT, seed=42)
    rows = chosen(name, shipped, short)
    encoded, held = (
        chat.encode_all(part, tokenizer, stop, LONGEST)[0] if part else []
        for part in (rows, held_out)
    )
    started = time.time()
    if rows:
        trainer = short_training.trainer(
            model,
            tokenizer,
            encoded,
            utils.CACHE / "data_effect",
            learning_rate=RATE,
            gradient_accumulation_steps=2,
        )
        trainer.train()
        model = trainer.trained_model()
    seconds = time.time() - started
    answers = generation.generate(
        model,
        tokenizer,
        [prompts.user_message(row) for row in held_out[:ASKED]],
        stop,
        NEW_TOKENS,
        ASKED,
    )
    parts: dict[str, list[dict]] = {
        "held_out_loss": held,
        "held_out_loss_en": [],
        "held_out_loss_ko": [],
    }
    for example, row in zip(held, held_out, strict=True):
        parts[f"held_out_loss_{row['language']}"].append(example)
    return {
        "rows": len(rows),
        "tokens": sum(len(example["input_ids"]) for example in encoded),
        "minutes": round(seconds / 60, 1),
        "stop_rate": round(sum(answer.stopped for answer in answers) / len(answers), 3),
    } | {
        key: round(losses.held_out_loss(model, part, tokenizer.pad_token_id), 4)
        for key, part in parts.items()
    }


def chosen(name: str, shipped: list[dict], short) -> list[dict]:
    """The rows of a condition. `shipped` is in random order and without the held-out ones; `short`
    reads a file's short rows.

    Raises:
        CourseError: the rows that preprocess.ipynb makes are wanted and not there, or there are too
            few.
    """
    made = settings.run_folder() / "instruction.jsonl"
    if name == "generated only" and not made.exists():
        raise utils.CourseError(
            f"{utils.short(made)} is missing: run preprocess.ipynb (or `make run`) first."
        )
    if name in (BASE, "all rows"):
        return shipped if name == "all rows" else []
    if name == "300 rows":
        return balanced(shipped, 300)
    if name == "seeds only":
        return balanced(short(utils.DATA / "seed_tasks.jsonl"), 100)
    if name == "generated only":
        return balanced(short(made), 100)
    languages = {"English only": ("en",), "Korean only": ("ko",)}.get(name, ("en", "ko"))
    return balanced([row for row in shipped if row["language"] in languages], 100)


def balanced(rows: list[dict], count: int) -> list[dict]:
    """`count` rows with the same share of every language and category."""
    if len(rows) < count:
        raise utils.CourseError(
            f"Only {len(rows)} of these rows have at most {LONGEST} tokens, and {count} are wanted."
        )
    return rows if len(rows) == count else sft.split(rows, len(rows) - count, seed=1)[0]


def table() -> str:
    """The measured conditions as Markdown."""
    lines = [
        "| trained on | rows | tokens | held-out loss | English | Korean | stop rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, point in conditions().items():
        losses = " | ".join(
            f"{point[key]:.3f}" for key in ("held_out_loss", "held_out_loss_en", "held_out_loss_ko")
        )
        lines.append(
            f"| {name} | {point['rows']} | {point['tokens']:,} | {losses} | "
            f"{point['stop_rate']:.0%} |"
        )
    return "\n".join(lines)


def figure():
    """The committed conditions: held-out loss of each language as dots, and above them the share of
    answers that stop."""
    import matplotlib.pyplot as plt

    measured = conditions()
    wide = {"width_ratios": [len(group) for group in GROUPS.values()]}
    drawing, panels = plt.subplots(1, len(GROUPS), figsize=(9, 3), sharey=True, gridspec_kw=wide)
    for axes, (title, group) in zip(panels, GROUPS.items(), strict=True):
        shown = {
            label.format(**measured[name]): measured[name]
            for name, label in group.items()
            if name in measured
        }
        for key, label, colour in (
            ("held_out_loss_en", "English rows", "#3b7dd8"),
            ("held_out_loss_ko", "Korean rows", "#d8573b"),
        ):
            axes.plot(
                list(shown),
                [point[key] for point in shown.values()],
                "o",
                color=colour,
                label=label,
            )
        for place, point in enumerate(shown.values()):
            axes.annotate(
                f"{point['stop_rate']:.0%} stop",
                (place, 0.97),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=8,
            )
        axes.set_title(title, fontsize=9)
        axes.margins(x=0.25, y=0.25)
    panels[0].set_ylabel("held-out loss, nats per token")
    drawing.legend(
        *panels[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        loc="lower center",
        ncols=2,
    )
    drawing.tight_layout(rect=(0, 0.06, 1, 1))
    return drawing


if __name__ == "__main__":
    main()
