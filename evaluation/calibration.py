"""May this judge be believed? Labelled pairs first, then attacks on it.

What it does: accuracy, kappa and position consistency on pairs whose better answer is known, the
gate that follows from them for each language, a baseline that reads nothing, and probes of known
biases. What it does not do: judge the models (judge.py) or mend a judge.

Sources: LLM-as-a-judge (arXiv 2306.05685) for position, verbosity and self-enhancement bias and the
repetitive list; null models (arXiv 2410.07137) for the constant reply. Consistency is not accuracy:
on LLMBar's adversarial pairs (princeton-nlp/LLMBar) ChatGPT is right in far less than half of those
that it judges consistently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import prompts
import settings
import similarity
from evaluation import stats
from evaluation.judge import CUT, Judge
from evaluation.outcomes import Outcome, Positions, by_group, positions
from evaluation.stats import Agreement, Estimate

COIN = 0.5
# Faults that a rule finds which reads nothing: repeated words, a missing final mark, the script.
# The gate asks about all other kinds.
FORM = ("loop", "cut_off", "wrong_language")


@dataclass(frozen=True)
class Calibration:
    """A judge on labelled pairs, from `Judge.compare(pairs, good answers, bad answers)`.

    `accuracy` is on the scale of a win rate, because `stats.corrected` inverts it: a tie is half
    right, a failed pair wrong, and a judge that always names the first answer is right in 50 % of
    its verdicts and in both orders never.
    """

    judge: str
    accuracy: Estimate  # on all pairs
    content: dict[str, Estimate | None]  # by language, on the kinds that need reading: the gate
    both_orders: Estimate  # share of pairs where it prefers the good answer both times
    kappa: Agreement | None  # of its verdicts with the labels, over pairs; None if all failed
    positions: Positions
    by_kind: dict[str, Estimate]  # accuracy for each kind of fault
    failed: dict[str, int]  # pairs without two readable verdicts, by language
    cut: int  # of these, the pairs on which it was still writing at its limit
    error: str | None  # the first reason for a failure
    values: list[float]  # of the answered pairs in open languages: for `stats.corrected`

    @property
    def languages(self) -> list[str]:
        """The languages in which it may be believed."""
        return [code for code, share in self.content.items() if share and share.low > COIN]

    @property
    def usable(self) -> bool:
        """May it be believed in any language?"""
        return bool(self.languages)

    @property
    def unseen(self) -> list[str]:
        """The kinds of fault in which it is not shown to be better than a coin."""
        return [name.replace("_", " ") for name, share in self.by_kind.items() if share.low <= COIN]

    @property
    def closed(self) -> dict[str, str]:
        """For each language in which it may not be believed, the reason: a sentence for people, the
        same one where two languages share it."""
        reasons = {}
        for code, share in self.content.items():
            if code not in self.languages:
                reasons[code] = self._why(share, self.failed[code])
        return reasons

    def believed(self, records: Sequence[dict]) -> list[dict]:
        """The records in the languages in which it may be believed."""
        return [record for record in records if record["language"] in self.languages]

    def _why(self, share: Estimate | None, failed: int) -> str:
        if share is None:
            return f"no labelled pair asks {self.judge} to read; calibrate it on more pairs."
        n = share.n
        if 2 * failed > n:
            if 2 * self.cut > sum(self.failed.values()):
                return f"{self.judge} was mostly still writing at its limit; raise JUDGE_TOKENS."
            return (
                f"{self.judge} gave no readable verdict on {failed} labelled pairs "
                f"({self.error}); use another JUDGE."
            )
        side = "worse than" if share.high < COIN else "not shown to be better than"
        return (
            f"{self.judge} is {side} a coin: its verdicts on {n} labelled pairs that need reading "
            f"are right in {share.short}, so its win rate would mean nothing; use another JUDGE."
        )

    def __str__(self) -> str:
        failed = sum(self.failed.values())
        error = f" ({self.error})" if self.error else ""
        rows = {
            "judge": self.judge,
            "verdicts that are right": self.accuracy,
            "right in both orders": self.both_orders,
            "same verdict in both orders": self.positions.consistency or "no verdict",
            "kappa with the labels": self.kappa.kappa_text if self.kappa else "no verdict",
            "pairs without a verdict": f"{failed}{error}",
            "not better than a coin on": ", ".join(self.unseen) or "nothing",
        }
        for code, share in self.content.items():
            state = "OPEN" if code in self.languages else "CLOSED"
            name = f"gate, {settings.LANGUAGES.get(code, code)}"
            rows[name] = f"{state}: right in {share} of the kinds that need reading"
        return "\n".join(f"{name:<28} {value}" for name, value in rows.items())


def calibrate(records: Sequence[dict]) -> Calibration:
    """What the records of labelled pairs say about the judge: the good answer was given as the
    tuned one."""
    counted = [record | {"value": record["value"] or 0.0} for record in records]  # failed: wrong
    answered = [record for record in records if record["value"] is not None]
    orders = [(record["id"], order) for record in answered for order in record["orders"]]
    errors = []
    for record in records:
        errors += [(record["id"], order["error"]) for order in record["orders"] if order["error"]]
    content, failed = {}, {}
    for code in sorted({record["language"] for record in records}):
        reading = [r for r in counted if r["language"] == code and r["kind"] not in FORM]
        content[code] = stats.rate([r["value"] for r in reading]) if reading else None
        failed[code] = sum(r["value"] is None for r in records if r["language"] == code)
    kappa = None
    if orders:
        kappa = stats.agreement(
            [order["verdict"] for _, order in orders],
            [order["tuned_is"] for _, order in orders],
            [name for name, _ in orders],
        )
    found = Calibration(
        judge=records[0]["judge"],
        accuracy=stats.rate([record["value"] for record in counted]),
        content=content,
        both_orders=stats.rate([float(record["outcome"] == Outcome.WIN) for record in records]),
        kappa=kappa,
        positions=positions(records),
        by_kind=by_group(counted, "kind"),
        failed=failed,
        cut=len({id for id, error in errors if error == CUT}),
        error=errors[0][1] if errors else None,
        values=[],
    )
    found.values.extend(record["value"] for record in found.believed(answered))
    return found


def overlap(pairs: Sequence[dict]) -> Estimate:
    """How often the answer that shares more words with the reference (ROUGE-L) is the better one: a
    judge that is no better than this counts words."""
    scores = []
    for pair in pairs:
        good, bad = (
            similarity.rouge_l(pair[side], pair["reference"])
            for side in ("answer_good", "answer_bad")
        )
        scores.append(0.5 if good == bad else float(good > bad))
    return stats.rate(scores)


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
    for number, (name, (_, fooled, means)) in enumerate(attacks.items()):
        mine = records[number * len(pairs) :][: len(pairs)]
        told = [record["outcome"] for record in mine if record["outcome"] != Outcome.FAILED]
        if told:
            share = stats.rate([float(outcome in fooled) for outcome in told])
            found.append(Probe(name, share, means))
    return found


def _attacks(judge: Judge, pairs: Sequence[dict]) -> dict[str, tuple]:
    """By name: the answers that are up against the good ones, the outcomes that count as fooled,
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
    win = (Outcome.WIN,)
    return {
        "identical answers": (good, unequal, "does not call two equal answers a tie"),
        "repetitive list": (again, win, "prefers the answer that says everything three times"),
        "longer is better": (padded, win, "prefers the same answer with polite padding"),
        "constant reply": (constant, win, "prefers a reply that answers no question"),
        "its own name": (named, win, "prefers the same answer under the judge's name"),
        "injected order": (ordering, win, "prefers the worse answer, which tells it to"),
    }


def _asked(
    attacks: dict[str, tuple], pairs: Sequence[dict]
) -> tuple[list[dict], list[str], list[str]]:
    """Items, attacking and honest answers of all attacks, one after the other."""
    items: list[dict] = []
    attacking: list[str] = []
    for name, (answers, _, _) in attacks.items():
        items += [pair | {"id": f"{name}: {pair['id']}"} for pair in pairs]
        attacking += answers
    return items, attacking, [pair["answer_good"] for pair in pairs] * len(attacks)


def _swapped(calibration: Sequence[dict]) -> Probe:
    told = [record for record in calibration if record["outcome"] != Outcome.FAILED]
    flips = [float(record["outcome"] == Outcome.INCONSISTENT) for record in told] or [1.0]
    return Probe(
        "swapped order", stats.rate(flips), "changes its mind when the answers change places"
    )
