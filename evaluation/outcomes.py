"""What the verdicts add up to: five outcomes, position bias, groups, contradictions, and one honest
sentence.

What it does: read verdict records (see `judge.compare` for their form). What it does not do: ask a
judge (judge.py) or decide whether it may be believed (calibration.py).

Source: LLM-as-a-judge (arXiv 2306.05685) and its code (lm-sys/FastChat), whose faults are not
copied: a failed or inconsistent verdict is an outcome of its own here, never dropped and never
hidden among the ties.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation import stats
from evaluation.stats import Estimate

FEWEST = 10  # prompts; below that no sign test can reach p = .05 unless nearly all agree


class Outcome(enum.StrEnum):
    """What the verdicts on one prompt, in both orders, amount to, seen from the tuned model."""

    WIN = "win"  # both orders prefer it
    LOSS = "loss"  # both orders prefer the other
    TIE = "tie"  # at least one order sees a tie, and no order contradicts the other
    INCONSISTENT = "inconsistent"  # the verdict follows the position
    FAILED = "failed"  # a verdict is missing or unreadable


def side(verdict: str | None, tuned_is: str) -> float | None:
    """One verdict ("A", "B", "tie") as the tuned model's score: 1, 0 or 0.5; None where there is no
    verdict."""
    if verdict is None:
        return None
    return 0.5 if verdict == "tie" else float(verdict == tuned_is)


def outcome(first: float | None, second: float | None) -> Outcome:
    """The outcome of two orders, each the mean of `side` over its turns."""
    if first is None or second is None:
        return Outcome.FAILED
    if (first - 0.5) * (second - 0.5) < 0:
        return Outcome.INCONSISTENT
    if min(first, second) > 0.5:
        return Outcome.WIN
    if max(first, second) < 0.5:
        return Outcome.LOSS
    return Outcome.TIE


def count(records: Sequence[dict]) -> dict[str, int]:
    """All five outcomes, none left out."""
    counts = Counter(record["outcome"] for record in records)
    return {kind.value: counts[kind] for kind in Outcome}


def sign_test(outcomes: Sequence[str]) -> float:
    """Two-sided p that wins and losses are equally likely, ties and the rest left out; 1 if there
    are none."""
    counts = Counter(outcomes)
    return stats.binomial_test(counts[Outcome.WIN], counts[Outcome.LOSS])


# --- position -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """Comparisons judged in both orders: how many were decided alike, and whom the others
    favoured."""

    alike: int  # the same answer preferred, or a tie, in both orders
    first: int  # the answer shown first, in both orders
    second: int
    leaning: int  # one order a tie, the other not
    p: float  # exact binomial: first and second equally likely

    @property
    def n(self) -> int:
        return self.alike + self.first + self.second + self.leaning

    @property
    def consistency(self) -> Estimate | None:
        """Share of comparisons with the same verdict in both orders; None where none could be
        read."""
        if not self.n:
            return None
        return stats.proportion([1.0] * self.alike + [0.0] * (self.n - self.alike))


def positions(records: Sequence[dict]) -> Positions:
    """Position bias, every turn of a prompt a comparison of its own; comparisons with a failed
    verdict are left out."""
    alike = first = second = leaning = 0
    for record in records:
        for verdicts in _by_turn(record["orders"]):
            if None in verdicts:
                continue
            # "A" is the answer shown first, and the two orders show different answers first
            if verdicts == ["A", "A"]:
                first += 1
            elif verdicts == ["B", "B"]:
                second += 1
            elif verdicts.count("tie") == 1:
                leaning += 1
            else:
                alike += 1
    return Positions(alike, first, second, leaning, stats.binomial_test(first, second))


def _by_turn(orders: Sequence[dict]) -> list[list[str | None]]:
    """The two verdicts of every turn."""
    turns: dict[int, list[str | None]] = {}
    for order in orders:
        turns.setdefault(order.get("turn", 1), []).append(order["verdict"])
    return list(turns.values())


# --- the result -----------------------------------------------------------------------------------


def values(records: Sequence[dict]) -> list[float]:
    """One score a prompt, those with a failed verdict left out (`stats.bounds` says what that could
    hide)."""
    return [record["value"] for record in records if record["value"] is not None]


def by_group(records: Sequence[dict], key: str) -> dict[str, Estimate]:
    """Win rate of every language, category or kind, with Wilson intervals: a bootstrap of five
    prompts claims too much."""
    groups: dict[str, list[float]] = {}
    for record in records:
        if record["value"] is not None:
            groups.setdefault(record[key], []).append(record["value"])
    return {name: stats.proportion(groups[name]) for name in sorted(groups)}


def contradictions(records: Sequence[dict]) -> list[dict]:
    """Prompts where pairwise and single verdicts contradict each other: the winner of the pair has
    the lower single score."""
    found = []
    for record in records:
        scores = record.get("scores", {})
        base, tuned = scores.get("base"), scores.get("tuned")
        if base is None or tuned is None:
            continue
        won_with_less = record["outcome"] == Outcome.WIN and tuned < base
        lost_with_more = record["outcome"] == Outcome.LOSS and tuned > base
        if won_with_less or lost_with_more:
            found.append(record)
    return found


def headline(
    records: Sequence[dict], closed: str | None = None, corrected: Estimate | None = None
) -> str:
    """The whole result in one sentence that claims nothing the data do not show.

    Args:
        closed: why the judge may not be believed (`calibration.Calibration.why_closed`); then there
            is no win rate.
        corrected: the win rate corrected for the judge's errors, to stand beside the raw one.
    """
    if closed:
        return f"No win rate: {closed}"
    if len(records) < FEWEST:
        return (
            f"No win rate: {len(records)} prompts are too few to compare two models; judge "
            f"{FEWEST} or more."
        )
    counts, known = count(records), values(records)
    if len(known) < FEWEST:
        return (
            f"No win rate: only {len(known)} of {len(records)} prompts have a readable "
            f"verdict; {FEWEST} or more are needed."
        )
    rate = stats.win_rate(known)
    p = sign_test([record["outcome"] for record in records])
    needed = stats.prompts_needed(known)
    inconsistent = f"{100 * counts['inconsistent'] / len(records):.0f} % inconsistent"
    tests = f"sign test {stats.p_value(p)}, {inconsistent}, {counts['failed']} failed"
    if rate.low <= 0.5 <= rate.high or p >= 0.05:
        if needed is None:
            more = "there is no difference to find"
        elif needed <= len(records):  # the interval excludes 50 %, but too few prompts are decisive
            more = "the interval and the sign test do not agree, so judge more prompts"
        else:
            more = f"about {needed:,} prompts would be needed to see a difference of this size"
        return (
            f"tuned and base are not distinguishable: tuned wins {rate.short} of {rate.n} "
            f"prompts, {tests}; {more}."
        )
    worst, best = stats.bounds([record["value"] for record in records])
    if worst <= 0.5 <= best:
        return (
            f"Not settled: tuned wins {rate.short} of the {rate.n} prompts that have a verdict, "
            f"{tests}, and those that failed leave "
            f"anything from {100 * worst:.0f} to {100 * best:.0f} % possible."
        )
    winner = "tuned"
    if rate.value < 0.5:
        winner, rate = "base", _turned(rate)
        corrected = _turned(corrected) if corrected else None
    fair = f"; corrected for the judge's errors {corrected.short}" if corrected else ""
    return f"{winner} wins {rate.short} of {rate.n} prompts, {tests}{fair}."


def _turned(rate: Estimate) -> Estimate:
    """The same rate seen from the other model."""
    return Estimate(1 - rate.value, rate.se, 1 - rate.high, 1 - rate.low, rate.n)
