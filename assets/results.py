"""The figures of a run, put into both READMEs: `make results` (ARGS="--run NAME" for another run
than runs/default/).

What it does: read `results.json` of `evaluation.ipynb` and `adapter/training.json` of
`train.ipynb`, and rewrite the numbers of the results table, the headline and the judge's accuracy
between comments such as `<!-- results:headline -->` and `<!-- /results -->`.
What it does not do: touch the sentences around them (read them again when the numbers change), or
describe another path than the default one, which is what the READMEs are about.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import prompts
import settings
import utils
from utils import CourseError

PAGES = ("README.md", "README.ko.md")


def fill(
    page: str,
    slots: dict[str, str | Callable[[str], str]],
    mark: str = "results",
    name: str = "the page",
) -> str:
    """The page with new contents between its comments.

    Args:
        slots: the new content of each slot, or a function of the old one. A slot may occur several
            times.
        mark: what the comments are called: `<!-- mark:slot -->old<!-- /mark -->`.

    Raises:
        CourseError: a slot is not in the page, or the page has one that is not in `slots`.
    """
    pattern = re.compile(rf"(<!-- {mark}:(\w+) -->)(.*?)(<!-- /{mark} -->)", re.DOTALL)
    there = {found[2] for found in pattern.finditer(page)}
    if there != set(slots):
        odd = sorted(there ^ set(slots))[0]
        raise CourseError(
            f"{name}: the comment <!-- {mark}:{odd} --> is "
            f"{'unknown' if odd in there else 'missing'}; put it right."
        )

    def new(found: re.Match) -> str:
        content = slots[found[2]]
        return found[1] + (content(found[3]) if callable(content) else content) + found[4]

    return pattern.sub(new, page)


def language(slot: str) -> str:
    """The language in which a page's slot is written: Korean, if it has Hangul."""
    return "ko" if prompts.LANGUAGES["ko"].share(slot) else "en"


def cells(table: str, values: list[tuple]) -> str:
    """A Markdown table with new values behind its first column; its head and its first column stay
    as they are written.

    Raises:
        CourseError: the table has more or fewer rows than there are values.
    """
    lines = table.strip().splitlines()
    if len(lines) != len(values) + 2:
        raise CourseError(
            f"The table {lines[0]!r} has {len(lines) - 2} rows, but there are {len(values)} "
            "values: change both together."
        )
    rows = []
    for line, row in zip(lines[2:], values, strict=True):
        said = [utils.translated(str(value), language(table)) for value in row]
        rows.append(f"| {line.split('|')[1].strip()} | {' | '.join(said)} |")
    return "\n".join(["", *lines[:2], *rows, ""])


def measured(results: dict, training: dict) -> list[tuple[str, str]]:
    """`(base, tuned)` for each row of the table, as it is printed.

    Args:
        results: `results.json`.
        training: `training.json` of the same adapter.

    Raises:
        CourseError: the two are of different trainings, or not of the default path.
    """
    stand_in = results["judge"].startswith(settings.REHEARSAL)
    if not stand_in or results["base_model"] != settings.PACKAGED_STUDENT:
        raise CourseError(
            f"The READMEs describe the default path, but this run was {results['base_model']} "
            f"judged by {results['judge']}: "
            'choose the run of `make run` with ARGS="--run NAME".'
        )
    loss = [training[when]["loss"] for when in ("before", "after")]
    if loss != [results["held_out"][when]["loss"] for when in ("before", "after")]:
        raise CourseError(
            "results.json is about another adapter than the one beside it: run evaluation.ipynb "
            "again, then `make results`."
        )
    beside, scores = results["measures"], results["single_scores"]

    def pair(key: str, form: str) -> tuple[str, str]:
        return form.format(beside["base"][key]), form.format(beside["tuned"][key])

    return [
        (f"{loss[0]:.3f}", f"{loss[1]:.3f} ({loss[1] / loss[0] - 1:+.1%})".replace("-", "−")),
        pair("loss on the references, nats per token", "{:.3f}"),
        pair("answers that end by themselves", "{:.0%}"),
        pair("answers that loop", "{:.0%}"),
        pair("ROUGE-L to the references", "{:.3f}"),
        (f"{scores['base']:.2f}", f"{scores['tuned']:.2f}")
        if scores
        else ("not shown", "not shown"),  # the gate is closed
    ]


def slots(results: dict, training: dict) -> dict[str, str | Callable[[str], str]]:
    """What `fill` puts into a README."""
    values, accuracy = measured(results, training), results["calibration"]["accuracy"]
    right = (
        f"{100 * accuracy['value']:.0f} % [{100 * accuracy['low']:.0f}, "
        f"{100 * accuracy['high']:.0f}]"
    )
    return {
        "table": lambda old: cells(old, values),
        "headline": lambda old: f"\n> {_headline(results, language(old))}\n",
        "accuracy": right,
        "pairs": str(results["calibration"]["n"]),
    }


def _headline(results: dict, code: str) -> str:
    return utils.translated_lines(results["headline"], code)


def slots_of(folder: Path) -> dict[str, str | Callable[[str], str]]:
    """`slots` of a run's folder; a CourseError where a file is missing."""
    files = folder / "results.json", folder / "adapter" / "training.json"
    results, training = (utils.read_json(file) for file in files)
    if not (results and training):
        raise CourseError(
            f"{utils.short(files[bool(results)])} is missing or torn: `make run` writes it; then "
            "`make results` again."
        )
    return slots(results, training)


def rewrite(
    description: str, pages: Sequence[str], mark: str, contents: Callable[[Path], dict]
) -> None:
    """The command line of the programs that put numbers into pages: `contents` of the folder of
    `--run` into all `pages`, or into none."""
    parser = argparse.ArgumentParser(description=description)
    settings.add_run_options(parser)
    options = parser.parse_args()
    folder = settings.run_folder(options.run, options.save_to)
    new = contents(folder)
    filled = {
        name: fill((utils.ROOT / name).read_text(encoding="utf-8"), new, mark, name)
        for name in pages
    }
    for name, page in filled.items():
        with utils.atomic(utils.ROOT / name) as file:
            file.write(page)
    print(
        f"{', '.join(pages)}: the figures of {utils.short(folder)}/. Read the sentences around "
        "them again."
    )


def main() -> None:
    rewrite(__doc__.splitlines()[0], PAGES, "results", slots_of)


if __name__ == "__main__":
    utils.run_command(main)
