"""On paper: what 52 thousand, a million and a hundred million rows cost in tokens, dollars, GPU
hours, time, memory and disk.

    .venv/bin/python -m scale.cost [--teacher gpt-4o-mini] [--gpu H100] [--figure assets/scale.png]

What it does: multiply. Every factor is a named field of `Assumptions` with where it comes from:
*measured* here, *published*, or *assumed*; tests/scale/test_cost.py holds the measured ones against
the data and the README. What it does not do: promise. The assumed ones move the result most: the
share of rows that is kept, which falls as a data set grows, and the speed of a teacher of your own.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import utils
from llm import models
from preprocessing import asking
from training import preflight

SIZES = (52_000, 1_000_000, 100_000_000)


@dataclass(frozen=True)
class Assumptions:
    """Tokens are Gemma's; a row is one of half English, half Korean, as in
    data/instruction.jsonl."""

    row_tokens: float = 150  # measured: instruction, input and output of a shipped row
    template_tokens: float = 11  # measured: turns and stop token around it
    # measured: of a row's tokens in train.ipynb, the answer and its stop token
    trained_share: float = 0.60
    task_tokens: float = 102  # measured: a task as the teacher writes it, in JSON (data/rehearsal)
    prompt_tokens: float = 592  # measured: a request for twenty tasks, with three demonstrations
    # measured: left in preprocess.ipynb, of rows that are flawed on purpose; assumed for more
    kept_share: float = 0.56
    # measured: README, ROUGE-L near-duplicates on two cores ...
    exact_seconds: tuple[float, float] = (2.1, 17.4)
    # ... of so many texts
    exact_texts: tuple[float, float] = (52_000, 208_000)
    exact_bytes: float = 2630  # measured: memory of the exact filter per text, 0.51 GiB / 208,000
    lsh_bands: int = 40  # computed: scale/duplicates.py at 0.7
    # computed: one row of one band in the shuffle, three numbers of 8 bytes and one of 4
    lsh_bytes: float = 28
    # measured on two cores: 316,000 texts in 121 s and a million in 260 s; the straight line
    # through them starts at 57 s (it says 77 s for 100,000 texts, which took 87)
    lsh_start_seconds: float = 57
    lsh_core_seconds: float = 4.1e-4
    cores: int = 64  # assumed: of a cluster, for near-duplicates by LSH
    # assumed: written by one GPU, a model of about 8B parameters in vLLM at full batches
    teacher_tokens_per_second: float = 2500
    gpu_dollars: float = 2.50  # assumed: an hour of an H100
    epochs: int = 3  # the course's
    rank: int = 4  # the course's
    pack_tokens: int = 2048  # assumed: tokens in one forward pass
    record_bytes: float = 700  # measured: a row of data/instruction.jsonl


@dataclass(frozen=True)
class Cost:
    """Of `rows` rows that are left after all filters."""

    rows: int
    asked: int  # rows that the teacher writes
    prompt_tokens: float
    written_tokens: float
    dollars: float  # to a paid teacher
    dollars_batch: float  # the same by OpenAI's Batch API
    own_gpu_hours: float  # of a teacher of one's own, instead
    exact_hours: float  # near-duplicates on two cores, exact ...
    exact_gb: float  # ... and their memory
    lsh_hours: float  # on `cores` cores, by LSH on Ray ...
    lsh_shuffle_gb: float  # ... and what Ray shuffles, mostly on disk
    train_tokens: float  # of all epochs
    train_gpu_hours: float
    train_gb: float  # memory of one GPU
    disk_gb: float  # of the rows


def training(a: Assumptions, gpu: str):
    """`preflight`'s prediction for the course's model on one GPU."""
    from training import architecture, machine

    device = machine.Device("cuda", "bfloat16", "sdpa", "on paper")
    return preflight.predict(
        architecture.gemma_2b(),
        device,
        1,
        a.pack_tokens,
        a.rank,
        a.trained_share,
        checkpointing=True,
        gpu=gpu,
    )


def exact_seconds(texts: float, a: Assumptions) -> float:
    """The power law through the two measured sizes."""
    power = math.log(a.exact_seconds[1] / a.exact_seconds[0]) / math.log(
        a.exact_texts[1] / a.exact_texts[0]
    )
    return a.exact_seconds[0] * (texts / a.exact_texts[0]) ** power


def of(
    rows: int, a: Assumptions | None = None, teacher: str = "gpt-4o-mini", gpu: str = "H100"
) -> Cost:
    """The cost of `rows` rows.

    Raises:
        CourseError: no price is known for the teacher, or the GPU is not in preflight's table.
    """
    a = a or Assumptions()
    if teacher not in models.PRICES:
        raise utils.CourseError(
            f"No price is known for {teacher!r}: choose one of {', '.join(models.PRICES)}, or add "
            "it to llm/models.py."
        )
    asked = round(rows / a.kept_share)
    prompt = asked * a.prompt_tokens / asking.TASKS
    written = asked * a.task_tokens
    tokens = {"prompt_tokens": prompt, "completion_tokens": written}
    dollars = models.cost(models.PRICES[teacher], tokens)
    prediction = training(a, gpu)
    trained = rows * (a.row_tokens + a.template_tokens) * a.epochs
    return Cost(
        rows=rows,
        asked=asked,
        prompt_tokens=prompt,
        written_tokens=written,
        dollars=dollars,
        dollars_batch=dollars * models.BATCH_SHARE,
        own_gpu_hours=written / a.teacher_tokens_per_second / 3600,
        exact_hours=exact_seconds(asked, a) / 3600,
        exact_gb=asked * a.exact_bytes / 1e9,
        lsh_hours=(a.lsh_start_seconds + asked * a.lsh_core_seconds / a.cores) / 3600,
        lsh_shuffle_gb=asked * a.lsh_bands * a.lsh_bytes / 1e9,
        train_tokens=trained,
        train_gpu_hours=prediction.seconds(round(trained)) / 3600,
        train_gb=prediction.gb,
        disk_gb=asked * a.record_bytes / 1e9,
    )


def _count(value: float) -> str:
    """1234567890 as "1.23 B": for rows and tokens."""
    if value >= 1e9:
        return f"{value / 1e9:.3g} B"
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}"


def _amount(value: float) -> str:
    """Two digits where there are few: for hours, dollars and gigabytes."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def table(costs: list[Cost], teacher: str, gpu: str, a: Assumptions) -> str:
    """Markdown, a column a size, and what each line rests on: "measured", "published" (prices, data
    sheets), "arithmetic" or "assumed"; the weakest of its factors is named."""
    speed = f"assumed: {preflight.GPU_EFFICIENCY:.0%} of the data sheet's FLOP/s"
    lines = [
        ("rows asked for", "asked", _count, f"assumed: {a.kept_share:.0%} are kept"),
        ("teacher reads, tokens", "prompt_tokens", _count, "measured a row"),
        ("teacher writes, tokens", "written_tokens", _count, "measured a row"),
        (f"{teacher}, dollars", "dollars", _amount, "published prices"),
        ("the same in batches, dollars", "dollars_batch", _amount, "published prices"),
        (
            "or a teacher of your own, GPU hours",
            "own_gpu_hours",
            _amount,
            f"assumed: {a.teacher_tokens_per_second:,.0f} tokens/s",
        ),
        (
            "near-duplicates, exact, two cores, hours",
            "exact_hours",
            _amount,
            f"measured up to {a.exact_texts[1]:,} texts; beyond: their power law",
        ),
        ("their memory, GB", "exact_gb", _amount, f"measured at {a.exact_texts[1]:,} texts"),
        (
            f"near-duplicates, LSH on Ray, {a.cores} cores, hours",
            "lsh_hours",
            _amount,
            "measured up to 1 M on two cores, before there were rounds; assumed: shared evenly",
        ),
        ("what the buckets shuffle, GB", "lsh_shuffle_gb", _amount, "arithmetic: the first round"),
        (f"training gemma-2b, {a.epochs} epochs, tokens", "train_tokens", _count, "measured a row"),
        (f"the same, {gpu} hours", "train_gpu_hours", _amount, speed),
        (f"memory of one {gpu}, GB", "train_gb", _amount, "arithmetic; no GPU was at hand"),
        ("rows on disk, GB", "disk_gb", _amount, "measured a row"),
    ]
    sizes = " | ".join(_count(cost.rows) for cost in costs)
    head = f"| | {sizes} | rests on |\n|---|" + "---|" * (len(costs) + 1)
    body = [
        f"| {title} | " + " | ".join(show(getattr(cost, name)) for cost in costs) + f" | {basis} |"
        for title, name, show, basis in lines
    ]
    return "\n".join([head, *body])


def figure(a: Assumptions, teacher: str, gpu: str):
    """Hours and dollars against rows, both axes logarithmic."""
    import matplotlib.pyplot as plt
    import numpy as np

    utils.figure_style()
    sizes = np.geomspace(1e4, 1e8, 17)
    costs = [of(round(size), a, teacher, gpu) for size in sizes]
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    curves = {
        "own_gpu_hours": ("teacher of your own, 1 GPU", "#e07b39", "-"),
        "train_gpu_hours": (f"training gemma-2b, 1 {gpu}", "#3b7dd8", "-"),
        "exact_hours": ("near-duplicates, exact, 2 cores", "#9aa5b1", "--"),
        "lsh_hours": (f"near-duplicates, LSH, {a.cores} cores", "#4a9d5b", "-"),
    }
    for name, (label, colour, style) in curves.items():
        left.loglog(
            sizes, [getattr(cost, name) for cost in costs], style, color=colour, label=label
        )
    left.axhline(24, color="#cccccc", lw=0.8)
    left.text(1.1e4, 28, "a day", fontsize=8, color="#777777")
    left.set(xlabel="rows kept", ylabel="hours", title="Time, on paper")
    for model, colour in zip(models.PRICES, ("#9a3b3b", "#e07b39", "#4a9d5b"), strict=False):
        right.loglog(
            sizes,
            [of(round(size), a, model, gpu).dollars_batch for size in sizes],
            color=colour,
            label=f"{model}, in batches",
        )
    right.loglog(
        sizes,
        [cost.own_gpu_hours * a.gpu_dollars for cost in costs],
        "--",
        color="#3b7dd8",
        label="teacher of your own",
    )
    right.set(xlabel="rows kept", ylabel="dollars", title="Money for the rows, on paper")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
        for rows in SIZES:
            axes.axvline(rows, color="#eeeeee", lw=0.8, zorder=0)
    drawing.tight_layout()
    return drawing


def main() -> None:
    """Print the assumptions and the table, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="gpt-4o-mini", choices=list(models.PRICES))
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--kept-share", type=float, default=Assumptions.kept_share)
    parser.add_argument("--figure", type=Path, default=utils.ROOT / "assets" / "scale.png")
    options = parser.parse_args()
    a = dataclasses.replace(Assumptions(), kept_share=options.kept_share)
    costs = [of(size, a, options.teacher, options.gpu) for size in SIZES]
    print(table(costs, options.teacher, options.gpu, a))
    figure(a, options.teacher, options.gpu).savefig(options.figure)
    print(
        "\nOn paper, with: "
        + ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(a).items())
    )


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
