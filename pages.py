"""Pages that the course writes: what people and models wrote as HTML text that cannot become
markup, and tables of it in a notebook.

What it does: escape, show characters that nobody sees by their number, and let a page run only the
script and the style sheet that it knows. What it does not do: say what stands on a page
(evaluation/report.py, preprocessing/ledger_page.py)."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import regex

import utils

if TYPE_CHECKING:
    import pandas
    from pandas.io.formats.style import Styler


# What a reader cannot see, or what changes how the text around it is read: controls, overrides of
# the writing direction, soft hyphens, spaces without width, tags, Hangul fillers, and halves of
# characters, which no UTF-8 file can hold. Joiners between two signs and variants of emoji stay.
UNSEEN = regex.compile(
    r"(?V1)[[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]"
    r"--[\t\n\u200c\u200d\ufe00-\ufe0f]]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)


def source_hash(source: str) -> str:
    """How a page's policy (CSP) knows its own script or style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def shown(value) -> str:
    """Anything as HTML text that cannot become markup, with its invisible characters by number."""
    escaped = html.escape(str(value).replace("\r\n", "\n"))
    return UNSEEN.sub(lambda found: f'<span class="unseen">U+{ord(found[0]):04X}</span>', escaped)


def attribute(value) -> str:
    """Anything as the value of an attribute."""
    return html.escape(UNSEEN.sub("\ufffd", str(value)))


def choice(label: str, name: str, everything: str, options: Iterable[tuple[str, str]]) -> str:
    """A list of `(value, text)` to choose from, and before them what stands for all."""
    listed = "".join(
        f'<option value="{attribute(value)}">{shown(text)}</option>' for value, text in options
    )
    return (
        f'<label>{label}<select name="{name}"><option value="">{everything}</option>{listed}'
        "</select></label>"
    )


def document(title: str, language: str, body: str) -> str:
    """A whole page that needs no network, with the one style sheet and the one script below. A
    policy (CSP) that knows them by their hashes lets nothing else run or load."""
    policy = (
        f"default-src 'none'; style-src '{source_hash(CSS)}'; script-src '{source_hash(JS)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="{attribute(language)}">
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
{body}
<script>{JS}</script>
</body>
</html>
"""


def table(rows: pandas.DataFrame, caption: str = "") -> Styler:
    """A table for a notebook, without its index. pandas' Styler takes cells, headings and captions
    for markup, so that `<img src=x onerror=...>` in a prompt would run; here they are escaped."""
    styled = _translated(rows).style.hide(axis="index")
    styled = styled.format(escape="html", precision=3).format_index(escape="html", axis=1)
    return styled.set_caption(html.escape(utils.translated(caption)))


def translate_tables() -> None:
    """From here on a notebook shows the columns of every table in the reader's language."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell and utils.reader() != "en":
        import pandas as pd

        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, _as_html)


def _as_html(rows: pandas.DataFrame) -> str:
    return _translated(rows).to_html(escape=True)


def _translated(rows: pandas.DataFrame) -> pandas.DataFrame:
    """A table with its names of columns and rows, and its cells, in the reader's language."""
    said = rows.rename(columns=_name, index=_name).rename_axis(columns=_name, index=_name)
    return said.apply(_cells)


def _name(value):
    return utils.translated(value) if isinstance(value, str) else value


def _cells(column: pandas.Series) -> pandas.Series:
    import pandas as pd

    said = cells(list(column))
    return column if said is None else pd.Series(said, column.index)


def cells(column: Sequence, language: str = "") -> list[str] | None:
    """A table's column in the reader's language (or another one), or None: where one of its cells
    is no word of the course, it holds numbers, or what models and people wrote."""
    said = []
    for cell in column:
        other = _cell(cell, language) if isinstance(cell, str) else None
        if other is None:
            return None  # at the first one: a table may be long
        said.append(other)
    return said


def _cell(cell: str, language: str) -> str | None:
    """A word of the course, which as a value of the data has underscores, in a language."""
    for word in (cell, cell.replace("_", " ")):
        other = utils.translated(word, language, "cells")
        if other != word:
            return other
    return None


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
:lang(ko) { word-break: keep-all; }
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
let drawn = null;  // the cards that were drawn at random, where any were
function show() {
  const chosen = choices.filter(choice => choice.value);
  let shown = 0;
  for (const card of cards) {
    const hide = !chosen.every(choice => card.dataset[choice.name] === choice.value) || (drawn && !drawn.has(card));
    if (card.hidden !== hide) card.hidden = hide;
    shown += !hide;
  }
  told.textContent = told.dataset.text.replace("{shown}", shown).replace("{all}", cards.length);
}
function draw() {
  drawn = null;
  show();
  const left = cards.filter(card => !card.hidden);
  drawn = new Set();
  while (drawn.size < 30 && left.length) drawn.add(left.splice(Math.floor(Math.random() * left.length), 1)[0]);
  show();
}
form.querySelector(".random")?.addEventListener("click", draw);
form.addEventListener("change", () => { drawn = null; show(); });
form.addEventListener("reset", () => setTimeout(() => { drawn = null; show(); }));
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
show();
"""  # noqa: E501


# --- executed notebooks as pages ------------------------------------------------------------------

FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$0-9A-Za-z])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![$0-9A-Za-z])", re.DOTALL
)
# An image that is fetched from elsewhere
BADGE = re.compile(r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)")
FETCHING = re.compile(r"://|MathJax")
SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)


def with_formulas(markdown: str) -> str:
    """LaTeX between dollar signs as MathML, which browsers draw by themselves; code spans and
    dollar amounts stay as they are."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match) -> str:
        block, inline = found.groups()
        return convert(block or inline, display="block" if block else "inline")

    parts = re.split(r"(```.*?```|`[^`]*`)", markdown, flags=re.DOTALL)
    parts[::2] = [FORMULA.sub(drawn, part) for part in parts[::2]]  # every second one is code
    return "".join(parts)


# Beside nbconvert's own style sheets: a phone's width, Korean that breaks between words, code that
# is dark or light enough to read, and figures on white paper in a dark page too
NOTEBOOK_CSS = """
:root { color-scheme: light dark; --jp-mirror-editor-comment-color: #2f6b6b; --jp-mirror-editor-operator-color: #7d1fd0;
  --jp-mirror-editor-number-color: #05700f; }
.jp-RenderedImage img, .jp-RenderedHTMLCommon img { max-width: 100%; height: auto; }
.jp-OutputArea-output { overflow-x: auto; }
.jp-RenderedMarkdown { overflow-wrap: break-word; }
.jp-RenderedMarkdown table, .jp-RenderedMarkdown math[display="block"] { display: block; overflow-x: auto; }
:lang(ko) :is(.jp-RenderedMarkdown, th) { word-break: keep-all; }
@media (max-width: 44rem) { .jp-InputPrompt, .jp-OutputPrompt { display: none; } main { padding: 0 !important; } }
"""  # noqa: E501
DARK_CSS = """
:root { --jp-mirror-editor-comment-color: #6fb3b3; --jp-mirror-editor-operator-color: #cf8dff; --jp-mirror-editor-number-color: #7ccf84; }
.jp-RenderedImage img { background: #fff; border-radius: .3rem; }
"""  # noqa: E501


def of_notebook(notebook) -> str:
    """An executed notebook as one page that asks the network for nothing: formulas are MathML, and
    the scripts that nbconvert would fetch (MathJax, RequireJS, Mermaid) are left out. It is dark
    for readers whose system is."""
    from nbconvert import HTMLExporter

    shown_notebook = copy.deepcopy(notebook)
    for cell in shown_notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(BADGE.sub(r"[\1](\2)", cell.source))
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    language = "ko" if utils.hangul_share(prose) > 0.3 else "en"
    exporter = HTMLExporter(language_code=language)
    page, _ = exporter.from_notebook_node(shown_notebook)
    page = SCRIPT.sub(lambda found: "" if FETCHING.search(found[0]) else found[0], page)
    # nbconvert has a dark theme too; it comes after the light one, for those who prefer it
    loader = exporter.environment.loader
    dark, *_ = loader.get_source(exporter.environment, "static/theme-dark.css")
    dark = f"@media (prefers-color-scheme: dark) {{ {dark} {DARK_CSS} }}"
    style = f"<style>{NOTEBOOK_CSS} {dark}</style>"
    return page.replace("</head>", style + "\n</head>", 1)
