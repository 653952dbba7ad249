"""Making an instruction data set with a teacher model: what `preprocess.ipynb` calls.

In here: demonstrations and requests, the rules that reject a task, the ledger in which every raw row finds its fate, the
contamination gate. Not in here: the near-duplicate filters themselves (`similarity.py`) and the order of the steps, which is
the notebook's story.

Sources: Self-Instruct (arXiv 2212.10560), Stanford Alpaca (tatsu-lab/stanford_alpaca), which asks for whole tasks in one request.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import prompts
import similarity
import utils
from llm import Reply

SEED_FIELDS = ("id", "language", "category", "instruction", "input", "output", "is_classification")
PROMPT_FIELDS = ("id", "language", "category", "prompt", "reference")


class Task(BaseModel):
    """One task as the teacher writes it. No defaults and no extra fields: that is what a strict JSON schema asks for."""

    model_config = ConfigDict(extra="forbid")
    category: str
    instruction: str
    input: str
    output: str


class TaskBatch(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tasks: list[Task]


# --- asking --------------------------------------------------------------------------------------------------------


def load_seeds(languages: tuple[str, ...]) -> list[dict]:
    """The seed tasks in the chosen languages, written for this course."""
    return [seed for seed in utils.read_jsonl(utils.DATA / "seed_tasks.jsonl", SEED_FIELDS) if seed["language"] in languages]


def batch_request(demonstrations: list[dict], language: str, count: int, seed: int) -> dict:
    """One chat request for `count` new tasks in `language`, showing `demonstrations`.

    `seed` makes sampling at temperature 1 repeatable where the server supports it, and tells two requests apart in the journal.
    """
    shown = [
        prompts.DEMONSTRATION[language].format(number=i, **{key: task[key] for key in Task.model_fields} | {"input": task["input"] or '""'})
        for i, task in enumerate(demonstrations, 1)
    ]
    text = prompts.TEACHER_BATCH[language].format(count=count, categories=", ".join(prompts.CATEGORIES), demonstrations="\n\n".join(shown))
    return {
        "messages": [{"role": "system", "content": prompts.TEACHER_SYSTEM[language]}, {"role": "user", "content": text}],
        "temperature": 1.0,
        "seed": seed,
        "max_completion_tokens": 400 * count,
    }


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
    """Why a task is unusable by itself, or None. The rules of Self-Instruct's appendix, made fit for Hangul."""
    language, instruction = task["language"], task["instruction"].strip()
    output = task["output"].strip()
    words = instruction.split()
    if task["category"] not in prompts.CATEGORIES:
        return f"unknown category {task['category']!r}"
    if len(words) < SHORTEST[language]:
        return "instruction too short"
    if len(words) > 150:
        return "instruction too long"
    if not instruction[0].isalnum():
        return "instruction starts with punctuation"
    if instruction.lower().startswith("write a program"):
        return "starts with 'Write a program'"
    if (_hangul(instruction) > 0.3) != (language == "ko"):
        return "instruction in the wrong language"
    if unsuitable := UNSUITABLE[language].search(instruction):
        return f"a text model cannot do it ({unsuitable.group()})"
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

    def receive(self, reply: Reply, language: str, demonstrations: list[dict], teacher: str) -> None:
        """Book one reply: its tasks as candidates with their provenance, or the reply itself as malformed."""
        self.open("malformed reply")
        provenance = {
            "source": "self-instruct",
            "teacher": teacher,
            "request": reply.key[:16],
            "demonstrations": [task["id"] for task in demonstrations],
        }
        tasks = reply.parsed.tasks if reply.parsed else []
        for task in tasks:
            share = {"cost_usd": reply.cost_usd / len(tasks)}
            self._add(language, task.model_dump(), provenance | share)
        if not tasks:
            row = self._add(language, dict.fromkeys(Task.model_fields, ""), provenance | {"cost_usd": reply.cost_usd})
            self.drop(row, "malformed reply", reply.error or "no tasks in it")

    def _add(self, language: str, task: dict, provenance: dict) -> dict:
        number = sum(row["language"] == language for row in self.rows) + 1
        row = {"id": f"run-{language}-{number:04d}", "language": language, **task, **provenance, "fate": "kept"}
        self.rows.append(row)
        return row

    def open(self, stage: str) -> list[dict]:
        """Begin a filter; return the rows that it has to judge."""
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

    def save(self, folder: Path) -> Path:
        """Write `ledger.jsonl` (every row) and `instruction.jsonl` (the kept ones, with provenance); return the latter's path."""
        utils.write_jsonl(folder / "ledger.jsonl", self.rows)
        kept = [{key: value for key, value in row.items() if key != "fate"} for row in self.kept]
        return utils.write_jsonl(folder / "instruction.jsonl", kept)


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


def balance(rows: list[dict]):
    """Rows per language and category, as a table in the order of `prompts.CATEGORIES`."""
    import pandas as pd

    table = pd.crosstab(pd.Series([row["language"] for row in rows]), pd.Series([row["category"] for row in rows]))
    return table.reindex(columns=list(prompts.CATEGORIES), fill_value=0).rename_axis(None).rename_axis(None, axis=1)


def sample_demonstrations(seeds: list[dict], language: str, count: int, rng: random.Random) -> list[dict]:
    """`count` seed tasks in one language, from different categories, in random order, as Alpaca draws them (without machine rows)."""
    pool = [seed for seed in seeds if seed["language"] == language]
    chosen: dict[str, dict] = {}
    for seed in rng.sample(pool, len(pool)):
        chosen.setdefault(seed["category"], seed)
    return list(chosen.values())[:count]
