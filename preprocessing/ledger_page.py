"""The ledger of a run as a page: every raw row with its fate, the reason, and the kept row that it
repeats beside it.

What it does: turn `ledger.jsonl` into one HTML file that needs no network, works on a phone and
with the keyboard, with filters and thirty rows at random, because rules are judged by reading what
they removed. What it does not do: decide anything (ledger.py keeps the books).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import prompts
import settings
import utils
from pages import attribute, choice, document, shown
from preprocessing import rows as reader


def write(ledger: Sequence[dict], known: Sequence[dict], run: str, path: str | Path) -> Path:
    """Write the page of a ledger.

    Args:
        ledger: rows with `id`, `language`, `category`, a text, `fate` ("kept" or the stage that
            rejected them) and, where they went, `reason`, `neighbour` and `score`.
        known: what a neighbour's id can name beside the rows themselves: the seeds.
        run: its name, for the title.
    """
    by_id = {row["id"]: row for row in [*known, *ledger]}
    languages = {row["language"] for row in ledger}
    code = prompts.around(languages.pop()) if len(languages) == 1 else utils.reader()
    label = _labels(code)
    cards = "\n".join(_card(row, by_id) for row in ledger)
    title = label["ledger"].replace("{run}", run)
    head = f"<header><h1>{shown(title)}</h1></header>{_filters(ledger, label, code)}"
    with utils.atomic(path) as file:
        file.write(document(title, code, f"{head}<main>{cards}</main>"))
    return Path(path)


def _labels(code: str) -> dict[str, str]:
    return prompts.LANGUAGES.get(code, prompts.LANGUAGES["en"]).page


def _filters(ledger: Sequence[dict], label: dict[str, str], language: str) -> str:
    """One list for each of stage, language and category; hidden until the script runs."""
    lists = []
    for name, field in (("stage", "fate"), ("language", "language"), ("category", "category")):
        counts = Counter(str(row[field]) for row in ledger)
        options = []
        for value, count in counts.most_common():
            told = utils.translated(settings.LANGUAGES.get(value, value), language)
            if value == "kept":
                told = label["kept"]
            options.append((value, f"{told.replace('_', ' ')} ({count})"))
        lists.append(choice(label[name], name, label["all"], options))
    return (
        f'<form class="filters" aria-label="{label["filter_rows"]}" hidden>{"".join(lists)}'
        f'<button type="button" class="random">{label["random"]}</button>'
        f'<button type="reset">{label["show_all"]}</button>'
        f'<output data-text="{label["shown_rows"]}"></output></form>'
    )


def _card(row: dict, by_id: dict[str, dict]) -> str:
    language, fate = row["language"], row["fate"]
    code = prompts.around(language)
    label = _labels(code)
    kind = "win" if fate == "kept" else "loss"
    stage = label["kept"] if fate == "kept" else utils.translated(fate, code)
    chips = [f'<span class="chip {kind}">{shown(stage)}</span>']
    for told in (settings.LANGUAGES.get(language, language), str(row["category"])):
        chip = utils.translated(told, code).replace("_", " ")
        chips.append(f'<span class="chip">{shown(chip)}</span>')
    parts = [
        f'<article lang="{attribute(code)}" data-language="{attribute(language)}" '
        f'data-stage="{attribute(fate)}" data-category="{attribute(row["category"])}">',
        f'<h2>{shown(row["id"])}</h2><p class="chips">{"".join(chips)}</p>',
    ]
    if row.get("reason"):
        parts.append(f'<p class="error">{shown(utils.translated(row["reason"], code))}</p>')
    neighbour = by_id.get(row.get("neighbour", ""))
    if neighbour:
        beside = label["neighbour"].replace("{score}", f"{row['score']:.2f}")
        parts.append(
            f'<div class="pair"><section><h3>{label["row"]}</h3>{_texts(row, label)}</section>'
            f"<section><h3>{shown(beside)}: {shown(neighbour['id'])}</h3>"
            f"{_texts(neighbour, label)}</section></div>"
        )
    else:
        parts.append(_texts(row, label))
    critique = row.get("critique")
    if isinstance(critique, dict):
        told = label["critique"].replace("{score}", str(critique.get("score", "?")))
        parts.append(
            f"<details><summary>{shown(told)}</summary>{_said(critique.get('reason'), language)}"
            "</details>"
        )
    return "".join([*parts, "</article>"])


def _texts(row: dict, label: dict[str, str]) -> str:
    """What the row says, turn by turn."""
    turns = zip(reader.questions(row), reader.answers(row), strict=False)
    parts = []
    for question, answer in turns:
        parts.append(f"<h3>{label['prompt']}</h3>{_said(question, row['language'])}")
        parts.append(f"<h3>{label['answer']}</h3>{_said(answer, row['language'])}")
    return "".join(parts)


def _said(text: object, language: str) -> str:
    told = shown(text) if str(text or "").strip() else "<em>...</em>"
    return f'<div class="said" dir="auto" lang="{attribute(language)}">{told}</div>'
