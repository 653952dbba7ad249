"""Nothing from a file, a hub or a model becomes markup in an executed notebook or its page."""

import ast

import nbformat
import pandas as pd
import pytest
from browser import chromium, requested

import pages
import run
import settings
import utils

EVIL = '<img src=x onerror="document.title=`owned`">'


def notebook(*frames):
    """A notebook whose outputs are these tables, as Jupyter would save them."""
    cells = []
    for frame in frames:
        data = {"text/html": frame._repr_html_(), "text/plain": repr(EVIL)}
        output = nbformat.v4.new_output("execute_result", data=data)
        cells.append(nbformat.v4.new_code_cell("table", outputs=[output]))
    printed = nbformat.v4.new_output("stream", name="stdout", text=EVIL + "\n")
    cells.append(nbformat.v4.new_code_cell("print(prompt)", outputs=[printed]))
    return nbformat.v4.new_notebook(cells=cells)


def test_a_prompt_runs_in_the_executed_notebook(tmp_path):
    rows = pd.DataFrame({"id": ["1"], EVIL: [EVIL], "한국어": ["<b>굵게</b>"], "share": [0.5]})
    tables = (pages.table(rows, f"judge: {EVIL}"), rows, rows.set_index(EVIL).T)
    run.write(notebook(*tables), "book", tmp_path)
    html = (tmp_path / "book.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html and "<b>굵게" not in html
    with chromium() as browser:
        requested(browser)
        browser.get((tmp_path / "book.html").as_uri())
        assert browser.title == "Notebook"
        assert browser.find_element("tag name", "body").text.count(EVIL) >= 6
        assert not [url for url in requested(browser) if url.endswith("/x")]


def test_the_same_table_through_the_styler_would_run(tmp_path):
    """The fault that `pages.table` is there for."""
    assert "<img src=x" in pd.DataFrame({"a": [EVIL]}).style._repr_html_()


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_a_notebook_shows_a_table_or_markup_past_pages(name):
    book = nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type != "code" or cell.source.lstrip().startswith(("#", "%", "!")):
            continue
        for node in ast.walk(ast.parse(cell.source.replace("await ", ""))):
            named = getattr(node, "attr", getattr(node, "id", ""))
            assert named not in ("style", "HTML", "Markdown", "to_html", "SVG"), cell.source
