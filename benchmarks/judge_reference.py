"""Do the project's own functions give what others published? Checks against labelled data that
nobody here wrote. (A few seconds.)

Run: .venv/bin/python -m benchmarks.judge_reference [FOLDER] default: ../shared/reference The folder
is not part of the project (licences, size): `llmbar/` (princeton-nlp/LLMBar), `pandalm/`
(WeOpenML/PandaLM) and `mt_bench/` (files in the format of lm-sys/FastChat). Prints a table of
expected and measured values and ends with status 1 where they differ.

Outcomes, win rates, agreement, position bias and the parsers are the project's. Where a published
figure is wrong, the row says so: the right value is then worked out here a second time, from the
confusion matrix by scikit-learn, and the fault itself is reproduced.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import utils
from evaluation import outcomes, stats, verdicts
from utils import CourseError

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"


@dataclass(frozen=True)
class Row:
    """One figure: what it must be and what it is."""

    what: str
    expected: object
    measured: object

    @property
    def met(self) -> bool:
        return self.expected == self.measured


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    rows = check(parser.parse_args(arguments).folder)
    print("| figure | expected | measured | same |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.expected} | {row.measured} | {'yes' if row.met else 'NO'} |")
    missed = sum(not row.met for row in rows)
    print(f"\n{len(rows) - missed} of {len(rows)} figures are the same.")
    return 1 if missed else 0


def check(folder: Path) -> list[Row]:
    """All rows. Raises CourseError where the folder lacks one of the three sets."""
    for name in ("llmbar", "pandalm", "mt_bench"):
        if not (folder / name).is_dir():
            raise CourseError(
                f"{folder / name} does not exist: give the folder that holds llmbar/, pandalm/ "
                "and mt_bench/."
            )
    return [
        *llmbar(folder / "llmbar"),
        *pandalm(folder / "pandalm"),
        *fastchat(folder / "mt_bench"),
    ]


def _read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- LLMBar ---------------------------------------------------------------------------------------


def llmbar(folder: Path) -> list[Row]:
    """349 judge runs in both orders, each with its published accuracy and agreement.

    Their verdicts name the preferred output ("1", "2", or "N": none could be read), whatever its
    place. Their agreement calls two missing verdicts equal, which is reproduced because it is what
    was published; how many runs that touches is a row of its own.
    """
    same: Counter = Counter()
    total: Counter = Counter()
    faults: Counter = Counter()
    for name, runs in _read(folder / "evaluator_verdicts.json").items():
        labels_file = folder / f"{name.replace('LLMBar/', 'LLMBar_').replace('/', '_')}.json"
        labels = (
            [str(item["label"]) for item in _read(labels_file)] if labels_file.exists() else None
        )
        for stored in runs.values():
            first = list(stored["orig"])
            second = list(stored["swap"])
            published = stored["published"]
            between = stats.agreement(first, second)
            count(
                same,
                total,
                "agreement",
                round(between.accuracy.value * between.n),
                int(published["equal"].split()[0]),
            )
            faults["two missing verdicts called equal"] += any(
                pair == ("N", "N") for pair in zip(first, second, strict=True)
            )
            kappas(same, total, "orders", first, second, published["kappa_agreement"])
            if labels is None:
                continue
            records = [
                record(label, *pair) for label, *pair in zip(labels, first, second, strict=True)
            ]
            # an unreadable verdict is a wrong one here, so each order counts for itself: `value`
            # would be None
            shares = [side or 0.0 for item in records for side in item["sides"]]
            published_accuracy = float(published["correct_average"].rstrip("%"))
            count(
                same,
                total,
                "accuracy",
                round(100 * stats.win_rate(shares).value, 9),
                round(published_accuracy, 9),
            )
            kappas(same, total, "labels", first, labels, published["kappa_False"])
    return [
        Row(
            "LLMBar: judge runs whose accuracy is as published", total["accuracy"], same["accuracy"]
        ),
        Row(
            "LLMBar: judge runs whose agreement between orders is as published",
            total["agreement"],
            same["agreement"],
        ),
        Row(
            "LLMBar: runs where two missing verdicts were published as agreement",
            39,
            faults["two missing verdicts called equal"],
        ),
        Row(
            "LLMBar: kappa between orders equals scikit-learn's",
            total["right orders"],
            same["right orders"],
        ),
        Row(
            "LLMBar: kappa with the labels equals scikit-learn's",
            total["right labels"],
            same["right labels"],
        ),
        Row(
            "LLMBar: published kappas between orders that are wrong",
            85,
            total["orders"] - same["orders"],
        ),
        Row(
            "LLMBar: published kappas with the labels that are wrong",
            total["labels"],
            total["labels"] - same["labels"],
        ),
        Row(
            "LLMBar: wrong kappas reproduced with 2 and N mapped to 0",
            total["labels"] + total["orders"],
            same["fault labels"] + same["fault orders"],
        ),
    ]


def count(same: Counter, total: Counter, what: str, measured, expected) -> None:
    total[what] += 1
    same[what] += measured == expected


def record(label: str, first: str, second: str) -> dict:
    """A verdict record: the labelled output takes the place of the tuned model, first in one order
    and second in the other."""
    orders = []
    sides = []
    for tuned_is, other, said in (("A", "B", first), ("B", "A", second)):
        verdict = None
        if said != "N":
            verdict = tuned_is if said == label else other
        orders.append({"tuned_is": tuned_is, "verdict": verdict})
        sides.append(outcomes.side(verdict, tuned_is))
    return {"orders": orders, "sides": sides, "outcome": outcomes.outcome(*sides)}


def _kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """NaN where both raters gave one label only, as scikit-learn says it."""
    kappa = stats.agreement(a, b).kappa
    return math.nan if kappa is None else kappa.value


def kappas(
    same: Counter, total: Counter, what: str, a: list[str], b: list[str], published: float
) -> None:
    """Kappa as it should be, against scikit-learn and against the published one, and the published
    one with its fault.

    The fault: verdicts are mapped 1 -> 1, 2 -> 0, N -> 0. Between two orders that merges 2 with N;
    against labels, which stay 1 and 2, it makes every correct 2 a disagreement.
    """
    from sklearn.metrics import cohen_kappa_score

    ours = _kappa(a, b)
    count(same, total, f"right {what}", round(ours, 9), round(float(cohen_kappa_score(a, b)), 9))
    count(same, total, what, round(ours, 6), round(published, 6))
    mapped = ["1" if said == "1" else "0" for said in a]
    against = b if what == "labels" else ["1" if said == "1" else "0" for said in b]
    count(
        same,
        total,
        f"fault {what}",
        round(_kappa(mapped, against), 6),
        round(published, 6),
    )


# --- PandaLM --------------------------------------------------------------------------------------


def pandalm(folder: Path) -> list[Row]:
    """999 pairs, three annotators, and a judge with 25 unreadable verdicts: what they count as
    moves its accuracy by two points."""
    items = _read(folder / "testset-v1.json")
    judged = _read(folder / "gpt-3.5-turbo-testset-v1.json")
    votes = {}
    for number in (1, 2, 3):
        votes[number] = [str(item[f"annotator{number}"]) for item in items]
    rows = []
    for a, b, kappa in ((1, 2, "0.852"), (1, 3, "0.879"), (2, 3, "0.862")):
        name = f"PandaLM: kappa of annotators {a} and {b}"
        rows.append(Row(name, kappa, f"{_kappa(votes[a], votes[b]):.3f}"))
    cast = zip(*votes.values(), strict=True)
    majority = [Counter(said).most_common(1)[0][0] for said in cast]
    said = [{"1": "1", "2": "2", "Tie": "0"}.get(item["gpt_result"]) for item in judged]
    read = [
        (verdict, label)
        for verdict, label in zip(said, majority, strict=True)
        if verdict is not None
    ]
    ways = {
        "wrong": ([verdict or "none" for verdict in said], majority, "0.698"),
        "ties": ([verdict or "0" for verdict in said], majority, "0.711"),
        "dropped": (*map(list, zip(*read, strict=True)), "0.716"),
    }
    for way, (read_as, labels, accuracy) in ways.items():
        measured = stats.agreement(read_as, labels).accuracy.value
        rows.append(
            Row(
                f"PandaLM: accuracy of GPT-3.5, unreadable verdicts {way}",
                accuracy,
                f"{measured:.3f}",
            )
        )
    return [*rows, Row("PandaLM: unreadable verdicts", 25, said.count(None))]


# --- FastChat -------------------------------------------------------------------------------------


def fastchat(folder: Path) -> list[Row]:
    """A file of pairs judged in both orders, and single scores of which most failed."""
    pairs = utils.read_jsonl(
        folder / "pair_phi3_vs_phi3dpo.jsonl",
        ("g1_winner", "g2_winner", "g1_judgment", "g2_judgment"),
    )
    records = [pair_record(pair) for pair in pairs]
    counts = outcomes.count(records)
    ties = counts["tie"] + counts["inconsistent"]
    parsed = [
        verdicts.parse_verdict(pair[f"g{game}_judgment"])[0] for pair in pairs for game in (1, 2)
    ]
    stored = [order["verdict"] for item in records for order in item["orders"]]
    paper = stats.win_rate([1.0] * counts["win"] + [0.5] * ties + [0.0] * counts["loss"])
    rows = [
        Row(
            "FastChat pairs: phi-3 wins, ties (with inconsistent), loses, failed",
            (18, 35, 20, 2),
            (counts["win"], ties, counts["loss"], counts["failed"]),
        ),
        Row("FastChat pairs: adjusted win rate of phi-3", "0.4863", f"{paper.value:.4f}"),
        Row(
            "FastChat pairs: verdicts that our parser reads as stored",
            len(stored),
            sum(a == b for a, b in zip(parsed, stored, strict=True)),
        ),
    ]
    granite = _scores(folder / "single_granite_parse_failures.jsonl")
    phi = _scores(folder / "single_phi3dpo.jsonl")
    paired = stats.paired_difference(_readable(granite), _readable(phi))
    # "[[0, 0]]" in a piece of code was taken for a score
    return [
        *rows,
        Row(
            "FastChat singles, granite against phi-3-dpo: pairs, without a score",
            (40, 120),
            (paired.mean.n, paired.missing),
        ),
        Row(
            "FastChat singles, granite: bogus zeros stored as scores",
            2,
            sum(stored == 0 for stored, _ in granite),
        ),
        Row(
            "FastChat singles, granite: of these zeros, read by our parser",
            0,
            sum(stored == 0 and ours is not None for stored, ours in granite),
        ),
        Row(
            "FastChat singles, granite: read by our parser as another score",
            0,
            sum(ours is not None and ours != stored > 0 for stored, ours in granite),
        ),
        Row(
            "FastChat singles, phi-3-dpo: mean by our parser",
            "8.20",
            f"{sum(ours or 0 for _, ours in phi) / len(phi):.2f}",
        ),
        Row(
            "FastChat singles, phi-3-dpo: read as stored",
            160,
            sum(stored == ours for stored, ours in phi),
        ),
    ]


def _scores(path: Path) -> list[tuple[int, int | None]]:
    """The stored score of every reply (-1: FastChat read none) and ours, by question and turn."""
    items = sorted(
        utils.read_jsonl(path, ("judgment", "score")),
        key=lambda item: (item["question_id"], item["turn"]),
    )
    return [(item["score"], verdicts.parse_score(item["judgment"])[0]) for item in items]


def _readable(scores: list[tuple]) -> list[float | None]:
    """The stored scores; -1 stands for one that could not be read."""
    return [None if stored == -1 else stored for stored, _ in scores]


def pair_record(pair: dict) -> dict:
    """FastChat's two games as a verdict record with model_1 in the place of the tuned model;
    model_1 is A in the first game."""
    # "error" is no verdict
    one = {"model_1": "A", "model_2": "B", "tie": "tie"}.get(pair["g1_winner"])
    two = {"model_1": "B", "model_2": "A", "tie": "tie"}.get(pair["g2_winner"])
    orders = [{"tuned_is": "A", "verdict": one}, {"tuned_is": "B", "verdict": two}]
    first, second = outcomes.side(one, "A"), outcomes.side(two, "B")
    value = None if first is None or second is None else (first + second) / 2
    return {"orders": orders, "outcome": outcomes.outcome(first, second), "value": value}


if __name__ == "__main__":
    utils.run_command(main)
