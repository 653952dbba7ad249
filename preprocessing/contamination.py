"""The contamination gate: no training row may be one of the questions that the model or its judge
is examined with.

What it does: find rows too close to an evaluation prompt, a judge pair or a seed, by words and by
meaning, and leave them out or keep a record of the check beside the data. What it does not do:
choose the thresholds (`preprocess.ipynb` does), or find every paraphrase: how many of the labelled
ones it finds is measured (`recall`) and stands in the record.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import prompts
import similarity
import utils
from preprocessing import curation
from preprocessing import rows as reader

HELD = ("eval_prompts.jsonl", "judge_calibration.jsonl", "seed_tasks.jsonl")
PROMPT_FIELDS = ("id", "language", "category", "prompt", "reference")
LEXICAL = 0.7  # ROUGE-L, as everywhere
CACHE = utils.CACHE / "gate"
TIMED = 64  # rows that are read first, so that the time of all can be said
GRAM = 4  # words in a row: what of a prompt is looked for in a longer text
CONTAINED = 0.8  # share of a prompt's grams that says that it stands in a text
SHORTEST = 8  # words of a prompt that is looked for so: shorter ones stand in many texts


@dataclass(frozen=True)
class Held:
    """A text that nothing may be trained on."""

    name: str  # its id
    text: str
    alone: str  # the same without its input: with another input it is still the same task


def held_out() -> list[Held]:
    """Evaluation prompts with what is asked after them, the questions of the judge's pairs, and the
    seeds."""
    found = []
    for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", PROMPT_FIELDS):
        found.append(Held(item["id"], item["prompt"], item["prompt"]))
        for turn in item.get("follow_ups", ()):
            found.append(Held(item["id"], turn["prompt"], turn["prompt"]))
    for pair in utils.read_jsonl(utils.DATA / "judge_calibration.jsonl", ("id", "prompt")):
        found.append(Held(pair["id"], pair["prompt"], pair["prompt"]))
    for seed in utils.read_jsonl(utils.DATA / "seed_tasks.jsonl", ("id", "instruction")):
        found.append(Held(seed["id"], prompts.user_message(seed), seed["instruction"]))
    return found


def contaminated(
    rows: list[dict], lexical: float, semantic: float, held: list[Held] | None = None
) -> list[tuple[dict, str, similarity.Match, str]]:
    """Rows too close to a held-out text: `[(row, its id, match, how)]`, where `how` is "ROUGE-L",
    "embedding" or "contained". Of a conversation every question counts, and a held-out text may
    also stand within a longer input or an answer, as in the transcript of a chat.

    Args:
        lexical: ROUGE-L above which a row counts as copied; its instruction is compared alone and
            with its input.
        semantic: cosine of E5 embeddings above which it counts as a paraphrase. Not every
            paraphrase scores that high: see `recall`.
        held: what rows may not resemble; by default `held_out()`.
    """
    held = held_out() if held is None else held
    asked, worded = [one.text for one in held], [one.alone for one in held]
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
            found.setdefault(id(row), (row, held[copied.index].name, copied, "ROUGE-L"))
        elif meant.score > semantic:
            found.setdefault(id(row), (row, held[meant.index].name, meant, "embedding"))
    for row, match in zip(rows, contained(rows, asked), strict=True):
        if match:
            found.setdefault(id(row), (row, held[match.index].name, match, "contained"))
    return list(found.values())


def contained(rows: list[dict], asked: list[str]) -> list[similarity.Match | None]:
    """For each row the text of `asked` that stands within one of its texts, answers too, if any:
    the share of its runs of four words that stand there is its score. What is asked in eight words
    or more is looked for."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: dict[int, int] = {}
    for place, text in enumerate(asked):
        words = similarity.tokenize(text)
        if len(words) >= SHORTEST:
            grams = _grams(words)
            sizes[place] = len(grams)
            for gram in grams:
                holders[gram].append(place)
    matches: list[similarity.Match | None] = []
    for row in rows:
        best = None
        for text in (*reader.questions(row), *reader.answers(row)):
            grams = _grams(similarity.tokenize(text))
            shared = Counter(place for gram in grams for place in holders.get(gram, ()))
            for place, count in shared.items():
                share = count / sizes[place]
                if share >= CONTAINED and (best is None or share > best.score):
                    best = similarity.Match(place, share)
        matches.append(best)
    return matches


def _grams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)}


def recall(lexical: float, semantic: float) -> float:
    """Share of the labelled paraphrases (data/duplicate_pairs.jsonl) that the gate would find: what
    it does not find may still be in a data set that passed."""
    _, same, scores = curation.labelled_pairs(lexical, turned=False)
    return float((scores["E5"][same] > semantic).mean())


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
        "recall": round(recall(lexical, semantic), 2),  # of labelled paraphrases
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


def clean(rows: list[dict], own: Sequence[dict] = ()) -> list[dict]:
    """The rows that are not too close to what the model is examined with; the others are left out,
    and printed.

    The comparison is remembered in the cache under a hash of all that it depends on, so that the
    same rows are compared once.

    Args:
        own: evaluation prompts of the user's own, as `rows.prompts` reads them.
    """
    semantic = curation.gate_threshold(LEXICAL)
    held = held_out()
    for item in own:
        held += [Held(item["id"], question, question) for question in reader.questions(item)]
    key = utils.fingerprint(rows, [vars(one) for one in held], LEXICAL, semantic)
    path = CACHE / f"{key}.json"
    record = utils.read_json(path)
    if not record:
        if len(rows) > 1000:
            minutes = _minutes(rows)
            print(
                f"comparing {len(rows):,} rows with the evaluation, once: about {minutes:.1f} "
                "minutes on this machine"
            )
        found = contaminated(rows, LEXICAL, semantic, held)
        listed = [[row["id"], name, round(match.score, 3), by] for row, name, match, by in found]
        record = {"rows": len(rows), "left_out": listed}
        utils.write_json(path, record)
    for row, name, score, by in record["left_out"][:3]:
        print(f"left out, too close to the evaluation: {row} is like {name} ({by} {score})")
    if (count := len(record["left_out"])) > 3:
        print(f"... and {count - 3:,} more of {len(rows):,}")
    left_out = {row for row, *_ in record["left_out"]}
    return [row for row in rows if row["id"] not in left_out]


def _minutes(rows: list[dict]) -> float:
    """How long E5 will read, by the seconds that it takes for some rows from all over; they are
    read once, for vectors are kept."""
    similarity.embed(["warm"])
    some = rows[:: max(1, len(rows) // TIMED)]
    started = time.monotonic()
    similarity.embed([question for row in some for question in reader.questions(row)])
    return (time.monotonic() - started) / len(some) * len(rows) / 60


def state(data: Path) -> dict:
    """Hashes of a data set and of all that it is compared with: a gate passed with other ones does
    not count."""
    return {
        "data": utils.file_hash(data),
        "held": utils.fingerprint([utils.file_hash(utils.DATA / name) for name in HELD]),
    }


def main(arguments: list[str] | None = None) -> int:
    """`python -m preprocessing.contamination data/instruction.jsonl`: check a data set and write
    its record beside it (`make gate` for the shipped one). With `--held-out` rows of any form are
    compared with one's own, and nothing is written; `--output` writes those that resemble nothing
    of the evaluation."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.contamination")
    parser.add_argument("rows", metavar="FILE", help="rows to train on, in any form, or a hub id")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--held-out", nargs="+", metavar="FILE", help="your own evaluation rows, in any form"
    )
    ways.add_argument(
        "--output", type=Path, metavar="FILE", help="write the rows that may be trained on"
    )
    chosen = parser.parse_args(arguments)
    if chosen.output:
        _write_clean(chosen.rows, chosen.output)
        return 0
    semantic = curation.gate_threshold(LEXICAL)
    if chosen.held_out:
        return _compare(chosen.rows, chosen.held_out, semantic)
    report = pass_gate(Path(chosen.rows), LEXICAL, semantic)
    print(", ".join(f"{name} {value}" for name, value in report.items()))
    return 0


def _write_clean(source: str, output: Path) -> None:
    """Write the rows of a source that may be trained on into another file."""
    read, written = Path(source).resolve(), output.resolve()
    if written == read or read in written.parents:
        raise utils.CourseError(
            f"--output {output} lies in what is read, {source}, which is never written to: give "
            "another place."
        )
    kept = clean(reader.read(source))
    print(f"{len(kept):,} rows: {utils.write_jsonl(output, kept)}")


def _compare(source: str, held_sources: list[str], semantic: float) -> int:
    """Say which rows resemble one's own held-out rows; status 1 if there are any."""
    held = []
    for name in held_sources:
        for row in reader.read(name):
            for question in reader.questions(row):
                held.append(Held(row["id"], question, row.get("instruction", question)))
    rows = reader.read(source)
    left = contaminated(rows, LEXICAL, semantic, held)
    for row, name, match, how in left[:20]:
        print(f"{how:<9} {match.score:.3f}  {row['id']} resembles {name}")
        print(f"          {reader.questions(row)[0][:80]!r}")
    print(f"{len(left):,} of {len(rows):,} rows resemble one of {len(held):,} held-out texts.")
    print(
        f"Of paraphrases this finds about {recall(LEXICAL, semantic):.0%}: read some rows yourself."
    )
    return 1 if left else 0


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
