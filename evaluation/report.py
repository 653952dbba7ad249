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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import regex

import prompts
import settings
import utils
from evaluation import outcomes
from evaluation.outcomes import Outcome
from utils import CourseError

FIELDS = ("id", "language", "category", "prompt", "base", "tuned", "outcome", "orders")
WORST_FIRST = (Outcome.LOSS, Outcome.INCONSISTENT, Outcome.FAILED, Outcome.TIE, Outcome.WIN)
# What a reader cannot see, or what changes how the text around it is read: controls, overrides of
# the writing direction, soft hyphens, spaces without width, tags, Hangul fillers, and halves of
# characters, which no UTF-8 file can hold. Joiners between two signs and variants of emoji stay.
UNSEEN = regex.compile(
    r"(?V1)[[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]"
    r"--[\t\n\u200c\u200d\ufe00-\ufe0f]]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)


def write(records: Sequence[dict], results: dict, path: str | Path) -> Path:
    """Write the page of a run to `path`.

    Args:
        records: one a prompt, as `Judge.compare` returns them and `join` adds to: `id, language,
            category, prompt, base, tuned, outcome, value, orders`, and where there are any
            `reference`, `scores` (`base`, `tuned`), `difficulty` and `follow_ups`, the later turns,
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
    if missing := [field for field in ("headline", "judge") if not results.get(field)]:
        raise CourseError(
            f"The report needs results[{missing[0]!r}]: run the cells above it again."
        )
    contrary = {record["id"] for record in outcomes.contradictions(records)}
    names = tuple(results.get("names", ("base", "tuned")))
    code = _language(records)
    label = _labels(code, names)
    cards = "\n".join(
        _card(record, record["id"] in contrary, names) for record in sorted(records, key=_badness)
    )
    policy = (
        f"default-src 'none'; style-src '{source_hash(CSS)}'; script-src '{source_hash(JS)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = label["title"].replace("{run}", results.get("run", "run"))
    return f"""<!doctype html>
<html lang="{code}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{shown(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{shown(title)}</h1>
<p class="headline">{shown(results["headline"])}</p>
{_facts(results, label)}
{_bar(records, label)}
</header>
{_filters(records, label)}
<main>
{cards}
</main>
<script>{JS}</script>
</body>
</html>
"""


def _language(records: Sequence[dict]) -> str:
    """The language of the page around the prompts: theirs where they have one, else English."""
    codes = {record["language"] for record in records}
    return codes.pop() if len(codes) == 1 and codes <= prompts.LANGUAGES.keys() else "en"


def _labels(code: str, names: tuple[str, str]) -> dict[str, str]:
    """The labels in a language (English for one that the course does not know), with the names of
    the models."""
    known = prompts.LANGUAGES.get(code, prompts.LANGUAGES["en"])
    other, model = names
    return {
        key: text.replace("{other}", other).replace("{model}", model)
        for key, text in known.page.items()
    }


def source_hash(source: str) -> str:
    """How a page's policy (CSP) knows its own script or style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def shown(value) -> str:
    """Anything as HTML text that cannot become markup, with its invisible characters by number."""
    escaped = html.escape(str(value).replace("\r\n", "\n"))
    return UNSEEN.sub(lambda found: f'<span class="unseen">U+{ord(found[0]):04X}</span>', escaped)


def _name(value) -> str:
    """Anything as the value of an attribute."""
    return html.escape(UNSEEN.sub("\ufffd", str(value)))


def _said(text: str, language: str) -> str:
    """What a person or a model wrote, with its own direction of writing and all its line breaks."""
    if not text.strip():
        return f'<div class="said"><em>{shown(_labels(language, ("", ""))["empty"])}</em></div>'
    return f'<div class="said" dir="auto" lang="{_name(language)}">{shown(text)}</div>'


def _badness(record: dict) -> tuple:
    """Losses first, the worst of them on top; then verdicts that follow the position, failures,
    ties and wins."""
    scores = record.get("scores") or {}
    base, tuned = scores.get("base"), scores.get("tuned")
    gap = 0 if base is None or tuned is None else tuned - base
    return WORST_FIRST.index(record["outcome"]), gap, 0 if tuned is None else tuned


# --- the head of the page -------------------------------------------------------------------------


def _facts(results: dict, label: dict[str, str]) -> str:
    rows = [("judge", results["judge"])]
    rows.append(("calibration", results.get("calibration") or label["uncalibrated"]))
    rows += [(key, results[key]) for key in ("teacher", "base_model") if results.get(key)]
    rows += [("note", note) for note in results.get("notes", ())]
    items = (f"<div><dt>{label[key]}</dt><dd>{shown(value)}</dd></div>" for key, value in rows)
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


def _filters(records: Sequence[dict], label: dict[str, str]) -> str:
    """Hidden until the script runs, because without it they would do nothing."""
    languages = sorted({record["language"] for record in records})
    categories = sorted({record["category"] for record in records})
    choices = {
        "outcome": {kind.value: label[kind] for kind in WORST_FIRST},
        "language": {code: settings.LANGUAGES.get(code, code) for code in languages},
        "category": {name: name.replace("_", " ") for name in categories},
    }
    lists = []
    for field, values in choices.items():
        counts = Counter(record[field] for record in records)
        options = "".join(
            f'<option value="{_name(value)}">{shown(text)} ({counts[value]})</option>'
            for value, text in values.items()
        )
        lists.append(
            f'<label>{label[field]}<select name="{field}"><option value="">{label["all"]}'
            f"</option>{options}</select></label>"
        )
    return (
        f'<form class="filters" aria-label="{label["filters"]}" hidden>{"".join(lists)}'
        f'<button type="reset">{label["show_all"]}</button>'
        f'<output data-text="{label["shown"]}"></output></form>'
    )


# --- one prompt -----------------------------------------------------------------------------------


def _card(record: dict, contradiction: bool, names: tuple[str, str] = ("base", "tuned")) -> str:
    language, kind = record["language"], Outcome(record["outcome"])
    label = _labels(language, names)
    chips = [f'<span class="chip {kind}">{shown(label[kind])}</span>']
    chips += [f'<span class="chip">{shown(settings.LANGUAGES.get(language, language))}</span>']
    chips += [f'<span class="chip">{shown(record["category"].replace("_", " "))}</span>']
    if contradiction:
        chips.append(f'<span class="chip failed">{label["opposite"]}</span>')
    parts = [
        f'<article lang="{_name(language)}" data-language="{_name(language)}" '
        f'data-outcome="{kind}" data-category="{_name(record["category"])}">',
        f'<h2>{shown(record["id"])}</h2><p class="chips">{"".join(chips)}</p>',
        f"<h3>{label['prompt']}</h3>{_said(record['prompt'], language)}",
        _pair(record["base"], record["tuned"], record, record.get("scores") or {}, names),
    ]
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
    label = _labels(language, names)
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
        error = f'<p class="error">{shown(order["error"])}</p>' if order.get("error") else ""
        saw = label["saw"].replace("{letter}", order["tuned_is"])
        saw = saw.replace("{verdict}", verdict or label["unreadable"])
        said = _said(order.get("explanation") or "", record["language"])
        reasons.append(f"<dt>{shown(where)}: {shown(saw)}</dt><dd>{error}{said}</dd>")
    return (
        f'<details class="verdicts"><summary>{label["verdicts"]}: '
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
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 0 0 1rem;
  content-visibility: auto; contain-intrinsic-size: auto 24rem; }
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
const choices = [...form.querySelectorAll("select")], told = form.querySelector("output");
function show() {
  const chosen = choices.filter(choice => choice.value);
  let shown = 0;
  for (const card of cards) {
    const hide = !chosen.every(choice => card.dataset[choice.name] === choice.value);
    if (card.hidden !== hide) card.hidden = hide;
    shown += !hide;
  }
  told.textContent = told.dataset.text.replace("{shown}", shown).replace("{all}", cards.length);
}
form.addEventListener("change", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
show();
"""
