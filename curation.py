"""What becomes of the tasks that a teacher wrote: what `preprocess.ipynb` calls after asking.

In here: the rules that reject a task, the ledger in which every raw row finds its fate, the threshold of the embedding filter, the
critique, the contamination gate and the data card. Not in here: the near-duplicate filters (`similarity.py`) and the order of the
steps, which is the notebook's story.

Sources: Self-Instruct (arXiv 2212.10560), AlpaGasus (arXiv 2307.08701) for the critique.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

import prompts
import similarity
import utils
from llm import Reply

PROMPT_FIELDS = ("id", "language", "category", "prompt", "reference")


# --- rules ---------------------------------------------------------------------------------------------------------

# A text-only model cannot do these (Self-Instruct's list, Alpaca's additions, and their Korean counterparts)
UNSUITABLE = {
    "en": re.compile(
        r"\b(images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|go to|videos?|audio|music|flowcharts?|diagrams?)\b", re.I
    ),
    "ko": re.compile(r"그림|사진|이미지|그래프|지도|동영상|영상을|음악|오디오|파일|순서도|그려"),
}
SHORTEST = {"en": 4, "ko": 3}  # words; a Korean word carries its particles
FINISHED = re.compile(r"[.!?…:;)\]}\"'”’`。]$")


def problem(task: dict) -> str | None:
    """Why a task is unusable by itself, or None. The rules of Self-Instruct's appendix, made fit for Hangul.

    A task that is still an instruction only (`pending`) is judged by that.
    """
    language, instruction = task["language"], task["instruction"].strip()
    output = task["output"].strip()
    words = instruction.split()
    if task["category"] not in prompts.CATEGORIES and not task.get("pending"):
        return f"unknown category {task['category']!r}"
    if len(words) < SHORTEST[language]:
        return "instruction too short"
    if len(words) > 150:
        return "instruction too long"
    if not instruction[:1].isalnum():
        return "instruction starts with punctuation"
    if instruction.lower().startswith("write a program"):
        return "starts with 'Write a program'"
    if (_hangul(instruction) > 0.3) != (language == "ko"):
        return "instruction in the wrong language"
    if unsuitable := UNSUITABLE[language].search(instruction):
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
    if "\n" not in output and len(output.split()) > 8 and re.search(r"[.!?다요] ", output) and not FINISHED.search(output):
        return "output breaks off"
    return None


def _hangul(text: str) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum("가" <= character <= "힣" for character in letters) / len(letters) if letters else 0.0


# --- the ledger ----------------------------------------------------------------------------------------------------


class Ledger:
    """Every raw row of a run and why it was kept or rejected; nothing is dropped without an entry.

    A reply that could not be read at all counts as one row, with filter "malformed reply".
    """

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.stages: list[str] = []

    def receive(self, reply: Reply, tasks: list[dict], language: str, demonstrations: list[dict], teacher: str, **more) -> list[dict]:
        """Book one reply: its tasks as candidates with their provenance, or the reply itself as malformed. Returns the candidates."""
        self.open("malformed reply")
        provenance = {
            "source": "self-instruct",
            "teacher": teacher,
            "request": reply.key[:16],
            "demonstrations": [task["id"] for task in demonstrations],
            "cost_usd": reply.cost_usd / max(len(tasks), 1),
        } | more
        if not tasks:
            row = self.add(language, dict.fromkeys(("category", "instruction", "input", "output"), ""), provenance)
            self.drop(row, "malformed reply", reply.error or "no tasks in it")
            return []
        return [self.add(language, task, provenance) for task in tasks]

    def add(self, language: str, task: dict, provenance: dict) -> dict:
        number = sum(row["language"] == language for row in self.rows) + 1
        row = {"id": f"run-{language}-{number:04d}", "language": language, **task, **provenance, "fate": "kept"}
        self.rows.append(row)
        return row

    def complete(self, row: dict, category: str, instances: list[tuple[str, str]], cost_usd: float) -> None:
        """Give an instruction its instances: the first to its own row, each further one to a row beside it."""
        del row["pending"]
        provenance = {key: row[key] for key in ("source", "teacher", "request", "demonstrations")}
        share = cost_usd / len(instances)
        for i, (given, answer) in enumerate(instances):
            task = {"category": category, "instruction": row["instruction"], "input": given, "output": answer}
            if i == 0:
                row |= task | {"cost_usd": row["cost_usd"] + share}
            else:
                self.add(row["language"], task, provenance | {"cost_usd": share, "sibling": row["id"]})

    def open(self, stage: str) -> list[dict]:
        """Begin a filter, or go on with it; return the rows that it has to judge."""
        if stage not in self.stages:
            self.stages.append(stage)
        return self.kept

    def drop(self, row: dict, stage: str, reason: str, neighbour: str | None = None, score: float | None = None) -> None:
        """Reject a row, with the filter, the reason and, for a duplicate, the kept neighbour and its score."""
        row |= {"fate": stage, "reason": reason}
        if neighbour is not None:
            row |= {"neighbour": neighbour, "score": round(score, 4)}

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
        """Write `ledger.jsonl` (every row) and `instruction.jsonl` (the kept ones, with provenance); return the latter's path.

        Raises:
            CourseError: fewer than `least` rows are left; the ledger is written all the same, the data set is not.
        """
        utils.write_jsonl(folder / "ledger.jsonl", self.rows)
        if len(self.kept) < least:
            worst = max(self.stages, key=lambda stage: len(self.rejected(stage)), default="nothing")
            raise utils.CourseError(
                f"Only {len(self.kept)} of {len(self.rows)} rows are left and {least} are needed (most were lost to {worst!r}): raise "
                "REQUESTS or look into ledger.jsonl."
            )
        kept = [{key: value for key, value in row.items() if key != "fate"} for row in self.kept]
        return utils.write_jsonl(folder / "instruction.jsonl", kept)


# --- the threshold of the embedding filter -------------------------------------------------------------------------


def calibrate(scores: np.ndarray, duplicate: np.ndarray, precision: float = 0.9) -> float:
    """The lowest threshold at which at least `precision` of the labelled pairs scoring above it are duplicates.

    A false alarm costs a good row, a miss only some repetition: so precision first, then as much recall as it leaves.

    Args:
        scores: (n,) similarity of each labelled pair.
        duplicate: (n,) its label.
    """
    for threshold in np.unique(scores):
        above = scores > threshold
        if above.any() and duplicate[above].mean() >= precision:
            return float(threshold)
    raise utils.CourseError(f"No threshold separates the labelled pairs with a precision of {precision}: use another similarity.")


def precision_recall_figure(scores: dict[str, np.ndarray], duplicate: np.ndarray, threshold: tuple[str, float]):
    """Precision over recall for each similarity in `scores`, with the chosen `(name, threshold)` marked."""
    import matplotlib.pyplot as plt
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for name, values in scores.items():
        precision, recall, _ = precision_recall_curve(duplicate, values)
        axes.step(recall, precision, where="post", label=f"{name} (average {average_precision_score(duplicate, values):.2f})")
    name, cut = threshold
    above = scores[name] > cut
    axes.plot(duplicate[above].sum() / duplicate.sum(), duplicate[above].mean(), "o", color="black", label=f"{name} > {cut:.3f}")
    axes.set(xlabel="recall", ylabel="precision", ylim=(0.3, 1.03), title=f"Finding the duplicates among {len(duplicate)} labelled pairs")
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


# --- critique ------------------------------------------------------------------------------------------------------


class Critique(BaseModel):
    """Reason before score, so that the score can follow from it."""

    model_config = ConfigDict(extra="forbid")
    reason: str
    score: Literal[1, 2, 3, 4, 5]


def critique_request(row: dict) -> dict:
    """Ask the teacher how good a row is, from 1 to 5 (AlpaGasus kept the rows above 4.5 of 5)."""
    content = prompts.CRITIQUE[row["language"]].format(**{key: row[key] for key in ("instruction", "input", "output")})
    system = prompts.CRITIC_SYSTEM[row["language"]]
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
        "temperature": 0.0,
        "max_completion_tokens": 200,
    }


# --- contamination -------------------------------------------------------------------------------------------------


def contamination(rows: list[dict], lexical: float, semantic: float) -> list[tuple[dict, str, similarity.Match, str]]:
    """Rows that resemble an evaluation prompt or a judge pair: `[(row, id of the prompt, match, "ROUGE-L" or "embedding")]`.

    Args:
        lexical: ROUGE-L above which a row counts as copied.
        semantic: cosine of E5 embeddings above which it counts as a paraphrase.
    """
    held = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", PROMPT_FIELDS)
    held += utils.read_jsonl(utils.DATA / "judge_calibration.jsonl", ("id", "prompt"))
    asked, texts = [entry["prompt"] for entry in held], [prompts.user_message(row) for row in rows]
    found = []
    copied = zip(
        similarity.rouge_l_nearest(texts, asked),
        similarity.rouge_l_nearest([row["instruction"] for row in rows], asked),
        similarity.nearest(similarity.embed(texts), similarity.embed(asked)),
        strict=True,
    )
    for row, (whole, alone, meant) in zip(rows, copied, strict=True):
        worded = max(whole, alone, key=lambda match: match.score)
        if worded.score > lexical:
            found.append((row, held[worded.index]["id"], worded, "ROUGE-L"))
        elif meant.score > semantic:
            found.append((row, held[meant.index]["id"], meant, "embedding"))
    return found


def pass_gate(data: Path, lexical: float, semantic: float) -> dict:
    """Check a written data set once more and record the result beside it; `train.ipynb` refuses data without this record.

    Returns:
        `{"data": hash of the file, "rows": n, "left": contaminated rows still in it, ...}`, saved as `contamination.json`.
    """
    rows = utils.read_jsonl(data, ("instruction", "input"))
    left = contamination(rows, lexical, semantic)
    report = {"data": utils.file_hash(data), "rows": len(rows), "left": len(left), "lexical": lexical, "semantic": semantic}
    utils.write_json(data.parent / "contamination.json", report)
    if left:
        raise utils.CourseError(f"{len(left)} rows of {data.name} resemble evaluation prompts, {left[0][0]['id']} among them: drop them.")
    return report


# --- the data card -------------------------------------------------------------------------------------------------

TERMS = {
    "rehearsal": "Recorded replies written for this course, under its licence (see LICENSE).",
    "openai": "Generated with an OpenAI model: its terms forbid using the output to develop models that compete with OpenAI.",
    "other": "Generated with another model: its licence decides what the output may be used for.",
}


def data_card(ledger: Ledger, gate: dict, method: str, paid_usd: float, thresholds: dict[str, float]) -> str:
    """A Hugging Face data card (Markdown with YAML in front), every figure of it from this run."""
    rows = ledger.kept
    teachers = Counter(row["teacher"] for row in rows)
    terms = {("rehearsal" if name.startswith(utils.REHEARSAL) else "openai" if name.startswith("gpt") else "other") for name in teachers}
    languages, categories = (Counter(row[key] for row in rows) for key in ("language", "category"))
    listed = lambda counts: ", ".join(f"{name} {count}" for name, count in counts.most_common())  # noqa: E731
    funnel = "\n".join(f"| {stage} | {left} |" for stage, left in ledger.funnel())
    head = "\n".join(f"- {language}" for language in sorted(languages))
    return f"""---
language:
{head}
task_categories:
- text-generation
tags:
- instruction-tuning
- self-instruct
- synthetic
size_categories:
- {"n<1K" if len(rows) < 1000 else "1K<n<10K" if len(rows) < 10_000 else "10K<n<100K"}
---

# Instruction data made with Instruction Tuning from Scratch

{len(rows)} rows, made on {time.strftime("%Y-%m-%d")} with the method {method}.

| | |
|---|---|
| teacher | {listed(teachers)} |
| languages | {listed(languages)} |
| categories | {listed(categories)} |
| with an input | {sum(bool(row["input"]) for row in rows)} |
| paid | ${paid_usd:.2f} |
| thresholds | {", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())} |
| contaminated rows left | {gate["left"]} of {gate["rows"]}, checked against the evaluation prompts, the judge's pairs and the seeds |

| after | rows left |
|---|---|
{funnel}

## Licence and terms

{" ".join(TERMS[term] for term in sorted(terms))} The seed tasks were written for the course.

## Limits

Answers were written by a model and filtered by rules and similarity; facts were not checked by people. What the seeds lack, these
rows lack. Each row names its teacher, request, demonstrations and cost; `ledger.jsonl` has the rejected rows and why.
"""


def push(folder: Path, repository: str) -> str:
    """Upload the rows and the card to the Hugging Face hub as a private data set; returns its address."""
    token = utils.secret("HF_TOKEN")
    if not token:
        raise utils.CourseError(f"PUSH_TO is {repository!r}, but there is no HF_TOKEN: make a write token at huggingface.co and set it.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi(token=token)
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        for name, there in (("instruction.jsonl", "instruction.jsonl"), ("data_card.md", "README.md")):
            api.upload_file(path_or_fileobj=folder / name, path_in_repo=there, repo_id=repository, repo_type="dataset")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:150].replace(token, "...")
        raise utils.CourseError(
            f"The data set could not be pushed to {repository} ({reason}): check PUSH_TO and that HF_TOKEN may write."
        ) from None
    return f"https://huggingface.co/datasets/{repository}"


# --- figures -------------------------------------------------------------------------------------------------------


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
    axes.set(xlim=(0, max(counts) * 1.15), xlabel="rows", title=f"What each filter left; teacher: {teacher}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def yield_figure(yields: list[int], least: float, window: int, teacher: str):
    """New rows of each request in the order asked, their running mean, and the line below which asking stops."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 2.6))
    axes.bar(range(1, len(yields) + 1), yields, color="#9aa5b1", label="new rows of a request")
    running = [np.mean(yields[max(0, i - window) : i]) for i in range(1, len(yields) + 1)]
    axes.plot(range(1, len(yields) + 1), running, color="#3b7dd8", label=f"mean of the last {window}")
    axes.axhline(least, color="#c0504d", linestyle="--", linewidth=1, label=f"stop below {least:g}")
    axes.set(xlabel="request", ylabel="rows", title=f"What another request brings; teacher: {teacher}")
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    figure.tight_layout()
    return figure
