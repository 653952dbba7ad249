"""The near-duplicate filters and the gate, applied to the ledger of a run.

What it does: compare new rows with all that was accepted before them, and enter in the ledger which
row went, for which neighbour. What it does not do: compute a likeness (similarity.py), choose a
threshold (the notebook does, with the reader), or judge a row by itself (curation.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import prompts
import similarity
from preprocessing import contamination
from preprocessing.ledger import Ledger

SHOWN = 10  # of the most similar earlier tasks, noted in every row as in Self-Instruct


@dataclass(frozen=True)
class Near:
    """An earlier task that a new one resembles too closely."""

    id: str
    score: float


class Accepted:
    """All tasks accepted so far, in the order in which they came: seeds first, then rows."""

    def __init__(self, tasks: list[dict], threshold: float) -> None:
        self.tasks = list(tasks)
        self.index = similarity.RougeLIndex(threshold)
        self.index.add([task["instruction"] for task in tasks])

    def too_near(self, row: dict) -> Near | None:
        """The earlier task whose instruction is too like the row's, by ROUGE-L; None if the row is
        accepted. Notes the most similar ones in `row["similar"]`."""
        (nearest,) = self.index.most_similar([row["instruction"]], SHOWN)
        row["similar"] = {self.tasks[match.index]["id"]: round(match.score, 3) for match in nearest}
        (match,) = self.index.add([row["instruction"]])
        self.tasks.append(row)
        return Near(self.tasks[match.index]["id"], match.score) if match else None


@dataclass(frozen=True)
class Alike:
    """A row, the earlier row or seed that asks for much the same, and the cosine of the two."""

    row: dict
    other: dict
    score: float


def alike(ledger: Ledger, seeds: list[dict], threshold: float) -> list[Alike]:
    """The rows that are close in meaning to an earlier row or a seed of their language, the most
    alike first. Instruction and input are compared; a translation is not a repetition, and further
    instances of one instruction go or stay with it."""
    rows, found = ledger.open("embedding"), []
    for language in sorted({row["language"] for row in rows}):
        pool = [task for task in seeds + rows if task["language"] == language]
        pool = [task for task in pool if "sibling" not in task]
        vectors = similarity.embed([prompts.user_message(task) for task in pool])
        for i, match in similarity.embedding_duplicates(vectors, threshold).removed.items():
            if "fate" in pool[i]:  # seeds stay
                found.append(Alike(pool[i], pool[match.index], match.score))
    return sorted(found, key=lambda pair: -pair.score)


def remove_or_mark(ledger: Ledger, found: list[Alike], remove: bool) -> None:
    """Drop what was found, or only note in each row what it resembles, for a person to read."""
    for pair in found:
        if remove:
            ledger.drop(pair.row, "embedding", "near-duplicate", pair.other["id"], pair.score)
        else:
            pair.row["resembles"] = pair.other["id"]


def drop_contaminated(ledger: Ledger, lexical: float, semantic: float) -> list[dict]:
    """Drop the rows that are too close to what the models will be examined with; return them."""
    found = contamination.contaminated(ledger.open("contamination"), lexical, semantic)
    for row, neighbour, match, how in found:
        ledger.drop(row, "contamination", how, neighbour, match.score)
    return [row for row, *_ in found]
