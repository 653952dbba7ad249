"""What becomes of the tasks that a teacher wrote: what `preprocess.ipynb` calls after asking.

In here: the rules that reject a task, the threshold of the embedding filter and the critique. Not
in here: the near-duplicate filters (`similarity.py`), the contamination gate (`contamination.py`),
the ledger that remembers every fate (`ledger.py`), and the order of the steps, which is the
notebook's story.

Sources: Self-Instruct (arXiv 2212.10560), AlpaGasus (arXiv 2307.08701) for the critique.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

import prompts
import similarity
import utils

PRECISION = 0.85  # of the embedding filter: of seven rows that it removes, six are duplicates

# --- rules ----------------------------------------------------------------------------------------

FINISHED = re.compile(r"[.!?…:;)\]}\"'”’`。]$")


def problem(task: dict) -> str | None:  # noqa: C901, PLR0912 (to become a table of rules)
    """Why a task is unusable by itself, or None. The rules of Self-Instruct's appendix, made fit
    for Hangul.

    A task that is still an instruction only (`pending`) is judged by that.
    """
    known = prompts.LANGUAGES[task["language"]]
    instruction, output = task["instruction"].strip(), task["output"].strip()
    words = instruction.split()
    if task["category"] not in prompts.CATEGORIES and not task.get("pending"):
        return f"unknown category {task['category']!r}"
    if len(words) < known.shortest:
        return "instruction too short"
    if len(words) > 150:
        return "instruction too long"
    if not instruction[:1].isalnum():
        return "instruction starts with punctuation"
    if instruction.lower().startswith("write a program"):
        return "starts with 'Write a program'"
    if known.share(instruction) < 0.3:
        return "instruction in the wrong language"
    for pattern in known.unsuitable:
        if unsuitable := re.search(pattern, instruction, re.I):
            return f"a text model cannot do it ({unsuitable.group()})"
    if task.get("pending"):
        return None
    if not output:
        return "empty output"
    if output == task["input"].strip():
        return "output repeats the input"
    if output.endswith(":"):
        return "output ends in a colon"
    # Lists, code and translations may end without a mark; several sentences on one line may not
    if (
        "\n" not in output
        and len(output.split()) > 8
        and re.search(r"[.!?다요] ", output)
        and not FINISHED.search(output)
    ):
        return "output breaks off"
    return None


# --- the threshold of the embedding filter --------------------------------------------------------


def labelled_pairs(lexical: float) -> tuple[list[dict], np.ndarray, dict[str, np.ndarray]]:
    """The labelled pairs of instructions that ROUGE-L lets through, for the filter that comes after
    it.

    Returns:
        `(pairs, duplicate, scores)`: n pairs with `a`, `b` and `kind`, their labels (n,) bool, and
        `{"E5": (n,), "ROUGE-L": (n,)}`.
    """
    pairs = utils.read_jsonl(utils.DATA / "duplicate_pairs.jsonl", ("a", "b", "duplicate", "kind"))
    pairs = [pair for pair in pairs if similarity.rouge_l(pair["a"], pair["b"]) <= lexical]
    first, second = (similarity.embed([pair[side] for pair in pairs]) for side in "ab")
    words = np.array([similarity.rouge_l(pair["a"], pair["b"]) for pair in pairs])
    return (
        pairs,
        np.array([pair["duplicate"] for pair in pairs]),
        {"E5": (first * second).sum(axis=1), "ROUGE-L": words},
    )


def calibrate(scores: np.ndarray, duplicate: np.ndarray, precision: float) -> float:
    """The lowest threshold at which at least `precision` of the labelled pairs scoring above it are
    duplicates.

    A false alarm costs a good row, a miss only some repetition: so precision first, then as much
    recall as it leaves.

    Args:
        scores: (n,) similarity of each labelled pair.
        duplicate: (n,) its label.
    """
    for threshold in np.unique(scores):
        above = scores > threshold
        if above.any() and duplicate[above].mean() >= precision:
            return float(threshold)
    raise utils.CourseError(
        f"No threshold separates the labelled pairs with a precision of {precision}: use another "
        "similarity."
    )


def precision_recall_figure(scores: dict[str, np.ndarray], duplicate: np.ndarray, threshold: float):
    """Precision over recall for each similarity in `scores`, with the threshold chosen for the
    first of them marked."""
    import matplotlib.pyplot as plt
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for name, values in scores.items():
        precision, recall, _ = precision_recall_curve(duplicate, values)
        axes.step(
            recall,
            precision,
            where="post",
            label=f"{name} (average {average_precision_score(duplicate, values):.2f})",
        )
    name = next(iter(scores))
    above = scores[name] > threshold
    found, right = duplicate[above].sum() / duplicate.sum(), duplicate[above].mean()
    axes.plot(found, right, "o", color="black", label=f"{name} > {threshold:.3f}")
    axes.set(
        xlabel="recall",
        ylabel="precision",
        ylim=(0.3, 1.03),
        title=f"Finding the duplicates among {len(duplicate)} labelled pairs",
    )
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


# --- critique -------------------------------------------------------------------------------------


class Critique(BaseModel):
    """Reason before score, so that the score can follow from it."""

    model_config = ConfigDict(extra="forbid")
    reason: str
    score: Literal[1, 2, 3, 4, 5]


def critique_request(row: dict, text: bool = False) -> dict:
    """Ask the teacher how good a row is, from 1 to 5 (AlpaGasus kept the rows above 4.5 of 5); with
    `text` for a reply in plain text."""
    content = prompts.LANGUAGES[row["language"]].critique.format(
        **{key: row[key] for key in ("instruction", "input", "output")}
    )
    if text:
        content += "\n\n" + prompts.LANGUAGES[row["language"]].text_format["Critique"]
    system = prompts.LANGUAGES[row["language"]].critic_system
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
        "temperature": 0.0,
        "max_completion_tokens": 200,
    }
