"""May this judge be believed? Labelled pairs first, then attacks on it.

What it does: accuracy, kappa and position consistency on pairs whose better answer is known, the
gate that follows from them, and
probes of known biases. What it does not do: judge the models (judge.py) or mend a judge.

Sources: LLM-as-a-judge (arXiv 2306.05685) for position, verbosity and self-enhancement bias and the
repetitive list; null models (arXiv 2410.07137) for the constant reply. Consistency is not accuracy:
on LLMBar's adversarial pairs (princeton-nlp/LLMBar) ChatGPT is right in far less than half of those
that it judges consistently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import prompts
from evaluation import stats
from evaluation.judge import Judge
from evaluation.outcomes import Outcome, Positions, by_group, positions
from evaluation.stats import Agreement, Estimate

COIN = 0.5


@dataclass(frozen=True)
class Calibration:
    """A judge on labelled pairs, from `Judge.compare(pairs, good answers, bad answers)`."""

    judge: str
    # of its verdicts, a tie half right and a failed pair wrong, averaged over both orders; Wilson
    # over pairs
    accuracy: Estimate
    both_orders: Estimate  # share of pairs where it prefers the good answer both times
    kappa: (
        Agreement | None
    )  # of its verdicts with the labels, both orders of a pair drawn together; None if all failed
    positions: Positions
    by_kind: dict[str, Estimate]  # accuracy for each kind of fault
    failed: int  # pairs without two readable verdicts
    error: str | None  # the first reason for a failure
    values: list[float]  # of the answered pairs: what `stats.corrected` needs

    @property
    def usable(self) -> bool:
        """True if the whole interval of its accuracy is above 50 %, that is, if it is shown to be
        better than a coin."""
        return self.accuracy.low > COIN

    def __str__(self) -> str:
        kappa = (
            "no verdict"
            if self.kappa is None
            else "{:.2f} [{:.2f}, {:.2f}]".format(*self.kappa.kappa)
        )
        rows = {
            "judge": self.judge,
            "verdicts that are right": self.accuracy,
            "right in both orders": self.both_orders,
            "same verdict in both orders": self.positions.consistency or "no verdict",
            "kappa with the labels": kappa,
            "pairs without a verdict": f"{self.failed}"
            + (f" ({self.error})" if self.error else ""),
            "the gate is": "OPEN" if self.usable else f"CLOSED: {self.why_closed}",
        }
        return "\n".join(f"{name:<28} {value}" for name, value in rows.items())

    @property
    def why_closed(self) -> str | None:
        """One sentence for a judge that may not be used, None for one that may."""
        if self.usable:
            return None
        n = self.accuracy.n
        if 2 * self.failed > n:
            return (
                f"{self.judge} gave no readable verdict on {self.failed} of {n} labelled pairs "
                f"({self.error}); use another JUDGE."
            )
        side = "worse than" if self.accuracy.high < COIN else "not shown to be better than"
        return (
            f"{self.judge} is {side} a coin: its verdicts on {n} labelled pairs are right in "
            f"{self.accuracy.short}, so its win rate would "
            "mean nothing; use another JUDGE."
        )


def calibrate(records: Sequence[dict]) -> Calibration:
    """What the records of labelled pairs say about the judge: the good answer was given as the
    tuned one.

    Accuracy is on the scale of a win rate, because `stats.corrected` inverts it: a judge that
    always names the first answer is right in 50 % of its verdicts, and in both orders never.
    """
    answered = [record for record in records if record["value"] is not None]
    orders = [(record["id"], order) for record in answered for order in record["orders"]]
    errors = [order["error"] for record in records for order in record["orders"] if order["error"]]
    return Calibration(
        judge=records[0]["judge"],
        accuracy=stats.proportion([record["value"] or 0.0 for record in records]),
        both_orders=stats.proportion(
            [float(record["outcome"] == Outcome.WIN) for record in records]
        ),
        kappa=stats.agreement(
            [o["verdict"] for _, o in orders],
            [o["tuned_is"] for _, o in orders],
            [name for name, _ in orders],
        )
        if orders
        else None,
        positions=positions(records),
        by_kind=by_group(
            [record | {"value": record["value"] or 0.0} for record in records], "kind"
        ),
        failed=len(records) - len(answered),
        error=errors[0] if errors else None,
        values=[record["value"] for record in answered],
    )


# --- probes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """One attack: in how many pairs the judge fell for it, and how."""

    name: str
    fooled: Estimate
    means: str  # what counts as fooled


def probe_cost(judge: Judge, pairs: Sequence[dict]) -> float:
    """Dollars that `probe` costs at worst, beyond what the journal has."""
    return judge.estimate(*_asked(_attacks(judge, pairs), pairs))


async def probe(
    judge: Judge, pairs: Sequence[dict], calibration: Sequence[dict] = ()
) -> list[Probe]:
    """Attack the judge with answers that are not better and only look so.

    Args:
        pairs: labelled pairs (`answer_good`, `answer_bad`, `prompt`, `reference`, `language`); each
            probe asks about all of them, in both orders, so that 12 pairs cost 144 verdicts.
        calibration: the records of the calibration, for the swapped order; without them that row is
            left out.
    """
    attacks = _attacks(judge, pairs)
    records = await judge.compare(*_asked(attacks, pairs))
    found = [_swapped(calibration)] if calibration else []
    for number, (name, (_, _, fooled, means)) in enumerate(attacks.items()):
        mine = [
            record
            for record in records[number * len(pairs) :][: len(pairs)]
            if record["outcome"] != Outcome.FAILED
        ]
        if mine:
            found.append(
                Probe(
                    name,
                    stats.proportion([float(record["outcome"] in fooled) for record in mine]),
                    means,
                )
            )
    return found


def _attacks(judge: Judge, pairs: Sequence[dict]) -> dict[str, tuple]:
    """By name: the attacking answers, what they are up against, the outcomes that count as fooled,
    and those in words."""
    good = [pair["answer_good"] for pair in pairs]
    again, padded, constant, named, ordering = [], [], [], [], []
    for pair in pairs:
        text, answer = prompts.LANGUAGES[pair["language"]].probes, pair["answer_good"]
        again.append(answer + text["again"].format(answer=answer))
        padded.append(answer + text["padding"])
        constant.append(text["null"])
        named.append(text["name"].format(name=judge.client.model) + answer)
        ordering.append(pair["answer_bad"] + text["injection"])
    unequal = (Outcome.WIN, Outcome.LOSS, Outcome.INCONSISTENT)
    return {
        "identical answers": (good, good, unequal, "does not call two equal answers a tie"),
        "repetitive list": (
            again,
            good,
            (Outcome.WIN,),
            "prefers the answer that says everything three times",
        ),
        "longer is better": (
            padded,
            good,
            (Outcome.WIN,),
            "prefers the same answer with polite padding",
        ),
        "constant reply": (
            constant,
            good,
            (Outcome.WIN,),
            "prefers a reply that answers no question",
        ),
        "its own name": (
            named,
            good,
            (Outcome.WIN,),
            "prefers the same answer under the judge's name",
        ),
        "injected order": (
            ordering,
            good,
            (Outcome.WIN,),
            "prefers the worse answer, which tells it to",
        ),
    }


def _asked(
    attacks: dict[str, tuple], pairs: Sequence[dict]
) -> tuple[list[dict], list[str], list[str]]:
    """Items, attacking and honest answers of all attacks, one after the other."""
    items: list[dict] = []
    attacking: list[str] = []
    honest: list[str] = []
    for name, (bad, good, _, _) in attacks.items():
        items += [pair | {"id": f"{name}: {pair['id']}"} for pair in pairs]
        attacking += bad
        honest += good
    return items, attacking, honest


def _swapped(calibration: Sequence[dict]) -> Probe:
    told = [record for record in calibration if record["outcome"] != Outcome.FAILED]
    flips = [float(record["outcome"] == Outcome.INCONSISTENT) for record in told] or [1.0]
    return Probe(
        "swapped order", stats.proportion(flips), "changes its mind when the answers change places"
    )
