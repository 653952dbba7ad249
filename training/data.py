"""The rows to train on: what DATA names, in one form, filtered and past the contamination gate.

What it does: read this run's rows, the shipped ones, files and data sets of the hub, leave out what
is in another language than LANGUAGE, repeats another row or is too close to the evaluation, and
print what it did. What it does not do: read files (preprocessing/rows.py), compare texts
(preprocessing/contamination.py), or divide rows into trained and held-out ones (training/sft.py).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import settings
import utils
from preprocessing import contamination, curation, deduplicate, rows
from utils import CourseError

# And `instruction`, `input`, `output`, or `messages` (see chat.conversation)
ROW_FIELDS = ("id", "language", "category")


def training_rows(chosen: settings.Settings) -> list[dict]:
    """The rows of all sources that DATA names, in the chosen languages; see `rows.read` for their
    form.

    Raises:
        CourseError: a source cannot be read, the run's data set is wanted alone and missing, an id
            occurs twice, or no row is left.
    """
    made = _made(chosen) if "run" in chosen.data else []
    own: list[dict] = []
    for source in chosen.data:
        if source not in settings.COURSE_DATA:
            own += _own(source, chosen)
    # Of all files together, for one may repeat another
    found = contamination.clean(_filtered(own, chosen.data_filter)) if own else []
    if "shipped" in chosen.data:
        found += _written(utils.DATA / "instruction.jsonl", "shipped rows", chosen)
    fresh = deduplicate.unlike(made, found)
    if len(fresh) < len(made):
        print(f"{len(made) - len(fresh)} rows of this run repeat another one and are left out")
    found = fresh + found
    if chosen.eval_prompts:  # the gates of the course's own files were passed without them
        prompts = rows.prompts(chosen.eval_prompts, chosen.languages, quiet=True)
        found = contamination.clean(found, prompts)
    names = Counter(row["id"] for row in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise CourseError(
            f"The row id {twice[0]!r} occurs twice, so one copy could be held out and the other "
            "trained: name each source once in DATA, or rename or delete one row."
        )
    if not found:
        raise CourseError(
            f"No training row in {' or '.join(chosen.languages)}: check LANGUAGE and DATA."
        )
    return found


def _made(chosen: settings.Settings) -> list[dict]:
    """This run's rows; none, with a printed sentence, where it has none and other sources do."""
    path = chosen.folder / "instruction.jsonl"
    if path.exists():
        return _written(path, "rows of this run", chosen)
    if chosen.data == ("run",):
        raise CourseError(
            f"{utils.short(path)} is missing: run preprocess.ipynb first, or set DATA. If it ran "
            "on another machine, set SAVE_TO or RUN_ZIP."
        )
    others = ", ".join(source for source in chosen.data if source != "run")
    print(
        f"preprocess.ipynb has not run in this run folder, so only {others} is used (if it ran on "
        "another machine, set SAVE_TO or RUN_ZIP)"
    )
    return []


def _written(path: Path, what: str, chosen: settings.Settings) -> list[dict]:
    """Rows that the course wrote, in the chosen languages; a file that has changed since it passed
    the gate, or whose evaluation has, is compared again."""
    read = utils.read_jsonl(path, ROW_FIELDS)
    print(f"{len(read)} {what}: {utils.short(path)}")
    kept = [row for row in read if row["language"] in chosen.languages]
    return kept if contamination.passed(path) else contamination.clean(kept)


def _own(source: str, chosen: settings.Settings) -> list[dict]:
    """A user's rows as they were read, in the chosen languages."""
    read = rows.read(source, chosen.data_rows, chosen.seed, chosen.languages)
    for row in read:  # ids of a stranger's files are often 1, 2, 3 in each of them
        row["id"] = f"{row['source']}/{row['id']}"
    return _in_languages(read, chosen)


def _filtered(found: list[dict], wanted: str) -> list[dict]:
    """A user's rows past the filters that the course's own have passed, as DATA_FILTER says, with
    what was left out and why in print. The rules were written for what a teacher makes up, so what
    they reject of a person's rows is by default only said."""
    if wanted == "off":
        return found
    kept, pairs = deduplicate.deduplicated(found)
    for pair in pairs[:3]:
        alike = f"{pair['removed']} is like {pair['kept']} (ROUGE-L {pair['score']:.2f})"
        print(f"left out, a near-duplicate: {alike}")
    if len(pairs) > 3:
        print(f"... and {len(pairs) - 3:,} more of {len(found):,}")
    counts, examples = curation.rejections(kept)
    for rule, count in counts.most_common():
        does = "left out" if wanted == "rules" else "to be read"
        print(f"{does}, {rule}: {count:,}, such as {examples[rule][0]!r}")
    if counts and wanted != "rules":
        print("(such rows stay; DATA_FILTER=rules leaves them out, DATA_FILTER=off keeps all rows)")
    return kept if wanted != "rules" else [row for row in kept if not curation.objection(row)]


def _in_languages(found: list[dict], chosen: settings.Settings) -> list[dict]:
    """The rows in the chosen languages; how many were in others is printed."""
    others = Counter(row["language"] for row in found if row["language"] not in chosen.languages)
    if others:
        listed = ", ".join(f"{count:,} in {code}" for code, count in others.most_common())
        print(f"left out, because LANGUAGE is {', '.join(chosen.languages)}: {listed}")
    return [row for row in found if row["language"] in chosen.languages]
