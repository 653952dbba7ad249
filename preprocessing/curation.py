"""What becomes of the tasks that a teacher wrote: what `preprocess.ipynb` calls after asking.

In here: the rules that reject a task, the threshold of the embedding filter and the critique. Not
in here: the near-duplicate filters (`similarity.py`), the contamination gate (`contamination.py`),
the ledger that remembers every fate (`ledger.py`), and the order of the steps, which is the
notebook's story.

Sources: Self-Instruct (arXiv 2212.10560), AlpaGasus (arXiv 2307.08701) for the critique.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

import prompts
import similarity
import utils
from preprocessing import rows as reader

PRECISION = 0.85  # of the embedding filter: of seven rows that it removes, six are duplicates

# --- rules ----------------------------------------------------------------------------------------

LONGEST = 150  # words of an instruction
# A mark of a list or of a sentence; a quotation, a bracket, "-5", ".NET" or an emoji may begin one
BROKEN_START = re.compile(r"[-*•#>]\s|[)\]}.,;:!?…](?!\w)")
SENTENCE = re.compile(r"(?<=[.!?:。？！])\s+|\n+")


def problem(task: dict, categories: Collection[str] = prompts.CATEGORIES) -> str | None:
    """Why a task is unusable by itself, or None. The rules of Self-Instruct's appendix, made to ask
    for the request and not for the word (see `unsuitable` in data/languages/), and fit for Hangul.

    A task that is still an instruction only (`pending`) is judged by that.
    """
    if task.get("pending"):
        return instruction_problem(task)
    if task["category"] not in categories:
        return f"unknown category {task['category']!r}"
    return instruction_problem(task) or answer_problem(task)


def instruction_problem(task: dict) -> str | None:
    """What is wrong with an `instruction` in its `language`, or None."""
    language, instruction = prompts.LANGUAGES[task["language"]], task["instruction"].strip()
    words = len(similarity.tokenize(instruction))
    if words < language.rules["shortest"]:
        return "instruction too short"
    if words > LONGEST:
        return "instruction too long"
    if BROKEN_START.match(instruction):
        return "instruction starts with punctuation"
    if language.share_of_words(instruction) < 0.3:
        return "instruction in the wrong language"
    if asked := unsuitable(instruction, language):
        return f"a text model cannot do it ({asked})"
    return None


def unsuitable(instruction: str, language: prompts.Language) -> str | None:
    """The request in an instruction that a text-only model cannot fulfil, or None."""
    text = unicodedata.normalize("NFC", instruction)
    if re.search(language.rules["unless"], text, re.I):
        return None
    for sentence in SENTENCE.split(text):
        for pattern in language.rules["unsuitable"]:
            if found := re.search(pattern, sentence, re.I):
                return found.group().strip(" ,;:")
    return None


def answer_problem(task: dict) -> str | None:
    """What is wrong with the `output` of a task, or None."""
    output = task["output"].strip()
    if not output:
        return "empty output"
    if output == task["input"].strip():
        return "output repeats the input"
    if output.endswith(":"):
        return "output ends in a colon"
    # A single word may be the answer, and code ends as it likes
    prose = task["category"] != "code" and len(output.split()) > 8
    if prose and _breaks_off(output, prompts.LANGUAGES[task["language"]]):
        return "output breaks off"
    return None


def _breaks_off(text: str, language: prompts.Language) -> bool:
    """True where a text ends in the middle of a sentence.

    Either its last word is one after which a sentence goes on, or its last paragraph is one of
    sentences of which the last has four words or more and no mark. An emoji, a number or an address
    may stand at the end; a signature is shorter; lists and verses have several lines.
    """
    last = unicodedata.normalize("NFC", text).split("\n\n")[-1]  # the last paragraph
    lines = last.splitlines()
    if re.search(language.rules["unfinished"], lines[-1], re.I):
        return True
    *sentences, rest = SENTENCE.split(last)
    sentences = [sentence for sentence in sentences if not sentence.endswith(":")]  # "Order: a, b"
    words = rest.split()
    if len(lines) > 1 or not sentences or len(words) < 4 or not words[-1].isalpha():
        return False
    return not re.search(language.rules["finished"], rest, re.I)


# --- the threshold of the embedding filter --------------------------------------------------------


TURNED = ("opposite", "swapped")  # "pros" and "cons", "from C to F" and back


def labelled_pairs(
    lexical: float, turned: bool = True
) -> tuple[list[dict], np.ndarray, dict[str, np.ndarray]]:
    """The labelled pairs of instructions that ROUGE-L lets through, for the filter that comes after
    it.

    Args:
        lexical: the threshold of ROUGE-L.
        turned: with the pairs that ask for opposites or swap two things, which embeddings hardly
            tell apart. The gate does without: what turns an evaluation prompt round is too close.

    Returns:
        `(pairs, duplicate, scores)`: n pairs with `a`, `b` and `kind`, their labels (n,) bool, and
        `{"E5": (n,), "ROUGE-L": (n,)}`.
    """
    pairs = utils.read_jsonl(utils.DATA / "duplicate_pairs.jsonl", ("a", "b", "duplicate", "kind"))
    pairs = [pair for pair in pairs if turned or pair["kind"] not in TURNED]
    pairs = [pair for pair in pairs if similarity.rouge_l(pair["a"], pair["b"]) <= lexical]
    first = similarity.embed([pair["a"] for pair in pairs])
    second = similarity.embed([pair["b"] for pair in pairs])
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


def gate_threshold(lexical: float) -> float:
    """The cosine above which a row counts as a paraphrase of a held-out text: `PRECISION` of the
    labelled pairs above it ask for the same, those left out that turn a request round."""
    _, duplicate, scores = labelled_pairs(lexical, turned=False)
    return calibrate(scores["E5"], duplicate, PRECISION)


@dataclass(frozen=True)
class Promise:
    """How many of what the embedding filter finds are duplicates, and whether it may remove."""

    precision: float
    low: float  # a 95 % interval (Wilson's)
    high: float
    pairs: int  # labelled pairs that the estimate rests on

    @property
    def kept(self) -> bool:
        """Is the whole interval above `PRECISION`? Else rows are marked, for a person to read."""
        return self.low >= PRECISION

    def __str__(self) -> str:
        does = "removed" if self.kept else "marked to be read, and stay"
        return (
            f"{self.precision:.0%} [{100 * self.low:.0f}, {100 * self.high:.0f}] of what is found "
            f"are duplicates, by {self.pairs} labelled pairs that score as high: rows are {does}."
        )


def promise(found: np.ndarray, scores: np.ndarray, duplicate: np.ndarray) -> Promise:
    """The precision on the very rows that were found: the labelled pairs in the range of their
    scores are counted, weighted as these scores are spread.

    Args:
        found: (k,) cosines of the rows found with their neighbours; may be empty.
        scores: (n,) cosines of the labelled pairs.
        duplicate: (n,) their labels.
    """
    from scipy.stats import binomtest

    lowest = found.min(initial=1.0)
    near = scores >= lowest if (scores >= lowest).any() else scores >= np.sort(scores)[-10]
    # Kernel weights: a labelled pair counts as often as rows were found at about its cosine
    centre = found if len(found) else scores[near]
    weights = np.exp(-(((scores[near][:, None] - centre[None, :]) / 0.01) ** 2)).sum(axis=1)
    share = float((weights * duplicate[near]).sum() / max(weights.sum(), 1e-12))
    effective = max(1, round(weights.sum() ** 2 / max((weights**2).sum(), 1e-12)))
    interval = binomtest(round(share * effective), effective).proportion_ci(method="wilson")
    return Promise(share, float(interval.low), float(interval.high), int(near.sum()))


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


# --- what the rules do to a file ------------------------------------------------------------------


def objection(row: dict) -> str | None:
    """The rule that rejects a row in any form that `rows.py` knows, or None: a conversation is
    judged by its first question and its last answer, and for a language that the course does not
    know there are no rules."""
    if row["language"] not in prompts.LANGUAGES:
        return None
    asked = row.get("instruction") or reader.questions(row)[0]
    one = {"input": "", **row, "instruction": asked, "output": reader.answers(row)[-1]}
    found = instruction_problem(one) or answer_problem(one)
    return found.partition(" (")[0] if found else None


def rejections(rows: list[dict]) -> tuple[Counter, dict[str, list[str]]]:
    """How many rows each rule rejects, and for each rule the beginnings of some of them; answers by
    their ends. Rows in a language that the course does not know are counted as such."""
    counts: Counter = Counter()
    examples: dict[str, list[str]] = {}
    for row in rows:
        known = row["language"] in prompts.LANGUAGES
        rule = objection(row) if known else f"(no rules for the language {row['language']!r})"
        if not rule:
            continue
        counts[rule] += 1
        if len(examples.setdefault(rule, [])) < 3:
            of_answer = rule.startswith("output")
            said = reader.answers(row)[-1][-70:] if of_answer else reader.questions(row)[0][:70]
            examples[rule].append(said)
    return counts, examples


def main(arguments: list[str] | None = None) -> None:
    """`python -m preprocessing.curation FILE ...`: what the rules would reject of rows in any form
    that `rows.py` knows, by rule and with examples. Nothing is written."""
    sources = sys.argv[1:] if arguments is None else arguments
    if not sources:
        raise utils.CourseError("Name a file of rows: python -m preprocessing.curation FILE ...")
    for source in sources:
        rows = reader.read(source)
        counts, examples = rejections(rows)
        print(f"{source}: {counts.total():,} of {len(rows):,} rows are rejected by a rule")
        for rule, count in counts.most_common():
            print(f"{count / len(rows):6.1%}  {rule}")
            for said in examples[rule]:
                print(f"          {said!r}")


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
