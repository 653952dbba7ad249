"""The contamination gate: no training row may be one of the questions that the model or its judge
is examined with.

What it does: find rows too close to an evaluation prompt, a judge pair or a seed, by words and by
meaning, and leave them out or keep a record of the check beside the data. What it does not do:
choose the thresholds (curation.py does, from labelled pairs).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import prompts
import similarity
import utils
from preprocessing import rows as reader

HELD = ("eval_prompts.jsonl", "judge_calibration.jsonl", "seed_tasks.jsonl")
PROMPT_FIELDS = ("id", "language", "category", "prompt", "reference")
LEXICAL = 0.7  # ROUGE-L, as everywhere
CACHE = utils.CACHE / "gate"
TEXTS_PER_MINUTE = 1200  # that E5 reads on two cores


def contaminated(
    rows: list[dict], lexical: float, semantic: float, own: Sequence[dict] = ()
) -> list[tuple[dict, str, similarity.Match, str]]:
    """Rows too close to an evaluation prompt, a judge pair or a seed: `[(row, its id, match,
    "ROUGE-L" or "embedding")]`. Of a conversation every question counts.

    Args:
        lexical: ROUGE-L above which a row counts as copied; its instruction is compared alone and
            with its input.
        semantic: cosine of E5 embeddings above which it counts as a paraphrase.
        own: evaluation prompts of the user's own, with `id` and `prompt`.
    """
    held = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", PROMPT_FIELDS)
    held += utils.read_jsonl(utils.DATA / "judge_calibration.jsonl", ("id", "prompt"))
    held += own
    seeds = utils.read_jsonl(utils.DATA / "seed_tasks.jsonl", ("id", "instruction"))
    names = [entry["id"] for entry in held + seeds]
    asked = [entry["prompt"] for entry in held] + [prompts.user_message(seed) for seed in seeds]
    # A seed's instruction counts alone too: with another input it is still the same task
    worded = [entry["prompt"] for entry in held] + [seed["instruction"] for seed in seeds]
    owners, texts, alone = [], [], []
    for row in rows:
        for question in reader.questions(row):
            owners.append(row)
            texts.append(question)
            alone.append(row.get("instruction", question))
    found: dict[int, tuple] = {}  # by the row's place in memory: ids may not be unique yet
    near = zip(
        similarity.rouge_l_nearest(texts, asked),
        similarity.rouge_l_nearest(alone, worded),
        similarity.nearest(similarity.embed(texts), similarity.embed(asked)),
        strict=True,
    )
    for row, (whole, instruction, meant) in zip(owners, near, strict=True):
        copied = max(whole, instruction, key=lambda match: match.score)
        if copied.score > lexical:
            found.setdefault(id(row), (row, names[copied.index], copied, "ROUGE-L"))
        elif meant.score > semantic:
            found.setdefault(id(row), (row, names[meant.index], meant, "embedding"))
    return list(found.values())


def clean(rows: list[dict], own: Sequence[dict] = ()) -> list[dict]:
    """The rows that are not too close to what the model is examined with; the others are
    left out, and printed.

    The comparison is remembered in the cache under a hash of all that it depends on, so that the
    same rows are compared once.
    """
    semantic = threshold()
    held = [utils.file_hash(utils.DATA / name) for name in HELD]
    key = utils.fingerprint(rows, list(own), held, LEXICAL, semantic)
    path = CACHE / f"{key}.json"
    record = utils.read_json(path)
    if not record:
        if len(rows) > 1000:
            minutes = len(rows) / TEXTS_PER_MINUTE
            print(
                f"comparing {len(rows):,} rows with the evaluation, once: about {minutes:.0f} "
                "minutes on two cores"
            )
        found = contaminated(rows, LEXICAL, semantic, own)
        listed = [[row["id"], name, round(match.score, 3), by] for row, name, match, by in found]
        record = {"rows": len(rows), "left_out": listed}
        utils.write_json(path, record)
    for row, name, score, by in record["left_out"][:3]:
        print(f"left out, too close to the evaluation: {row} is like {name} ({by} {score})")
    if (count := len(record["left_out"])) > 3:
        print(f"... and {count - 3:,} more of {len(rows):,}")
    left_out = {row for row, *_ in record["left_out"]}
    return [row for row in rows if row["id"] not in left_out]


def threshold() -> float:
    """The cosine above which two texts ask for the same, from the labelled pairs."""
    from preprocessing import curation

    _, same, scores = curation.labelled_pairs(LEXICAL)
    return curation.calibrate(scores["E5"], same, curation.PRECISION)


def pass_gate(data: Path, lexical: float, semantic: float) -> dict:
    """Check a written data set once more and record the result beside it, as `contamination.json`.

    Returns:
        `{"data": hash of the file, "held": hash of what it was compared with, "rows": n, "left":
        contaminated rows in it, ...}`.

    Raises:
        CourseError: rows are left; the record says so too.
    """
    rows = utils.read_jsonl(data, ("id",))
    left = contaminated(rows, lexical, semantic)
    report = state(data) | {
        "rows": len(rows),
        "left": len(left),
        "lexical": lexical,
        "semantic": semantic,
    }
    utils.write_json(data.parent / "contamination.json", report)
    if left:
        raise utils.CourseError(
            f"{len(left)} rows of {data.name} resemble evaluation prompts, judge pairs or seeds, "
            f"{left[0][0]['id']} among them: drop them."
        )
    return report


def passed(data: Path) -> bool:
    """True if exactly this data set has passed the gate, against the evaluation as it is now."""
    report = utils.read_json(data.parent / "contamination.json")
    same = all(report.get(key) == value for key, value in state(data).items())
    return same and report.get("left") == 0


def state(data: Path) -> dict:
    """Hashes of a data set and of all that it is compared with: a gate passed with other ones does
    not count."""
    return {
        "data": utils.file_hash(data),
        "held": utils.fingerprint([utils.file_hash(utils.DATA / name) for name in HELD]),
    }


def main() -> None:
    """`python -m preprocessing.contamination data/instruction.jsonl`: check a data set and write
    its record (`make gate` for the shipped one)."""
    import sys

    report = pass_gate(Path(sys.argv[1]), LEXICAL, threshold())
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
