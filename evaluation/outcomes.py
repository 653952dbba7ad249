"""What the verdicts add up to: five outcomes, position bias, groups, contradictions, length, and an
honest headline.

What it does: read verdict records (see `judge.compare` for their form). What it does not do: ask a
judge (judge.py) or decide whether it may be believed (calibration.py).

Source: LLM-as-a-judge (arXiv 2306.05685) and its code (lm-sys/FastChat), whose faults are not
copied: a failed or inconsistent verdict is an outcome of its own here, never dropped and never
hidden among the ties.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import settings
import utils
from evaluation import stats
from evaluation.stats import Estimate

FEWEST = 10  # prompts; below that no sign test can reach p = .05 unless nearly all agree
SIMILAR = 0.2  # two lengths are similar if they differ by at most this share of the longer one
MUCH_CUT = 0.2  # above this share of answers cut at the limit, the limit decides


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
        return stats.rate([1.0] * self.alike + [0.0] * (self.n - self.alike))


def positions(records: Sequence[dict]) -> Positions:
    """Position bias, every turn of a prompt a comparison of its own; comparisons with a failed
    verdict are left out."""
    kinds: Counter[str] = Counter()
    for record in records:
        for turn in {order.get("turn", 1) for order in record["orders"]}:
            one, two = (
                order["verdict"] for order in record["orders"] if order.get("turn", 1) == turn
            )
            if None not in (one, two):
                kinds[_position(one, two)] += 1
    return Positions(
        kinds["alike"],
        kinds["A"],
        kinds["B"],
        kinds["leaning"],
        stats.binomial_test(kinds["A"], kinds["B"]),
    )


def _position(one: str, two: str) -> str:
    """What two verdicts have in common; the answers changed places between them."""
    if "tie" in (one, two):
        return "alike" if one == two else "leaning"
    return one if one == two else "alike"


# --- the result -----------------------------------------------------------------------------------


def values(records: Sequence[dict]) -> list[float]:
    """One score a prompt, those with a failed verdict left out (`stats.bounds` says what that could
    hide)."""
    return [record["value"] for record in records if record["value"] is not None]


def by_group(records: Sequence[dict], key: str) -> dict[str, Estimate]:
    """Win rate of every language, category, kind or difficulty; records without a readable verdict
    or without the key are left out."""
    groups: dict[str, list[float]] = {}
    for record in records:
        if record["value"] is not None and key in record:
            groups.setdefault(record[key], []).append(record["value"])
    return {name: stats.win_rate(groups[name]) for name in sorted(groups)}


def contradictions(records: Sequence[dict]) -> list[dict]:
    """Prompts where pairwise and single verdicts contradict each other: the winner of the pair has
    the lower single score."""
    found = []
    for record in records:
        base, tuned = (record.get("scores", {}).get(name) for name in ("base", "tuned"))
        if None not in (base, tuned) and (
            (record["outcome"] == Outcome.WIN and tuned < base)
            or (record["outcome"] == Outcome.LOSS and tuned > base)
        ):
            found.append(record)
    return found


class Gate(Protocol):
    """What the headline asks of a judge's calibration (`calibration.Calibration`)."""

    @property
    def accuracy(self) -> Estimate: ...

    @property
    def values(self) -> list[float]: ...

    @property
    def unseen(self) -> list[str]: ...

    @property
    def closed(self) -> dict[str, str]: ...

    def believed(self, records: Sequence[dict]) -> list[dict]: ...


def similar_length(
    records: Sequence[dict],
    base: Sequence[int],
    tuned: Sequence[int],
    gate: Gate | None = None,
) -> Estimate | None:
    """The win rate among pairs of similar length; None where no such pair has a verdict.

    What is left of a win where length cannot decide. It is *not* the rate that longer or shorter
    answers would have had: two models do not tell that (see `calibration.probe` for a direct test).

    Args:
        base, tuned: tokens of the answers, one a prompt.
        gate: the judge's calibration. Only prompts in a language in which it may be believed count.
    """
    believed = {record["id"] for record in (gate.believed(records) if gate else records)}
    scores = []
    for record, *sizes in zip(records, base, tuned, strict=True):
        if record["id"] not in believed:
            continue
        close = max(sizes) - min(sizes) <= SIMILAR * max(sizes)
        if close and record["value"] is not None:
            scores.append(record["value"])
    return stats.win_rate(scores) if scores else None


def distinguishable(rate: Estimate, p: float) -> bool:
    """The rule of the headline: the interval leaves out 50 %, and the sign test agrees."""
    return (rate.low > 0.5 or rate.high < 0.5) and p < 0.05


def headline(
    records: Sequence[dict],
    gate: Gate | None = None,
    names: tuple[str, str] = ("base", "tuned"),
    cut: float = 0.0,
    limit: int | None = None,
) -> str:
    """The whole result in a few sentences that claim nothing the data do not show.

    Args:
        gate: the judge's calibration. Prompts in a language for which it is closed have no part in
            the win rate; without it nothing is corrected, and the headline says that nothing shows
            whether the judge may be believed.
        names: of the two models, in the order of the verdict: 0 for the first, 1 for the second.
        cut: share of the answers that ran into the limit, the larger of the two models'.
        limit: that limit, in tokens.
    """
    open_records, closed = list(records), []
    if gate is not None:
        open_records = gate.believed(records)
        spoken = {record["language"] for record in records}
        closed = [f"No win rate in {why}" for why in closed_languages(gate, spoken)]
    if closed and not open_records:
        return " ".join(map(utils.translated, closed))
    parts = [_result(open_records, gate, names), *closed]
    if gate is None:
        parts.append("The judge was not calibrated: nothing shows that it may be believed.")
    elif gate.unseen:
        parts.append(f"This judge is not shown to see: {', '.join(gate.unseen)}.")
    if cut > MUCH_CUT:
        parts.append(
            f"{cut:.0%} of the answers of one model were cut off at the limit of {limit} tokens, "
            "which a judge counts against them: the limit decided too (ANSWER_TOKENS)."
        )
    return " ".join(map(utils.translated, parts))


def closed_languages(gate: Gate, spoken: Container[str] | None = None) -> list[str]:
    """A sentence for each reason why the judge may not be believed: "English and Korean: ...".

    Args:
        spoken: codes of the languages that count; all that were calibrated without it.
    """
    languages: dict[str, list[str]] = {}
    for code, why in gate.closed.items():
        if spoken is None or code in spoken:
            languages.setdefault(why, []).append(settings.LANGUAGES.get(code, code))
    return [f"{' and '.join(names)}: {why}" for why, names in languages.items()]


def _result(records: Sequence[dict], gate: Gate | None, names: tuple[str, str]) -> str:
    """Who is ahead, by what, and whether that is more than chance."""
    known = values(records)
    if min(len(records), len(known)) < FEWEST:
        return (
            f"No win rate: {len(known)} of {len(records)} prompts have a readable verdict, too few "
            f"to compare two models; {FEWEST} or more are needed."
        )
    other, model = names
    counts = count(records)
    rate, p = stats.win_rate(known), sign_test([record["outcome"] for record in records])
    told = (
        f"{model} wins {counts['win']} and loses {counts['loss']} of {len(records)} prompts, "
        f"{counts['tie']} ties, {counts['inconsistent']} inconsistent, {counts['failed']} failed"
    )
    said = (
        f"win rate {rate.short} with a tie or an inconsistent verdict as half a win, "
        f"sign test {stats.p_value(p)}"
    )
    judge = records[0]["judge"]
    if not distinguishable(rate, p):
        needed = stats.prompts_needed(counts["win"], counts["loss"], len(known))
        if needed is None:
            more = "there is no difference to find"
        else:
            more = (
                f"an effect of this size takes about {needed:,} new prompts, a number to be fixed "
                "before looking"
            )
        return (
            f"{model} and {other} are not distinguishable (judge: {judge}): {told}; {said}; {more}."
        )
    worst, best = stats.bounds([record["value"] for record in records])
    if worst <= 0.5 <= best:
        return (
            f"Not settled (judge: {judge}): {told}; {said}, and those that failed leave anything "
            f"from {100 * worst:.0f} to {100 * best:.0f} % possible."
        )
    winner = model if rate.value > 0.5 else other
    result = f"{winner} is better (judge: {judge}): {told}; {said}"
    return f"{result}; {_corrected(known, gate)}." if gate else f"{result}."


def _corrected(known: Sequence[float], gate: Gate) -> str:
    """The win rate without the judge's errors, or why there is none."""
    fair = stats.corrected(known, gate.values)
    if fair is None:
        return (
            "not corrected for the judge's errors, for they are refuted to be as frequent here as "
            f"on the labelled pairs ({gate.accuracy.value:.0%} right could not give such a rate)"
        )
    return f"corrected for the judge's errors {fair.short}"
