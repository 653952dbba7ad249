"""Judging base against tuned: what `evaluation.ipynb` calls.

In here: pairwise verdicts in both orders, their five outcomes, win rates with bootstrap intervals, single scores, agreement with
labels, and the measures that need no judge. Not in here: generation (the notebook does it with `sft.py`) and the decision whether
a judge may be believed (the notebook calibrates it first).

Source: LLM-as-a-judge (arXiv 2306.05685) and its code (lm-sys/FastChat), whose faults are not copied: a failed or inconsistent
verdict is an outcome of its own here, never dropped and never hidden among the ties.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import prompts
from llm import Client
from utils import CourseError


class Outcome(enum.StrEnum):
    """What the two verdicts on one prompt, one in each order, amount to, seen from the tuned model."""

    WIN = "win"  # both orders prefer it
    LOSS = "loss"  # both orders prefer the other
    TIE = "tie"  # at least one order sees a tie, and no order contradicts the other
    INCONSISTENT = "inconsistent"  # the verdict follows the position
    FAILED = "failed"  # a verdict is missing or unreadable


class Verdict(BaseModel):
    """Explanation first, so that the verdict follows from it."""

    model_config = ConfigDict(extra="forbid")
    explanation: str
    verdict: Literal["A", "B", "tie"]


class Score(BaseModel):
    model_config = ConfigDict(extra="forbid")
    explanation: str
    score: int = Field(ge=1, le=10)


# --- asking --------------------------------------------------------------------------------------------------------


def pair_request(item: dict, answer_a: str, answer_b: str) -> dict:
    """The chat request that compares two answers; `item` has `language`, `prompt` and `reference`."""
    text = prompts.JUDGE_PAIR[item["language"]].format(
        prompt=item["prompt"], reference=item["reference"], answer_a=answer_a, answer_b=answer_b
    )
    return _request(prompts.JUDGE_SYSTEM[item["language"]], text)


def single_request(item: dict, answer: str) -> dict:
    """The chat request that scores one answer from 1 to 10."""
    text = prompts.JUDGE_SINGLE[item["language"]].format(prompt=item["prompt"], reference=item["reference"], answer=answer)
    return _request(prompts.JUDGE_SINGLE_SYSTEM[item["language"]], text)


def _request(system: str, user: str) -> dict:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"messages": messages, "temperature": 0.0, "max_completion_tokens": 400}


async def compare(client: Client, items: list[dict], tuned: Sequence[str], base: Sequence[str], name: str | None = None) -> list[dict]:
    """Judge every pair twice, with the answers swapped the second time.

    Args:
        name: how the judge is named in the records, so that a stand-in says that it is one; default the model's name.

    Returns:
        One record a prompt: `id, language, category, outcome, value` (mean of the two orders, 1 for tuned, 0 for base, .5 for a
        tie; None if failed) and `orders`, the two verdicts with their explanations.
    """
    first = [pair_request(item, a, b) for item, a, b in zip(items, tuned, base, strict=True)]
    second = [pair_request(item, b, a) for item, a, b in zip(items, tuned, base, strict=True)]
    replies = await client.complete(first + second, Verdict)
    records = []
    for i, item in enumerate(items):
        orders = [
            {"tuned_is": position, "verdict": r.parsed.verdict if r.parsed else None, "error": r.error, "explanation": r.text}
            for position, r in (("A", replies[i]), ("B", replies[i + len(items)]))
        ]
        sides = [side(order["verdict"], order["tuned_is"]) for order in orders]
        records.append(
            {
                **{key: item[key] for key in ("id", "language", "category", "kind") if key in item},
                "outcome": str(outcome(*sides)),
                "value": None if None in sides else sum(sides) / 2,
                "judge": name or client.model,
                "orders": orders,
            }
        )
    return records


def side(verdict: str | None, tuned_is: str) -> float | None:
    """One verdict ("A", "B", "tie") as the tuned model's score: 1, 0 or 0.5; None where there is no verdict."""
    if verdict is None:
        return None
    return 0.5 if verdict == "tie" else float(verdict == tuned_is)


def outcome(first: float | None, second: float | None) -> Outcome:
    """The outcome of two orders, each scored by `side`."""
    if first is None or second is None:
        return Outcome.FAILED
    if {first, second} == {0.0, 1.0}:
        return Outcome.INCONSISTENT
    if first == second == 1.0:
        return Outcome.WIN
    if first == second == 0.0:
        return Outcome.LOSS
    return Outcome.TIE


# --- statistics ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean in [0, 1] over `n` prompts with its standard error and a 95 % interval."""

    value: float
    se: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}], n = {self.n}"


@dataclass(frozen=True)
class Agreement:
    """Two raters on the same items: accuracy and Cohen's kappa, each `(value, low, high)` at 95 %."""

    accuracy: tuple[float, float, float]
    kappa: tuple[float, float, float]
    n: int


def win_rate(scores: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean score with a percentile bootstrap over prompts.

    Args:
        scores: one per *prompt*, in [0, 1], both orders already averaged: resampling single verdicts would treat the two orders of
            a prompt as independent and make the interval too narrow.
    """
    values = np.asarray(scores, float)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise CourseError("A win rate needs at least one score, and every score lies between 0 and 1: check the verdicts.")
    means = np.random.default_rng(seed).choice(values, (resamples, len(values))).mean(axis=1)
    se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), se, *map(float, np.quantile(means, [0.025, 0.975])), len(values))


def sign_test(outcomes: Sequence[str]) -> float:
    """Two-sided p that wins and losses are equally likely, ties and the rest left out; 1 if there are none."""
    from scipy.stats import binomtest

    counts = Counter(outcomes)
    wins, losses = counts[Outcome.WIN], counts[Outcome.LOSS]
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def agreement(a: Sequence, b: Sequence, resamples: int = 2_000, seed: int = 0) -> Agreement:
    """How often two raters give the same label, and Cohen's kappa: agreement beyond chance, with bootstrap interval."""
    from sklearn.metrics import cohen_kappa_score

    if len(a) != len(b) or not len(a):
        raise CourseError(f"Agreement needs the same items from both raters, got {len(a)} and {len(b)} labels.")
    a, b = np.asarray(a, str), np.asarray(b, str)
    labels = sorted(set(a) | set(b))

    def kappa(rows) -> float:
        if len(set(a[rows]) | set(b[rows])) < 2:  # only one label drawn: perfect agreement, kappa undefined
            return 1.0
        return float(cohen_kappa_score(a[rows], b[rows], labels=labels))

    rng = np.random.default_rng(seed)
    kappas = [kappa(rng.integers(len(a), size=len(a))) for _ in range(resamples)]
    same = int((a == b).sum())
    low, high = np.quantile(kappas, [0.025, 0.975])
    return Agreement((same / len(a), *wilson(same, len(a))), (kappa(np.arange(len(a))), float(low), float(high)), len(a))


# --- measures without a judge --------------------------------------------------------------------------------------


def loops(text: str, n: int = 4, share: float = 0.5) -> bool:
    """True if more than `share` of the word n-grams repeat an earlier one: the model is going round in circles."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(grams) > n and 1 - len(set(grams)) / len(grams) > share


def outcome_figure(records: list[dict], title: str):
    """The five outcomes as one bar for all prompts and one a language."""
    import matplotlib.pyplot as plt

    groups = {"all": records} | {
        {"en": "English", "ko": "Korean"}[code]: [r for r in records if r["language"] == code]
        for code in sorted({r["language"] for r in records})
    }
    colours = dict(zip(Outcome, ("#2e8b57", "#c0504d", "#c9ced6", "#e0b040", "#555555"), strict=True))
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(groups) + 1.3))
    for row, (_, members) in enumerate(groups.items()):
        left = 0.0
        for kind in Outcome:
            share = sum(r["outcome"] == kind for r in members) / len(members)
            axes.barh(row, share, left=left, color=colours[kind], label=kind.value if row == 0 else None)
            if share > 0.04:
                axes.text(
                    left + share / 2,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if kind is Outcome.TIE else "white",
                )
            left += share
    axes.set(yticks=range(len(groups)), yticklabels=groups, xlim=(0, 1), xlabel="share of prompts", title=title)
    axes.invert_yaxis()
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.45), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
