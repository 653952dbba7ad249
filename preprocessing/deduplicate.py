"""Near-duplicates among your own rows, without Ray: find them, read the pairs, write the rest.

    python -m preprocessing.deduplicate mine.jsonl more.csv --dry-run --report pairs.jsonl
    python -m preprocessing.deduplicate mine.jsonl --against data/instruction.jsonl --out kept.jsonl

What it does: read rows in any form that `rows.py` knows, compare the chosen fields by ROUGE-L or by
embeddings, first come, first kept, and say which row resembles which. With `--against` nothing of
that file is removed, but what resembles its rows is. What it does not do: write to your files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import similarity
import utils
from preprocessing import contamination
from preprocessing import rows as reader

FIELDS = ("instruction", "input", "output")
# Cosine: of the labelled pairs above it six in seven ask for the same, where no request is turned
# round (curation.gate_threshold; a test holds the two together)
SEMANTIC = 0.93


def text_of(row: dict, fields: tuple[str, ...]) -> str:
    """What is compared of a row: these fields, a line each; of a conversation all that the user
    says (`instruction`, `input`) and all that the assistant says (`output`)."""
    if "messages" not in row:
        parts = [row.get(field, "") for field in fields]
    else:
        asked = bool({"instruction", "input"} & set(fields))
        parts = reader.questions(row) if asked else []
        parts += reader.answers(row) if "output" in fields else []
    return "\n".join(part for part in parts if part)


def deduplicated(
    rows: list[dict],
    against: Sequence[dict] = (),
    fields: tuple[str, ...] = ("instruction", "input"),
    threshold: float = 0.7,
    by: str = "rouge",
    tokenizer: str = "unicode",
) -> tuple[list[dict], list[dict]]:
    """Rows that resemble neither an earlier one nor one of `against`, and the pairs found.

    Args:
        by: "rouge", or "embedding" (multilingual E5; its threshold is a cosine, see
            `curation.calibrate`).

    Returns:
        `(kept, pairs)`: the rows kept, in their order, and for each one removed `{"removed",
        "kept", "score", "removed_text", "kept_text"}`, with ids.

    Raises:
        CourseError: a threshold that no score can have, or an unknown tokenizer or method.
    """
    everything = [*against, *rows]
    texts = [text_of(row, fields) for row in everything]
    if by == "rouge":
        index = similarity.RougeLIndex(threshold, tokenizer)
        index.add(texts[: len(against)])
        matches = index.add(texts[len(against) :])
    elif by == "embedding":
        similarity.check_threshold(threshold, lowest=-1.0)
        removed = similarity.embedding_duplicates(similarity.embed(texts), threshold).removed
        matches = [removed.get(place) for place in range(len(against), len(texts))]
    else:
        raise utils.CourseError(f"Rows cannot be compared by {by!r}: choose rouge or embedding.")
    kept, pairs = [], []
    for row, text, match in zip(rows, texts[len(against) :], matches, strict=True):
        if match is None:
            kept.append(row)
            continue
        pairs.append(
            {
                "removed": row["id"],
                "kept": everything[match.index]["id"],
                "score": round(match.score, 4),
                "removed_text": text,
                "kept_text": texts[match.index],
            }
        )
    return kept, pairs


def unlike(rows: list[dict], others: list[dict]) -> list[dict]:
    """The rows that neither ask what one of `others` asks nor answer what it answers.

    To ask the same is a ROUGE-L above 0.7, or a cosine of the first questions above
    `SEMANTIC`, in whatever languages the two are; to answer the same is word for word, in eight
    words or more. Embedding takes a minute for 1,200 texts on two cores, once: vectors are kept.
    """
    if not rows or not others:
        return rows
    asked = [text_of(row, ("instruction", "input")) for row in rows]
    taken = [text_of(row, ("instruction", "input")) for row in others]
    opened = similarity.embed([reader.questions(row)[0] for row in rows])
    known = similarity.embed([reader.questions(row)[0] for row in others])
    answered = {tuple(similarity.tokenize(text_of(row, ("output",)))) for row in others}
    left = []
    worded, meant = similarity.rouge_l_nearest(asked, taken), similarity.nearest(opened, known)
    for row, by_words, by_meaning in zip(rows, worded, meant, strict=True):
        answer = tuple(similarity.tokenize(text_of(row, ("output",))))
        same_answer = len(answer) >= 8 and answer in answered
        same_question = by_words.score > contamination.LEXICAL or by_meaning.score > SEMANTIC
        if not same_question and not same_answer:
            left.append(row)
    return left


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.deduplicate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="rows in any form, or a hub id")
    parser.add_argument("--against", nargs="+", default=[], metavar="FILE", help="rows that stay")
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=["instruction", "input"])
    parser.add_argument("--threshold", type=float, default=0.7, help="a score above it removes")
    parser.add_argument("--by", choices=("rouge", "embedding"), default="rouge")
    parser.add_argument("--tokenizer", choices=("unicode", "char"), default="unicode")
    parser.add_argument("--report", metavar="FILE", help="write the pairs found, a line each")
    parser.add_argument("--out", metavar="FILE", help="write the rows kept; must not exist yet")
    parser.add_argument("--dry-run", action="store_true", help="find and report, write no rows")
    chosen = parser.parse_args(arguments)
    targets = [Path(name) for name in (chosen.out, chosen.report) if name]
    for path in targets:
        if path.exists():
            raise utils.CourseError(f"{path} exists already: name another file, or delete it.")
    if not chosen.out and not chosen.dry_run:
        raise utils.CourseError(
            "Name a new file for the rows that are kept with --out, or only look with --dry-run."
        )
    rows = [row for source in chosen.files for row in reader.read(source)]
    against = [row for source in chosen.against for row in reader.read(source)]
    kept, pairs = deduplicated(
        rows, against, tuple(chosen.fields), chosen.threshold, chosen.by, chosen.tokenizer
    )
    for pair in pairs[:5]:
        print(f"{pair['score']:.3f}  {pair['removed_text'][:70]!r}")
        print(f"       {pair['kept_text'][:70]!r} ({pair['kept']})")
    print(f"{len(pairs):,} of {len(rows):,} rows resemble another; {len(kept):,} are left.")
    if chosen.report:
        print(f"pairs: {utils.write_jsonl(chosen.report, pairs)}")
    if chosen.out and not chosen.dry_run:
        print(f"rows: {utils.write_jsonl(chosen.out, kept)}")


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
