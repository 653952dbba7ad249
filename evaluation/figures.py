"""Figures of an evaluation: calibration by kind, position bias, outcomes with intervals, length,
scores.

What it does: draw what outcomes.py and calibration.py found, each figure naming the judge. What it
does not do: compute anything else, save or show. matplotlib is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import settings
from evaluation import outcomes, stats
from evaluation.calibration import Calibration
from evaluation.outcomes import Outcome

NAMES = {Outcome.WIN: "won", Outcome.LOSS: "lost"}  # a loss is also what training lowers
COLOURS = dict(zip(Outcome, ("#2e8b57", "#c0504d", "#c9ced6", "#e0b040", "#555555"), strict=True))
BASE, TUNED, LINE = "#8a94a3", "#3b7dd8", "#999999"


def calibration_figure(calibration: Calibration):
    """Accuracy on each kind of fault with its interval, and what happens to verdicts when the
    answers change places."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), width_ratios=(3, 2))
    groups = {"all kinds": calibration.accuracy} | calibration.by_kind
    _intervals(left, {name.replace("_", " "): rate for name, rate in groups.items()})
    left.set(xlabel="verdicts that are right, 95 % interval", title="by kind of fault")
    p = calibration.positions
    parts = {
        "same verdict in both orders": (p.alike, "#3b7dd8"),
        "a tie in one order only": (p.leaning, "#c9ced6"),
        "always the first answer": (p.first, "#e0b040"),
        "always the second answer": (p.second, "#c0504d"),
    }
    for row, (number, colour) in enumerate(parts.values()):
        right.barh(row, number, color=colour)
        right.text(number, row, f" {number}", va="center", fontsize=8)
    right.set(
        yticks=range(len(parts)),
        yticklabels=parts,
        xlabel="pairs",
        title=f"position, {stats.p_value(p.p)}",
    )
    right.set_xlim(0, 1.15 * max(1, p.n))
    right.invert_yaxis()
    figure.suptitle(f"judge: {calibration.judge}", fontsize=10)
    figure.tight_layout()
    return figure


def outcome_figure(records: Sequence[dict], believed: Sequence[str]):
    """The five outcomes as bars, for all prompts, each language and each difficulty, and beside
    them the win rates with their intervals.

    Args:
        believed: the languages in which the judge may be believed; in the others its verdicts are
            shown, but no win rate.
    """
    import matplotlib.pyplot as plt

    groups = _groups(records)
    trusted = _groups([record for record in records if record["language"] in believed])
    rates = {}
    for name, members in trusted.items():
        if known := outcomes.values(members):
            rates[name] = stats.win_rate(known)
    columns = 2 if rates else 1
    size = (9.5, 0.5 * len(groups) + 1.5)
    figure, panels = plt.subplots(
        1, columns, figsize=size, width_ratios=(3, 2)[:columns], squeeze=False
    )
    _outcome_bars(panels[0][0], groups)
    if rates:
        _intervals(panels[0][1], rates)
        panels[0][1].set(xlabel="win rate, 95 % interval", title="win rate of tuned")
    figure.suptitle(f"judge: {records[0]['judge']}", fontsize=10)
    figure.tight_layout()
    return figure


def _groups(records: Sequence[dict]) -> dict[str, list[dict]]:
    """The records of all languages together, of each language, and of each difficulty, by the name
    that is shown; nothing stands there twice under two names."""
    languages = sorted({record["language"] for record in records})
    difficulties = sorted({record.get("difficulty", "standard") for record in records})
    groups = {"all": list(records)} if len(languages) > 1 else {}
    for code in languages:
        name = settings.LANGUAGES.get(code, code)
        groups[name] = [record for record in records if record["language"] == code]
    if len(difficulties) > 1:
        for name in difficulties:
            alike = [record for record in records if record.get("difficulty", "standard") == name]
            groups[name] = alike
    return groups


def _outcome_bars(axes, groups: dict[str, list[dict]]) -> None:
    """One row a group: its shares of the five outcomes, end to end."""
    for row, members in enumerate(groups.values()):
        start = 0.0
        for kind in Outcome:
            share = sum(record["outcome"] == kind for record in members) / len(members)
            label = NAMES.get(kind, kind.value) if row == 0 else None
            axes.barh(row, share, left=start, color=COLOURS[kind], label=label)
            if share > 0.05:
                ink = "black" if kind in (Outcome.TIE, Outcome.INCONSISTENT) else "white"
                middle = start + share / 2
                axes.text(middle, row, f"{share:.0%}", ha="center", va="center", size=8, color=ink)
            start += share
    axes.set(
        yticks=range(len(groups)),
        yticklabels=[f"{name} ({len(members)})" for name, members in groups.items()],
        xlim=(0, 1),
        xlabel="share of prompts",
        title="outcomes of tuned against base",
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_percent)
    axes.legend(
        ncols=5,
        loc="upper center",
        bbox_to_anchor=(0.5, -1.3 / len(groups)),  # below the label, however many rows there are
        frameon=False,
        fontsize=8,
        columnspacing=1,
        handlelength=1,
    )


def spread_figure(records: Sequence[dict], longer: Sequence[float]):
    """Does length win? And how are the single scores spread? Records with `scores`; `longer` in
    tokens, one a prompt."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.0))
    # Points on one another would hide how many they are
    nudge = np.random.default_rng(0).uniform(-0.04, 0.04, len(records))
    for record, gap, shift in zip(records, longer, nudge, strict=True):
        if record["value"] is not None:
            left.plot(
                gap,
                record["value"] + shift,
                "o",
                color=COLOURS[record["outcome"]],
                ms=4,
                alpha=0.75,
            )
    left.axvline(0, color=LINE, lw=0.8, ls=":")
    left.set(
        xlabel="tokens by which the tuned answer is longer",
        ylabel="verdict (1: tuned)",
        title="length",
        ylim=(-0.12, 1.12),
    )
    bins = np.arange(0.75, 10.76, 0.5)
    for name, colour in (("base", BASE), ("tuned", TUNED)):
        scores = [
            record["scores"][name] for record in records if record["scores"][name] is not None
        ]
        right.hist(scores, bins, color=colour, alpha=0.65, label=name)
    right.set(xlabel="single score, 1 to 10", ylabel="prompts", title="scores", xticks=range(1, 11))
    right.legend(frameon=False, fontsize=8)
    figure.suptitle(f"judge: {records[0]['judge']}", fontsize=10)
    figure.tight_layout()
    return figure


def reach_figure(lengths: dict[str, dict[str, float]], recalls: dict[str, float | None]):
    """What rows of long answers and of several turns are for: how long answers are to standard,
    hard and long prompts, and how far later answers go back to the turns before.

    Args:
        lengths: `{"base": ..., "tuned": ...}` from `measures.lengths`; more names are drawn too.
        recalls: the same from `measures.recall`.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=(3, 2))
    names, colours = list(lengths), (BASE, TUNED, "#2e8b57", "#e0b040")
    groups = list(next(iter(lengths.values())))
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        rows = [row + (place - (len(names) - 1) / 2) * height for row in range(len(groups))]
        sizes = [lengths[name][group] for group in groups]
        left.barh(rows, sizes, height, color=colours[place % 4], label=name)
        told = recalls.get(name)
        right.barh(place, told or 0, color=colours[place % 4])
        text = "none" if told is None else f"{told:+.2f}"
        right.text(max(told or 0, 0), place, f" {text}", va="center", fontsize=8)
    left.set(yticks=range(len(groups)), yticklabels=groups, xlabel="median tokens of an answer")
    left.legend(frameon=False, fontsize=8)
    right.set(yticks=range(len(names)), yticklabels=names, xlabel="words from earlier turns, gain")
    right.axvline(0, color=LINE, lw=0.8)
    right.margins(x=0.2)
    for axes in (left, right):
        axes.invert_yaxis()
    figure.tight_layout()
    return figure


def _intervals(axes, rates: dict[str, stats.Estimate]) -> None:
    """One row a rate: a point, its interval, and n; a line at 50 %."""
    for row, rate in enumerate(rates.values()):
        axes.plot(
            [rate.low, rate.high],
            [row, row],
            color=TUNED if row else "black",
            lw=2 if row else 3,
            solid_capstyle="round",
        )
        axes.plot(rate.value, row, "o", color=TUNED if row else "black", ms=5)
    names = [f"{name} ({rate.n})" for name, rate in rates.items()]
    axes.axvline(0.5, color=LINE, lw=0.8, ls=":")
    axes.set(
        yticks=range(len(rates)),
        yticklabels=names,
        xlim=(-0.02, 1.02),
        ylim=(len(rates) - 0.5, -0.5),
    )
    axes.xaxis.set_major_formatter(_percent)


def _percent(share: float, _) -> str:
    return f"{share:.0%}"
