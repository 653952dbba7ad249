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

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

import settings
import utils
from evaluation import outcomes
from evaluation.outcomes import Outcome
from utils import CourseError

FIELDS = ("id", "language", "category", "prompt", "base", "tuned", "outcome", "orders")
WORST_FIRST = (Outcome.LOSS, Outcome.INCONSISTENT, Outcome.FAILED, Outcome.TIE, Outcome.WIN)
LABELS = {
    Outcome.WIN: "tuned wins",
    Outcome.LOSS: "tuned loses",
    Outcome.TIE: "tie",
    Outcome.INCONSISTENT: "inconsistent, follows the position",
    Outcome.FAILED: "failed, no readable verdict",
}
# control characters, marks and overrides of writing direction, and halves of characters, which no
# UTF-8 file can hold
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def write(records: Sequence[dict], results: dict, path: str | Path) -> Path:
    """Write the page of a run to `path`.

    Args:
        records: one a prompt, as `Judge.compare` returns them and `join` adds to: `id, language,
            category, prompt, base, tuned, outcome, value, orders`, and where there are any
            `reference`, `scores` (`base`, `tuned`), `difficulty` and `follow_ups`, the later turns,
            each with `prompt`, `reference`, `base` and `tuned`.
        results: `headline` (one sentence), `judge` and `teacher` as they are to be named, and where
            known `run`, `base_model`, `calibration` (one sentence) and `notes` (more sentences,
            such as a judge that is also the teacher).

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
        record = {key: item[key] for key in ("prompt", "reference") if item.get(key)} | verdict
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
    if missing := [field for field in ("headline", "judge", "teacher") if not results.get(field)]:
        raise CourseError(
            f"The report needs results[{missing[0]!r}]: run the cells above it again."
        )
    contrary = {record["id"] for record in outcomes.contradictions(records)}
    cards = "\n".join(
        _card(record, record["id"] in contrary) for record in sorted(records, key=_badness)
    )
    policy = (
        f"default-src 'none'; style-src '{_hash(CSS)}'; script-src '{_hash(JS)}'; base-uri "
        "'none'; form-action 'none'"
    )
    title = f"{results.get('run', 'run')}: base against tuned"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{_text(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<p class="headline">{_text(results["headline"])}</p>
{_facts(results)}
{_bar(records)}
</header>
{_filters(records)}
<main>
{cards}
</main>
<script>{JS}</script>
</body>
</html>
"""


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _text(value) -> str:
    """Anything as text that cannot become markup."""
    escaped = html.escape(str(value).replace("\r\n", "\n"))
    return UNSEEN.sub(lambda found: f'<span class="unseen">U+{ord(found[0]):04X}</span>', escaped)


def _name(value) -> str:
    """Anything as the value of an attribute."""
    return html.escape(UNSEEN.sub("\ufffd", str(value)))


def _said(text: str, language: str) -> str:
    """What a person or a model wrote, with its own direction of writing and all its line breaks."""
    if not text.strip():
        return '<div class="said"><em>empty</em></div>'
    return f'<div class="said" dir="auto" lang="{_name(language)}">{_text(text)}</div>'


def _badness(record: dict) -> tuple:
    """Losses first, the worst of them on top; then verdicts that follow the position, failures,
    ties and wins."""
    scores = record.get("scores") or {}
    base, tuned = scores.get("base"), scores.get("tuned")
    gap = 0 if base is None or tuned is None else tuned - base
    return WORST_FIRST.index(record["outcome"]), gap, 0 if tuned is None else tuned


# --- the head of the page -------------------------------------------------------------------------


def _facts(results: dict) -> str:
    facts = {
        "Judge": "judge",
        "Calibration": "calibration",
        "Teacher": "teacher",
        "Base model": "base_model",
    }
    rows = [(name, results[key]) for name, key in facts.items() if results.get(key)]
    if not results.get("calibration"):
        rows.insert(1, ("Calibration", "not done: nothing shows that this judge may be believed"))
    rows += [("Note", note) for note in results.get("notes", ())]
    return (
        "<dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in rows)
        + "</dl>"
    )


def _bar(records: Sequence[dict]) -> str:
    """The five outcomes as a bar, and in words below it, none left out."""
    counts, left, parts = outcomes.count(records), 0.0, []
    for kind in Outcome:
        width = 100 * counts[kind] / max(1, len(records))
        parts.append(f'<rect class="{kind}" x="{left:.3f}" width="{width:.3f}" height="6"/>')
        left += width
    words = "".join(
        f'<li><span class="key {kind}"></span>{LABELS[kind]}: {counts[kind]}</li>'
        for kind in Outcome
    )
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
        f'<ul class="legend" aria-label="Outcomes of {len(records)} prompts">{words}</ul>'
    )


def _filters(records: Sequence[dict]) -> str:
    """Hidden until the script runs, because without it they would do nothing."""
    choices = {
        "outcome": {kind.value: LABELS[kind] for kind in WORST_FIRST},
        "language": {
            code: settings.LANGUAGES.get(code, code)
            for code in sorted({record["language"] for record in records})
        },
        "category": {
            name: name.replace("_", " ")
            for name in sorted({record["category"] for record in records})
        },
    }
    lists = []
    for field, values in choices.items():
        counts = {value: sum(record[field] == value for record in records) for value in values}
        options = "".join(
            f'<option value="{_name(value)}">{_text(label)} ({counts[value]})</option>'
            for value, label in values.items()
        )
        lists.append(
            f'<label>{field}<select name="{field}"><option '
            f'value="">all</option>{options}</select></label>'
        )
    return (
        f'<form class="filters" aria-label="Which prompts to show" hidden>{"".join(lists)}'
        '<button type="reset">show all</button><output></output></form>'
    )


# --- one prompt -----------------------------------------------------------------------------------


def _card(record: dict, contradiction: bool) -> str:
    language, kind = record["language"], Outcome(record["outcome"])
    scores = record.get("scores") or {}
    chips = [f'<span class="chip {kind}">{LABELS[kind]}</span>']
    chips += [f'<span class="chip">{_text(settings.LANGUAGES.get(language, language))}</span>']
    chips += [f'<span class="chip">{_text(record["category"].replace("_", " "))}</span>']
    chips += (
        ['<span class="chip failed">single scores say the opposite</span>'] if contradiction else []
    )
    parts = [
        f'<article data-outcome="{kind}" data-language="{_name(language)}" '
        f'data-category="{_name(record["category"])}">',
        f'<h2>{_text(record["id"])}</h2><p class="chips">{"".join(chips)}</p>',
        f"<h3>Prompt</h3>{_said(record['prompt'], language)}",
        _pair(record["base"], record["tuned"], language, scores),
    ]
    for turn in record.get("follow_ups", ()):
        parts.append(f"<h3>Follow-up</h3>{_said(turn['prompt'], language)}")
        parts.append(_pair(turn["base"], turn["tuned"], language, {}))
    if record.get("reference"):
        parts.append(
            "<details><summary>Reference "
            f"answer</summary>{_said(record['reference'], language)}</details>"
        )
    return "".join([*parts, _verdicts(record), "</article>"])


def _pair(base: str, tuned: str, language: str, scores: dict) -> str:
    columns = []
    for name, answer in (("base", base), ("tuned", tuned)):
        if not scores:
            score = ""
        elif scores.get(name) is None:
            score = ' <span class="score">no score</span>'
        else:
            score = f' <span class="score">{scores[name]:g} of 10</span>'
        columns.append(
            "<section "
            f'class="{name}"><h3>{name.capitalize()}{score}</h3>{_said(answer, language)}</section>'
        )
    return f'<div class="pair">{"".join(columns)}</div>'


def _verdicts(record: dict) -> str:
    """Both verdicts in the summary, the judge's reasons below it."""
    turns = len({order.get("turn", 1) for order in record["orders"]}) > 1
    brief, reasons = [], []
    for order in record["orders"]:
        winner = {"tie": "tie", None: "no verdict"}.get(
            order["verdict"], "tuned" if order["verdict"] == order["tuned_is"] else "base"
        )
        where = (
            f"turn {order.get('turn', 1)}, " * turns
            + f"tuned {'first' if order['tuned_is'] == 'A' else 'second'}"
        )
        brief.append(f"{where}: <strong>{winner}</strong>")
        error = f'<p class="error">{_text(order["error"])}</p>' if order.get("error") else ""
        shown = (
            f"the judge saw tuned as {order['tuned_is']} and said "
            f"{order['verdict'] or 'nothing readable'}"
        )
        said = _said(order.get("explanation") or "", record["language"])
        reasons.append(f"<dt>{where}: {_text(shown)}</dt><dd>{error}{said}</dd>")
    return (
        '<details class="verdicts"><summary>Verdicts: '
        f"{'; '.join(brief)}</summary><dl>{''.join(reasons)}</dl></details>"
    )


# --- style and script -----------------------------------------------------------------------------

CSS = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --ink: #1b1f24; --soft: #505a66; --line: #d5dae1; --link: #0b57b0;
  --win: #2e8b57; --loss: #c0504d; --tie: #98a1ad; --inconsistent: #d09a1e; --failed: #3f4650;
  --win-chip: #d9f2e3; --loss-chip: #fbdedd; --tie-chip: #e6e9ee; --inconsistent-chip: #fdeec5; --failed-chip: #dfe2e6; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1d2127; --ink: #e8eaed; --soft: #aab3be; --line: #39414b; --link: #8ab8ff;
  --win: #43b077; --loss: #d96b68; --tie: #7b8592; --inconsistent: #dcae45; --failed: #c3cad3;
  --win-chip: #17442b; --loss-chip: #5a2423; --tie-chip: #343b45; --inconsistent-chip: #574310; --failed-chip: #454c56; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", NanumGothic, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: .85rem; margin: .8rem 0 .2rem; color: var(--soft); font-weight: 600; }
.headline { font-size: 1.15rem; font-weight: 600; margin: 0 0 1rem; overflow-wrap: anywhere; }
header dl { margin: 0 0 1rem; display: grid; gap: .25rem; }
header dl div { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: .5rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: block; width: 100%; height: 1.4rem; border-radius: .3rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .5rem 0 1rem; font-size: .9rem; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .4rem; }
rect.win { fill: var(--win); } rect.loss { fill: var(--loss); } rect.tie { fill: var(--tie); }
rect.inconsistent { fill: var(--inconsistent); } rect.failed { fill: var(--failed); }
.key.win { background: var(--win); } .key.loss { background: var(--loss); } .key.tie { background: var(--tie); }
.key.inconsistent { background: var(--inconsistent); } .key.failed { background: var(--failed); }
.filters { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; align-items: end;
  padding: .8rem 0; border-top: 1px solid var(--line); }
.filters label { display: grid; gap: .2rem; font-size: .85rem; color: var(--soft); }
select, button { font: inherit; min-height: 2.75rem; width: 100%; padding: .3rem .5rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--soft); border-radius: .4rem; }
output { padding: .6rem 0; font-weight: 600; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 0 0 1rem; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; margin: .4rem 0 0; }
.chip { font-size: .82rem; padding: .1rem .55rem; border-radius: 1rem; background: var(--tie-chip); }
.chip.win { background: var(--win-chip); } .chip.loss { background: var(--loss-chip); }
.chip.inconsistent { background: var(--inconsistent-chip); } .chip.failed { background: var(--failed-chip); }
.said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.said:lang(ko) { word-break: keep-all; }
.unseen { font: .75em ui-monospace, monospace; border: 1px solid currentColor; border-radius: .2rem; padding: 0 .2rem; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1.5rem; }
.score { color: var(--ink); margin-left: .4rem; }
details { margin-top: .8rem; border-top: 1px solid var(--line); padding-top: .5rem; }
summary { cursor: pointer; padding: .3rem 0; color: var(--link); overflow-wrap: anywhere; }
.verdicts dl { margin: 0; } .verdicts dt { margin-top: .5rem; font-size: .85rem; }
.error { margin: 0; font-style: italic; }
@media (max-width: 44rem) { .pair, header dl div { grid-template-columns: minmax(0, 1fr); } header dl div { gap: 0; } }
@media print { .filters { display: none; } article { break-inside: avoid; } }
"""  # noqa: E501

JS = """
const form = document.querySelector("form"), cards = [...document.querySelectorAll("article")];
const choices = [...form.querySelectorAll("select")];
function show() {
  for (const card of cards) card.hidden = !choices.every(choice => !choice.value || card.dataset[choice.name] === choice.value);
  form.querySelector("output").textContent = `${cards.filter(card => !card.hidden).length} of ${cards.length} prompts`;
}
form.addEventListener("change", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
show();
"""  # noqa: E501
