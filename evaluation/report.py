"""The report page of a run: every prompt with both answers, both verdicts and the judge's reasons,
in one HTML file.

What it does: turn records and results into a page that needs no network, works on a phone, in the
dark and with the keyboard, and can be
sent to someone by mail. What it does not do: compute anything that it shows (outcomes.py,
stats.py).

What models wrote is data, never markup: it is escaped, characters that would change how the text
around them is read are shown by their number, and the page's policy (CSP) runs only the one script
and the one style sheet below, which it knows by their hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import prompts
import settings
import utils
from evaluation import outcomes
from evaluation.outcomes import Outcome
from pages import attribute, choice, document, shown
from utils import CourseError

FIELDS = ("id", "language", "category", "prompt", "base", "tuned", "outcome", "orders")
WORST_FIRST = (Outcome.LOSS, Outcome.INCONSISTENT, Outcome.FAILED, Outcome.TIE, Outcome.WIN)


def write(records: Sequence[dict], results: dict, path: str | Path) -> Path:
    """Write the page of a run to `path`.

    Args:
        records: one a prompt, as `Judge.compare` returns them and `join` adds to: `id, language,
            category, prompt, base, tuned, outcome, value, orders`, and where there are any
            `system`, `reference`, `scores` (`base`, `tuned`), `difficulty` and `follow_ups`, the
            later turns,
            each with `prompt`, `reference`, `base` and `tuned`.
        results: `headline`, and `judge` as it is to be named; where known `teacher`, `run`,
            `base_model`, `calibration` (in sentences), `notes` (more sentences, such as a judge
            that is also the teacher) and `names` of the two models, if not "base" and "tuned".

    Raises:
        CourseError: a record or the results lack a field that the page cannot do without.
    """
    with utils.atomic(path) as file:
        file.write(page(records, results))
    return Path(path)


def join(
    verdicts: Sequence[dict], items: Sequence[dict], base: Sequence, tuned: Sequence
) -> list[dict]:
    """The records of `write`: verdicts with the prompts and the answers that they are about, in the
    same order.

    Args:
        base, tuned: an answer is one text, or one text a turn.
    """
    joined = []
    for verdict, item, *answers in zip(verdicts, items, base, tuned, strict=True):
        if verdict["id"] != item["id"]:
            raise CourseError(
                f"The verdict on {verdict['id']!r} stands where {item['id']!r} is expected: judge "
                "these prompts again."
            )
        record = {
            key: item[key] for key in ("system", "prompt", "reference") if item.get(key)
        } | verdict
        said = [[answer] if isinstance(answer, str) else answer for answer in answers]
        record |= {"base": said[0][0], "tuned": said[1][0]}
        later = [
            turn | {"base": ours, "tuned": theirs}
            for turn, ours, theirs in zip(
                item.get("follow_ups", ()), said[0][1:], said[1][1:], strict=True
            )
        ]
        joined.append(record | ({"follow_ups": later} if later else {}))
    return joined


def page(records: Sequence[dict], results: dict) -> str:
    """The page as one string; arguments as for `write`."""
    for record in records:
        if missing := [field for field in FIELDS if field not in record]:
            raise CourseError(
                f"The report needs the field {missing[0]!r} of every prompt, and "
                f"{record.get('id', 'one')!r} lacks it."
            )
    if missing := [field for field in ("headline", "judge") if not results.get(field)]:
        raise CourseError(
            f"The report needs results[{missing[0]!r}]: run the cells above it again."
        )
    contrary = {record["id"] for record in outcomes.contradictions(records)}
    code = _language(records)
    base, tuned = results.get("names", ("base", "tuned"))
    names = utils.translated(base, code), utils.translated(tuned, code)
    label = _labels(code, names)
    cards = "\n".join(
        _card(record, record["id"] in contrary, names) for record in sorted(records, key=_badness)
    )
    title = label["title"].replace("{run}", results.get("run", "run"))
    body = f"""<header>
<h1>{shown(title)}</h1>
<p class="headline">{shown(utils.translated_lines(results["headline"], code))}</p>
{_facts(results, label, code)}
{_bar(records, label)}
</header>
{_filters(records, label, code)}
<main>
{cards}
</main>"""
    return document(title, code, body)


def _language(records: Sequence[dict]) -> str:
    """The language of the page around the prompts: the reader's, or theirs if they share one."""
    codes = {record["language"] for record in records}
    return prompts.around(codes.pop()) if len(codes) == 1 else utils.reader()


def _labels(code: str, names: tuple[str, str]) -> dict[str, str]:
    """The labels in a language (English for one that the course does not know), with the names of
    the models."""
    known = prompts.LANGUAGES.get(code, prompts.LANGUAGES["en"])
    other, model = names
    return {
        key: text.replace("{other}", other).replace("{model}", model)
        for key, text in known.page.items()
    }


def _said(text: str, language: str) -> str:
    """What a person or a model wrote, with its own direction of writing and all its line breaks."""
    if not text.strip():
        label = _labels(prompts.around(language), ("", ""))
        return f'<div class="said"><em>{shown(label["empty"])}</em></div>'
    return f'<div class="said" dir="auto" lang="{attribute(language)}">{shown(text)}</div>'


def _badness(record: dict) -> tuple:
    """Losses first, the worst of them on top; then verdicts that follow the position, failures,
    ties and wins."""
    scores = record.get("scores") or {}
    base, tuned = scores.get("base"), scores.get("tuned")
    gap = 0 if base is None or tuned is None else tuned - base
    return WORST_FIRST.index(record["outcome"]), gap, 0 if tuned is None else tuned


# --- the head of the page -------------------------------------------------------------------------


def _facts(results: dict, label: dict[str, str], language: str) -> str:
    rows = [("judge", results["judge"])]
    rows.append(("calibration", results.get("calibration") or label["uncalibrated"]))
    rows += [(key, results[key]) for key in ("teacher", "base_model") if results.get(key)]
    rows += [("note", note) for note in results.get("notes", ())]
    items = []
    for key, value in rows:
        told = shown(utils.translated(value, language))
        items.append(f"<div><dt>{label[key]}</dt><dd>{told}</dd></div>")
    return f"<dl>{''.join(items)}</dl>"


def _bar(records: Sequence[dict], label: dict[str, str]) -> str:
    """The five outcomes as a bar, and in words below it, none left out."""
    counts, left, parts = outcomes.count(records), 0.0, []
    for kind in Outcome:
        width = 100 * counts[kind] / max(1, len(records))
        parts.append(f'<rect class="{kind}" x="{left:.3f}" width="{width:.3f}" height="6"/>')
        left += width
    words = "".join(
        f'<li><span class="key {kind}"></span>{shown(label[kind])}: {counts[kind]}</li>'
        for kind in Outcome
    )
    heading = label["outcomes"].replace("{n}", str(len(records)))
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
        f'<ul class="legend" aria-label="{heading}">{words}</ul>'
    )


def _filters(records: Sequence[dict], label: dict[str, str], language: str) -> str:
    """Hidden until the script runs, because without it they would do nothing."""
    languages = sorted({record["language"] for record in records})
    categories = sorted({record["category"] for record in records})
    choices = {
        "outcome": {kind.value: label[kind] for kind in WORST_FIRST},
        "language": {code: settings.LANGUAGES.get(code, code) for code in languages},
        "category": {name: name for name in categories},
    }
    lists = []
    for field, values in choices.items():
        counts = Counter(record[field] for record in records)
        options = [
            (value, f"{_word(text, language)} ({counts[value]})") for value, text in values.items()
        ]
        lists.append(choice(label[field], field, label["all"], options))
    return (
        f'<form class="filters" aria-label="{label["filters"]}" hidden>{"".join(lists)}'
        f'<button type="reset">{label["show_all"]}</button>'
        f'<output data-text="{label["shown"]}"></output></form>'
    )


def _word(word: str, language: str) -> str:
    """A word of the data, such as the name of a category, as a page shows it."""
    return utils.translated(word, language).replace("_", " ")


# --- one prompt -----------------------------------------------------------------------------------


def _card(record: dict, contradiction: bool, names: tuple[str, str] = ("base", "tuned")) -> str:
    language, kind = record["language"], Outcome(record["outcome"])
    code = prompts.around(language)
    label = _labels(code, names)
    chips = [f'<span class="chip {kind}">{shown(label[kind])}</span>']
    for told in (settings.LANGUAGES.get(language, language), record["category"]):
        chips.append(f'<span class="chip">{shown(_word(told, code))}</span>')
    if contradiction:
        chips.append(f'<span class="chip failed">{label["opposite"]}</span>')
    parts = [
        f'<article lang="{attribute(code)}" data-language="{attribute(language)}" '
        f'data-outcome="{kind}" data-category="{attribute(record["category"])}">',
        f'<h2>{shown(record["id"])}</h2><p class="chips">{"".join(chips)}</p>',
    ]
    if record.get("system"):
        parts.append(f"<h3>{label['system']}</h3>{_said(record['system'], language)}")
    parts.append(f"<h3>{label['prompt']}</h3>{_said(record['prompt'], language)}")
    parts.append(_pair(record["base"], record["tuned"], record, record.get("scores") or {}, names))
    for turn in record.get("follow_ups", ()):
        parts.append(f"<h3>{label['follow_up']}</h3>{_said(turn['prompt'], language)}")
        parts.append(_pair(turn["base"], turn["tuned"], record, {}, names))
    if record.get("reference"):
        parts.append(
            f"<details><summary>{label['reference']}</summary>"
            f"{_said(record['reference'], language)}</details>"
        )
    return "".join([*parts, _verdicts(record, label, names), "</article>"])


def _pair(base: str, tuned: str, record: dict, scores: dict, names: tuple[str, str]) -> str:
    language = record["language"]
    label = _labels(prompts.around(language), names)
    columns = []
    for name, key, answer in zip(names, ("base", "tuned"), (base, tuned), strict=True):
        score = ""
        if scores:
            value = scores.get(key)
            told = label["no_score"]
            if value is not None:
                told = label["score"].replace("{score}", f"{value:g}")
            score = f' <span class="score">{told}</span>'
        columns.append(
            f'<section class="{key}"><h3>{shown(name)}{score}</h3>{_said(answer, language)}'
            "</section>"
        )
    return f'<div class="pair">{"".join(columns)}</div>'


def _verdicts(record: dict, label: dict[str, str], names: tuple[str, str]) -> str:
    """Both verdicts in the summary, the judge's reasons below it."""
    other, model = names
    code = prompts.around(record["language"])
    two_turns = len({order.get("turn", 1) for order in record["orders"]}) > 1
    brief, reasons = [], []
    for order in record["orders"]:
        verdict = order["verdict"]
        winner = {"tie": label["tie"], None: label["no_verdict"]}.get(verdict, other)
        if verdict == order["tuned_is"]:
            winner = model
        where = label["first"] if order["tuned_is"] == "A" else label["second"]
        if two_turns:
            where = f"{label['turn'].replace('{turn}', str(order.get('turn', 1)))}, {where}"
        brief.append(f"{shown(where)}: <strong>{shown(winner)}</strong>")
        error = ""
        if order.get("error"):
            error = f'<p class="error">{shown(utils.translated(order["error"], code))}</p>'
        saw = label["saw"].replace("{letter}", order["tuned_is"])
        saw = saw.replace("{verdict}", verdict or label["unreadable"])
        reason = order.get("explanation") or ""
        told = utils.translated(reason, code)  # the stand-in's has its translation
        said = _said(told, record["language"] if told == reason else code)
        reasons.append(f"<dt>{shown(where)}: {shown(saw)}</dt><dd>{error}{said}</dd>")
    return (
        f'<details class="verdicts"><summary>{label["verdicts"]}: '
        f"{'; '.join(brief)}</summary><dl>{''.join(reasons)}</dl></details>"
    )
