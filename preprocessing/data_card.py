"""The card of a data set, every figure of it from the run that made it, and the upload of both to
the Hugging Face hub.

What it does: write down counts, teacher, cost, thresholds, licences and the teacher's terms; for
the shipped data too (`python -m preprocessing.data_card` writes data/README.md). What it does not
do: choose a licence for the reader.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path

import settings
import utils
from llm import models
from preprocessing import rows as reader
from preprocessing.ledger import Ledger

TERMS = {
    settings.REHEARSAL: "Recorded replies written for this course, under its licence (see "
    "LICENSE).",
    models.OPENAI: "Generated with an OpenAI model: its terms forbid using the output to develop "
    "models that compete with OpenAI.",
    models.OPEN: "Generated with an open model: its licence decides what the output may be used "
    "for.",
    models.UNKNOWN: "Generated with a model whose terms this course does not know: read them "
    "before you use or publish the rows.",
}


def terms_of(teacher: str) -> str:
    """The name in `TERMS` of what the rows of a teacher are under."""
    stand_in = teacher.startswith(settings.REHEARSAL)
    return settings.REHEARSAL if stand_in else models.family(teacher)


def _listed(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def describe(
    ledger: Ledger, gate: dict, method: str, paid_usd: float, thresholds: dict[str, float]
) -> str:
    """A Hugging Face data card (Markdown with YAML in front) in the reader's language, every figure
    of it from this run."""
    rows = ledger.kept
    teachers = Counter(row["teacher"] for row in rows)
    terms = {terms_of(name) for name in teachers}
    languages = Counter([row["language"] for row in rows])
    categories = Counter([row["category"] for row in rows])
    size = "10K<n<100K"
    if len(rows) < 10_000:
        size = "n<1K" if len(rows) < 1000 else "1K<n<10K"
    funnel = "\n".join(f"| {stage} | {left} |" for stage, left in ledger.funnel())
    head = "\n".join(f"- {language}" for language in sorted(languages))
    card = f"""---
language:
{head}
task_categories:
- text-generation
tags:
- instruction-tuning
- self-instruct
- synthetic
size_categories:
- {size}
---

# Instruction data made with Instruction Tuning from Scratch

{len(rows)} rows, made on {time.strftime("%Y-%m-%d")} with the method {method}.

| | |
|---|---|
| teacher | {_listed(teachers)} |
| languages | {_listed(languages)} |
| categories | {_listed(categories)} |
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
"""  # noqa: E501
    return utils.translated_lines(card)


def publish(card: str, folder: Path, repository: str = "") -> str:
    """Write the card beside the rows and, where a repository is given, push both; says where they
    are."""
    with utils.atomic(folder / "data_card.md") as file:
        file.write(card)
    return push(folder, repository) if repository else f"{utils.short(folder / 'data_card.md')}:"


def push(folder: Path, repository: str) -> str:
    """Upload the rows and the card to the Hugging Face hub as a private data set; returns its
    address."""
    token = utils.secret("HF_TOKEN")
    if not token:
        raise utils.CourseError(
            f"PUSH_TO is {repository!r}, but there is no HF_TOKEN: make a write token at "
            "huggingface.co and set it."
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi(token=token)
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        for name, there in (
            ("instruction.jsonl", "instruction.jsonl"),
            ("data_card.md", "README.md"),
        ):
            api.upload_file(
                path_or_fileobj=folder / name,
                path_in_repo=there,
                repo_id=repository,
                repo_type="dataset",
            )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:150].replace(token, "...")
        raise utils.CourseError(
            f"The data set could not be pushed to {repository} ({reason}): check PUSH_TO and that "
            "HF_TOKEN may write."
        ) from None
    return f"https://huggingface.co/datasets/{repository}"


# --- the shipped data -----------------------------------------------------------------------------

FILES = {
    "seed_tasks.jsonl": "seed tasks, shown to the teacher as demonstrations",
    "instruction.jsonl": "rows to train on",
    "eval_prompts.jsonl": "prompts with a reference answer; some go on for two or three turns",
    "judge_calibration.jsonl": "pairs of answers of which one is better, by kind of fault",
    "duplicate_pairs.jsonl": "pairs of instructions, labelled: would one answer serve both?",
    "rehearsal/teacher_en.jsonl": "recorded replies of the stand-in teacher, flawed ones included",
    "rehearsal/teacher_ko.jsonl": "the same in Korean",
}


KINDS = {
    "turns": "two to four turns: a follow-up, a correction, another form, what was said before",
    "system": "a system message sets role, style or limits",
    "boundary": "no, partly, the text does not say, a false premise, a question back",
    "long": "essays, explanations, guides in steps, stories, reviews",
    "reasoning": "order, causes, plans, word problems of several steps",
    "informal": "typing errors, missing spaces, slang, mixed languages in the request",
}


def _spread(rows: list[dict], language: str) -> str:
    """Least, median and most of the rows' answers: words, and in Korean characters."""
    texts = [answer for row in rows for answer in reader.answers(row)]
    sizes = [len(text if language == "ko" else text.split()) for text in texts]
    return f"{min(sizes)} / {statistics.median(sizes):.0f} / {max(sizes):,}"


def shipped() -> str:
    """The page about the data in this repository, with its statistics."""
    import similarity

    listed = "\n".join(
        f"| `{name}` | {len(utils.read_jsonl(utils.DATA / name))} | {what} |"
        for name, what in FILES.items()
    )
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    table = []
    for language, name in settings.LANGUAGES.items():
        own = [row for row in rows if row["language"] == language]
        openings = {" ".join(reader.questions(row)[0].split()[:3]) for row in own}
        table.append(
            f"| {name} | {len(own)} | {sum(row['category'] == 'housing' for row in own)} | "
            f"{sum(bool(row.get('input')) for row in own) / len(own):.0%} | "
            f"{_spread(own, language)} | {len(openings) / len(own):.0%} |"
        )
    kinds = []
    for kind, what in KINDS.items():
        cells = []
        for language in settings.LANGUAGES:
            own = [r for r in rows if r.get("kind") == kind and r["language"] == language]
            cells.append(f"{len(own)} | {_spread(own, language)}")
        kinds.append(f"| {kind} | {what} | {' | '.join(cells)} |")
    plain = sum("kind" not in row for row in rows)
    categories = Counter(row["category"] for row in rows)
    first = [row.get("instruction", reader.questions(row)[0]) for row in rows]
    repeated = len(similarity.rouge_l_duplicates(first).removed)
    gate = utils.read_json(utils.DATA / "contamination.json")
    return f"""# The data of this course

Written for this course by its authors, an AI system: language models wrote it record by record, without templates; nothing was copied
from a data set, although classic puzzles are classic. Every record was read again by a second reader of the same kind, and scripts
checked what can be checked (arithmetic, code, JSON, rules, stated limits, duplicates, contamination). No native speaker has reviewed the
Korean yet. Facts are from memory; housing rows state general rules, and where they give figures they name the law and the year they hold
for, but they are no legal advice. Korean answers are polite; asked in 반말, many answer in 반말. Licence: MIT (see ../LICENSE). JSON
Lines, UTF-8, one record a line; about half English, half Korean.

| file | records | what it is |
|---|---|---|
{listed}

## Rows to train on

| language | rows | housing in Korea | with an input | an answer's words (Korean: characters): least / median / most | distinct first three words |
|---|---|---|---|---|---|
{chr(10).join(table)}

Categories: {", ".join(f"{name} {count}" for name, count in sorted(categories.items()))}.

{plain} rows are one request and a short answer. {len(rows) - plain} teach more than that and have a `kind`; where turns or a system
message need it, they have `messages` in place of `instruction`, `input` and `output`:

| kind | what | English | words | Korean | characters |
|---|---|---|---|---|---|
{chr(10).join(kinds)}

Near-duplicates by our own filter (ROUGE-L above 0.7): {repeated}. Rows too close to an evaluation prompt, a judge pair or a seed
(ROUGE-L above {gate["lexical"]}, E5 cosine above {gate["semantic"]:.3f}): {gate["left"]} of {gate["rows"]}. `make gate` checks again,
`make card` writes this page.
"""  # noqa: E501


if __name__ == "__main__":
    with utils.atomic(utils.DATA / "README.md") as page:
        page.write(shipped())
