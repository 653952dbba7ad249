"""The Korean notebooks, built from the English ones: `make korean`.

What it does: put the Korean of `translations/ko/<notebook>.po` in the place of every Markdown cell
of an executed English notebook, lead links to Korean siblings, and refuse while the Korean of a
cell is missing, out of date or broken. Code and outputs are copied; printed lines, headings of
tables and figures say what the same run says to a Korean reader. What it does not do: translate, or
run anything.

A `.po` file (gettext's format, which many editors open) has one entry a Markdown cell: `msgctxt` is
the cell's id, `msgid` the English cell, `msgstr` the Korean one. Links in `msgstr` are those of the
English cell; the builder turns them.

    python -m translations.build             write preprocess.ko.ipynb, train.ko.ipynb, ...
    python -m translations.build --update    bring the .po files up to the English cells
"""

from __future__ import annotations

import argparse
import base64
import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import nbformat
import polib
from markdown_it import MarkdownIt
from markdown_it.token import Token
from nbformat import NotebookNode

import pages
import settings
import utils

FORM_TITLE = ("# @title Settings", "# @title 설정")
READER = ('READER = "auto"', 'READER = "ko"')
FIGURE = re.compile(r'S\.folder / "(\w+)\.png"')
FIGURES = utils.ROOT / "assets" / "ko"  # the same figures with Korean words, from the same run
HEADING = re.compile(r"(?<=>)[^<>]+(?=</(?:th|caption)>)")  # in a table's HTML
CELL = re.compile(r"(?<=>)[^<>]*(?=</td>)")
TAG = re.compile(r"</?\w+[^>]*>")
# $$...$$ and $...$, but not two prices in one line
FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\\$])\$(?![\s\d$])[^$\n]+\$(?!\d)", re.DOTALL)
PLACEHOLDER = re.compile(r"\{\w+\}")
FILE = re.compile(r"(?P<folder>[\w./-]*/)?(?P<name>[\w-]+(?:\.ko)?\.(?:ipynb|md|svg|png))\b")


def english(name: str) -> NotebookNode:
    """The English notebook `name`, one of `settings.NOTEBOOKS`."""
    return nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4)


def korean_path(name: str) -> Path:
    return utils.ROOT / f"{name}.ko.ipynb"


def catalogue(name: str) -> polib.POFile:
    """The translations of one notebook; empty where there is no file yet.

    Raises:
        CourseError: the file cannot be read; names file and line.
    """
    path = utils.ROOT / "translations" / "ko" / f"{name}.po"
    if not path.exists():
        entries = polib.POFile(wrapwidth=0)
        entries.fpath = str(path)
        entries.metadata = {"Language": "ko", "Content-Type": "text/plain; charset=UTF-8"}
        return entries
    try:
        return polib.pofile(str(path), wrapwidth=0, encoding="utf-8")  # one line stays one line
    except (OSError, UnicodeDecodeError) as error:
        raise utils.CourseError(f"{utils.short(path)} is no .po file: {error}.") from None


def prose(notebook: NotebookNode) -> list[NotebookNode]:
    """The Markdown cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


# --- bringing the .po files up to the English cells -----------------------------------------------


def update(notebook: NotebookNode, entries: polib.POFile) -> list[str]:
    """Bring the entries up to the English cells, in the order of the cells.

    A new cell gets an empty entry. Where the English has changed, the Korean stays and is marked
    fuzzy, beside the English that it was written for. What has lost its cell is kept as obsolete.

    Returns:
        What is to be done now, a line a cell.
    """
    known = {entry.msgctxt: entry for entry in entries}
    ordered, to_do = [], []
    for cell in prose(notebook):
        entry = known.pop(cell.id, None)
        if entry is None:
            entry = polib.POEntry(msgctxt=cell.id, msgid=cell.source)
        if entry.msgid != cell.source:
            if entry.msgstr and "fuzzy" not in entry.flags:
                entry.flags.append("fuzzy")
                entry.previous_msgid = entry.msgid
            entry.msgid = cell.source
        if "fuzzy" not in entry.flags:
            entry.previous_msgid = None
        entry.obsolete = False
        ordered.append(entry)
        if not entry.msgstr:
            to_do.append(f"cell {cell.id}: write the Korean")
        elif "fuzzy" in entry.flags:
            to_do.append(f"cell {cell.id}: its English has changed; read the Korean again")
    for entry in known.values():
        entry.obsolete = True
    entries[:] = [*ordered, *known.values()]
    return to_do


# --- what is wrong --------------------------------------------------------------------------------


def problems(notebook: NotebookNode, entries: polib.POFile) -> list[str]:
    """What keeps the Korean notebook from being built, a line each, with the cell's id."""
    current = [entry for entry in entries if not entry.obsolete]
    of_cell = {entry.msgctxt: entry for entry in current}
    cells = {cell.id: cell for cell in prose(notebook)}
    found = []
    for id, count in Counter(entry.msgctxt for entry in current).items():
        if id not in cells:
            found.append(f"cell {id}: the English notebook has no such cell")
        elif count > 1:
            found.append(f"cell {id}: {count} entries, of which only one can count")
    for id, cell in cells.items():
        entry = of_cell.get(id)
        if entry is None or not re.search("[가-힣]", entry.msgstr):
            found.append(f"cell {id}: the Korean is missing")
        elif entry.msgid != cell.source:
            found.append(f"cell {id}: the Korean is stale, for its English has changed")
        elif "fuzzy" in entry.flags:
            found.append(f"cell {id}: the Korean is marked fuzzy; read it again, delete the mark")
        else:
            found += [f"cell {id}: {wrong}" for wrong in broken(cell.source, entry.msgstr)]
    return found


def broken(source: str, korean: str) -> list[str]:
    """What a cell and its Korean do not have in common and should, and links that lead nowhere."""
    wanted, given = pieces(source), pieces(korean)
    found = [f"the {kind} is missing: {piece}" for kind, piece in wanted - given]
    found += [f"the {kind} is not in the English: {piece}" for kind, piece in given - wanted]
    for kind, target in pieces(in_korean(korean)):
        local = kind in ("link", "figure") and "://" not in target
        if local and not (target in built_names() or (utils.ROOT / target).exists()):
            found.append(f"the {kind} leads nowhere: {target}")
    return found


def pieces(text: str) -> Counter[tuple[str, str]]:
    """What a translation must keep, as `(kind, piece)`: links, figures, code, formulas, tags,
    placeholders, headings and table rows. Also every asterisk that would stand in the page as one:
    `**단어(word)**는` is not bold, because a letter follows the punctuation."""
    found: Counter[tuple[str, str]] = Counter()
    for kind, pattern in (("formula", FORMULA), ("placeholder", PLACEHOLDER)):
        found.update((kind, piece) for piece in pattern.findall(text))
    for token in flat(MarkdownIt("commonmark").enable("table").parse(FORMULA.sub("", text))):
        if token.type == "link_open":
            # The Korean of a page has other headings
            found["link", str(token.attrs["href"]).split("#")[0]] += 1
        elif token.type == "image":
            found["figure", str(token.attrs["src"])] += 1
        elif token.type in ("code_inline", "fence", "code_block"):
            found["code", token.content] += 1
        elif token.type in ("html_inline", "html_block"):
            found.update(("tag", tag) for tag in TAG.findall(token.content))
        elif token.type == "heading_open":
            found["heading", token.markup] += 1
        elif token.type == "tr_open":
            found["table row", "|"] += 1
        elif token.type == "text" and "*" in token.content:
            found["asterisk that is no mark", "*"] += token.content.count("*")
    return found


def flat(tokens: Iterable[Token]) -> Iterator[Token]:
    """Markdown's tokens with those inside them; the text inside a figure is its description."""
    for token in tokens:
        yield token
        yield from flat(token.children or ())


# --- building -------------------------------------------------------------------------------------


def built_names() -> set[str]:
    return {korean_path(name).name for name in settings.NOTEBOOKS}


def in_korean(text: str) -> str:
    """The text with the names of notebooks, pages and figures led to their Korean siblings, where
    there are any, and the name of a Korean sibling led back: that is the link to the language."""

    def sibling(found: re.Match) -> str:
        folder, name = found["folder"] or "", PurePosixPath(found["name"])
        if name.stem.endswith(".ko"):
            return folder + name.stem.removesuffix(".ko") + name.suffix
        other = f"{name.stem}.ko{name.suffix}"
        in_repository = folder.rpartition("/blob/main/")[2]
        if other in built_names() or (utils.ROOT / in_repository / other).exists():
            return folder + other
        return found[0]

    return FILE.sub(sibling, text)


def build(notebook: NotebookNode, entries: polib.POFile) -> NotebookNode:
    """The Korean notebook: the English one with Korean Markdown cells and a Korean form title.

    Raises:
        CourseError: the Korean is incomplete; names every cell.
    """
    if wrong := problems(notebook, entries):
        raise utils.CourseError(
            f"{len(wrong)} problems in {utils.short(entries.fpath)} (`make korean ARGS=--update` "
            "brings it up to the English cells):\n" + "\n".join(wrong)
        )
    korean = nbformat.from_dict(notebook)
    text = {entry.msgctxt: entry.msgstr for entry in entries if not entry.obsolete}
    for cell in korean.cells:
        if cell.cell_type == "markdown":
            cell.source = in_korean(text[cell.id])
        elif cell.source.startswith(FORM_TITLE[0]):
            cell.source = cell.source.replace(*FORM_TITLE, 1).replace(*READER, 1)
        elif figure := FIGURE.search(cell.source):
            _put_in(cell, FIGURES / f"{figure[1]}.ko.png")
        for output in cell.get("outputs", ()):
            _translate(output)
    return korean


def _translate(output: NotebookNode) -> None:
    """What an output would say to a Korean reader: its lines and the headings of its table."""
    if output.output_type == "stream":
        output.text = utils.translated_lines(output.text, "ko")
    elif table := output.get("data", {}).get("text/html"):
        output.data["text/html"] = _cells(HEADING.sub(_heading, table))


def _heading(found: re.Match) -> str:
    return html.escape(utils.translated(html.unescape(found[0]), "ko"))


def _cells(table: str) -> str:
    """A table's HTML with its cells in Korean, column by column."""
    rows = [CELL.findall(row) for row in table.split("</tr>")]
    columns: list[Sequence[str]] = []
    for column in zip(*filter(None, rows), strict=True):
        said = pages.cells([html.unescape(cell) for cell in column], "ko")
        columns.append(column if said is None else [html.escape(cell) for cell in said])
    cells = itertools.chain(*zip(*columns, strict=True))
    return CELL.sub(lambda _: next(cells), table)


def _put_in(cell: NotebookNode, twin: Path) -> None:
    """The figure below a cell as its Korean twin shows it, if there is one, as wide as the English
    one: the twin has more pixels, for it stands on other pages too."""
    if twin.exists():
        for output in cell.outputs:
            if english := output.get("data", {}).get("image/png"):
                output.metadata["image/png"] = {"width": _width(base64.b64decode(english))}
                output.data["image/png"] = base64.b64encode(twin.read_bytes()).decode() + "\n"


def _width(png: bytes) -> int:
    """Pixels, which stand behind the sixteen bytes that every PNG begins with."""
    return int.from_bytes(png[16:20], "big")


def differences(built: NotebookNode, found: NotebookNode) -> list[str]:
    """The ids of the cells in which a Korean notebook is not as it is built."""
    if built == found:
        return []
    expected = {cell.id: cell for cell in built.cells}
    given = {cell.id: cell for cell in found.cells}
    ids = [id for id in expected | given if expected.get(id) != given.get(id)]
    return ids or ["(order or metadata)"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--update", action="store_true", help="bring the .po files up to the English cells"
    )
    parser.add_argument("--only", nargs="+", choices=settings.NOTEBOOKS, default=settings.NOTEBOOKS)
    chosen = parser.parse_args(arguments)
    for name in chosen.only:
        write(name, chosen.update)


def write(name: str, only_update: bool) -> None:
    """Write the `.po` file of one notebook, or the Korean notebook, and say what came of it."""
    notebook, entries = english(name), catalogue(name)
    if only_update:
        to_do = update(notebook, entries)
        path = Path(entries.fpath)
        with utils.atomic(path) as file:
            file.write(str(entries).rstrip() + "\n")
    else:
        korean, to_do = build(notebook, entries), []
        path = korean_path(name)
        with utils.atomic(path) as file:
            nbformat.write(korean, file)
    print("\n  ".join([f"{utils.short(path)} is written", *to_do]))


if __name__ == "__main__":
    utils.run_command(main)
