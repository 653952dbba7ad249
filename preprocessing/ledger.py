"""The ledger of a run: every raw row of the teacher, with its provenance and its fate.

What it does: book replies as rows, and note for each row which filter rejected it and why; nothing
is dropped without an entry. What it
does not do: decide a fate (`curation.py` and `similarity.py` do, in the order of the notebook).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import prompts
import utils
from llm.replies import Reply
from preprocessing import grounding
from preprocessing.curation import problem
from preprocessing.grounding import Passage


class Ledger:
    """Every raw row of a run and why it was kept or rejected; nothing is dropped without an entry.

    A reply that could not be read at all counts as one row, with filter "malformed reply".

    Args:
        categories: that a task may have besides the course's own: those of the user's seeds.
    """

    def __init__(self, categories: Sequence[str] = ()) -> None:
        self.categories = {*prompts.CATEGORIES, *categories}
        self.rows: list[dict] = []
        self.stages: list[str] = []

    def receive(
        self,
        reply: Reply,
        tasks: list[dict],
        language: str,
        demonstrations: list[dict],
        teacher: str,
        passages: Sequence[Passage] = (),
    ) -> list[dict]:
        """Book one reply: its tasks as candidates with their provenance, and as malformed what
        could not be read of it, or the reply itself. Returns the candidates."""
        self.open("malformed reply")
        malformed = reply.unread if tasks else 1
        provenance = {
            "source": "self-instruct",
            "teacher": teacher,
            "request": reply.key[:16],
            "demonstrations": [task["id"] for task in demonstrations],
            "cost_usd": reply.cost_usd / (len(tasks) + malformed),
        }
        if passages:
            provenance["urls"] = grounding.provenance(passages)
        candidates = [self.add(language, task, provenance) for task in tasks]
        empty = dict.fromkeys(("category", "instruction", "input", "output"), "")
        one = "one record is not whole" if tasks else "no tasks in it"
        for _ in range(malformed):
            row = self.add(language, empty, provenance)
            self.drop(row, "malformed reply", reply.error or one)
        return candidates

    def add(self, language: str, task: dict, provenance: dict) -> dict:
        number = sum(row["language"] == language for row in self.rows) + 1
        row = {
            "id": f"run-{language}-{number:04d}",
            "language": language,
            **task,
            **provenance,
            "fate": "kept",
        }
        self.rows.append(row)
        return row

    def complete(
        self,
        row: dict,
        category: str,
        instances: list[tuple[str, str]],
        reason: str | None,
        cost_usd: float,
    ) -> None:
        """Give an instruction its instances (Self-Instruct), the first in its own row and each
        further one in a row beside it.

        An instruction without a usable instance is dropped for `reason`, and so is each instance
        that a rule rejects.
        """
        del row["pending"]
        if reason:
            row["cost_usd"] += cost_usd
            return self.drop(row, "instances", reason)
        kept = {
            key: row[key]
            for key in ("source", "teacher", "request", "demonstrations", "urls", "similar")
            if key in row
        }
        share = cost_usd / len(instances)
        tasks = [
            {
                "category": category,
                "instruction": row["instruction"],
                "input": given,
                "output": answer,
            }
            for given, answer in instances
        ]
        judged = [(task, problem(row | task, self.categories)) for task in tasks]
        # A good one first: the others hang on its row
        judged.sort(key=lambda each: each[1] is not None)
        for task, why in judged:
            if row["output"]:
                provenance = kept | {"cost_usd": share, "sibling": row["id"]}
                one = self.add(row["language"], task, provenance)
            else:
                one = row
                row |= task | {"cost_usd": row["cost_usd"] + share}
            if why:
                self.drop(one, "instances", why)

    def criticise(self, row: dict, reply: Reply, least: int) -> None:
        """Book the teacher's critique of a row, and drop the row where it scores below `least` or
        where no score can be read."""
        row["cost_usd"] += reply.cost_usd
        if reply.parsed is None:
            return self.drop(row, "critique", f"no score: {reply.error}")
        row["critique"] = reply.parsed.model_dump()
        if reply.parsed.score < least:
            self.drop(row, "critique", reply.parsed.reason)
            row["score"] = reply.parsed.score

    def open(self, *stages: str) -> list[dict]:
        """Begin one filter or several that run together, or go on with them; return the rows that
        are to be judged."""
        self.stages += [stage for stage in stages if stage not in self.stages]
        return self.kept

    def drop(
        self,
        row: dict,
        stage: str,
        reason: str,
        neighbour: str | None = None,
        score: float | None = None,
    ) -> None:
        """Reject a row, with the filter, the reason and, for a duplicate, the kept neighbour and
        its score.

        A duplicate's instruction is one task too many, so the other instances of that instruction
        go with it.
        """
        fate: dict[str, str | float] = {"fate": stage, "reason": reason}
        if neighbour is None or score is None:
            row |= fate
            return
        fate |= {"neighbour": neighbour, "score": round(score, 4)}
        row |= fate
        for sibling in self.kept:
            if sibling.get("sibling") == row["id"]:
                sibling |= fate

    @property
    def kept(self) -> list[dict]:
        return [row for row in self.rows if row["fate"] == "kept"]

    def rejected(self, stage: str) -> list[dict]:
        return [row for row in self.rows if row["fate"] == stage]

    def funnel(self) -> list[tuple[str, int]]:
        """`[("received", n), (stage, rows left after it), ...]`."""
        left, steps = len(self.rows), [("received", len(self.rows))]
        for stage in self.stages:
            left -= len(self.rejected(stage))
            steps.append((stage, left))
        return steps

    def save(self, folder: Path, least: int) -> Path:
        """Write `ledger.jsonl` (every row) and `instruction.jsonl` (the kept ones, with
        provenance); return the latter's path.

        Raises:
            CourseError: fewer than `least` rows are left; the ledger is written all the same, the
                data set is not.
        """
        utils.write_jsonl(folder / "ledger.jsonl", self.rows)
        if len(self.kept) < least:
            worst = max(self.stages, key=lambda stage: len(self.rejected(stage)), default="nothing")
            advice = "raise REQUESTS"
            # More of them would be paid for nothing
            if worst == "malformed reply" and self.rejected(worst):
                advice = "set another REPLY_FORMAT or TEACHER"
            raise utils.CourseError(
                f"Only {len(self.kept)} of {len(self.rows)} rows are left and {least} are needed "
                f"(most were lost to '{worst}'): {advice} or look into ledger.jsonl."
            )
        kept = [row.copy() for row in self.kept]
        for row in kept:
            del row["fate"]
        return utils.write_jsonl(folder / "instruction.jsonl", kept)


def funnel_figure(ledger: Ledger, teacher: str):
    """How many rows each filter left, as bars with the loss written beside them."""
    import matplotlib.pyplot as plt

    steps = ledger.funnel()
    names, counts = zip(*steps, strict=True)
    figure, axes = plt.subplots(figsize=(7, 0.45 * len(steps) + 0.9))
    axes.barh(names, counts, color=["#9aa5b1"] + ["#3b7dd8"] * (len(steps) - 1))
    for i, count in enumerate(counts):
        lost = f"  {count}" + (f"  (-{counts[i - 1] - count})" if i else "")
        axes.text(count, i, lost, va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, max(counts) * 1.15),
        xlabel="rows",
        title=f"What each filter left; teacher: {teacher}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def yield_figure(yields: list[int], least: float, window: int, teacher: str):
    """New rows of each request in the order asked, their running mean, and the line below which
    asking stops."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 2.6))
    axes.bar(range(1, len(yields) + 1), yields, color="#9aa5b1", label="new rows of a request")
    running = [np.mean(yields[max(0, i - window) : i]) for i in range(1, len(yields) + 1)]
    axes.plot(
        range(1, len(yields) + 1), running, color="#3b7dd8", label=f"mean of the last {window}"
    )
    axes.axhline(least, color="#c0504d", linestyle="--", linewidth=1, label=f"stop below {least:g}")
    axes.set(
        xlabel="request", ylabel="rows", title=f"What another request brings; teacher: {teacher}"
    )
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    figure.tight_layout()
    return figure
