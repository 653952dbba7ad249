"""The contamination gate: no training row may be one of the questions that the model or its judge
is examined with.

What it does: find rows too close to an evaluation prompt, a judge pair or a seed, by words and by
meaning, and keep a record of the
check beside the data, without which `train.ipynb` refuses it. What it does not do: choose the
thresholds (`preprocess.ipynb` does).
"""

from __future__ import annotations

from pathlib import Path

import prompts
import similarity
import utils

HELD = ("eval_prompts.jsonl", "judge_calibration.jsonl", "seed_tasks.jsonl")
PROMPT_FIELDS = ("id", "language", "category", "prompt", "reference")
LEXICAL = 0.7  # ROUGE-L, as everywhere


def contaminated(
    rows: list[dict], lexical: float, semantic: float
) -> list[tuple[dict, str, similarity.Match, str]]:
    """Rows too close to an evaluation prompt, a judge pair or a seed: `[(row, its id, match,
    "ROUGE-L" or "embedding")]`.

    Args:
        rows: with `instruction` and `input`, or with `messages`, of which every request counts.
        lexical: ROUGE-L above which a row counts as copied; its instruction is compared alone and
            with its input.
        semantic: cosine of E5 embeddings above which it counts as a paraphrase.
    """
    held = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", PROMPT_FIELDS)
    held += utils.read_jsonl(utils.DATA / "judge_calibration.jsonl", ("id", "prompt"))
    seeds = utils.read_jsonl(utils.DATA / "seed_tasks.jsonl", ("id", "instruction"))
    names = [entry["id"] for entry in held + seeds]
    asked = [entry["prompt"] for entry in held] + [prompts.user_message(seed) for seed in seeds]
    # A seed's instruction counts alone too: with another input it is still the same task
    worded = [entry["prompt"] for entry in held] + [seed["instruction"] for seed in seeds]
    # One entry for every request of every row
    owners = [row for row in rows for _ in prompts.requests(row)]
    texts = [text for row in rows for text in prompts.requests(row)]
    bare = [row.get("instruction", text) for row, text in zip(owners, texts, strict=True)]
    copied = zip(
        similarity.rouge_l_nearest(texts, asked),
        similarity.rouge_l_nearest(bare, worded),
        similarity.nearest(similarity.embed(texts), similarity.embed(asked)),
        strict=True,
    )
    found: list[tuple[dict, str, similarity.Match, str]] = []
    for row, (whole, alone, meant) in zip(owners, copied, strict=True):
        if found and found[-1][0] is row:
            continue  # one request is enough
        nearest = max(whole, alone, key=lambda match: match.score)
        if nearest.score > lexical:
            found.append((row, names[nearest.index], nearest, "ROUGE-L"))
        elif meant.score > semantic:
            found.append((row, names[meant.index], meant, "embedding"))
    return found


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


def require_gate(data: Path, remedy: str) -> None:
    """CourseError unless exactly this data set has passed the gate, against the evaluation as it is
    now."""
    report = utils.read_json(data.parent / "contamination.json")
    if (
        any(report.get(key) != value for key, value in state(data).items())
        or report.get("left") != 0
    ):
        raise utils.CourseError(
            f"{utils.short(data)} has not passed the contamination gate as it is now: {remedy}."
        )


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

    from preprocessing import curation

    _, same, scores = curation.labelled_pairs(LEXICAL)
    report = pass_gate(
        Path(sys.argv[1]), LEXICAL, curation.calibrate(scores["E5"], same, curation.PRECISION)
    )
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
