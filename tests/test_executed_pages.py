"""An executed notebook as a page: formulas are drawn without a network, and nothing is fetched."""

import re

import browser
import nbformat
import pytest

import pages
import settings
import utils


@pytest.mark.parametrize(
    ("markdown", "formulas"),
    [
        ("$W' = W + \\frac{\\alpha}{r} BA$ ist LoRA", 1),
        ("무게 $W$와 $d_{in}$", 2),
        ("$$\\mathrm{ROUGE\\text{-}L}(a,b) = \\frac{2\\,\\mathrm{LCS}(a,b)}{|a|+|b|}$$", 1),
        ("it costs $2 a run, or $5 for two", 0),
        ("`$W$` in code, and ```\n$$x$$\n``` too", 0),
        ("| `$x$` | $y$ |", 1),
    ],
)
def test_formulas_become_mathml_and_prices_stay(markdown, formulas):
    """Offline, the pages showed raw LaTeX; and two prices in a line are no formula."""
    page = pages.with_formulas(markdown)
    assert page.count("<math") == formulas
    assert formulas or page == markdown


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_a_page_asks_the_network_for_nothing(name):
    notebook = nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4)
    page = pages.of_notebook(notebook)
    fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=[\"']?https?:", page)
    assert not fetched and "import(" not in page
    formulas = sum(
        len(pages.FORMULA.findall(re.sub(r"`[^`]*`", "", cell.source)))
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    )
    assert page.count("<math") == formulas
    text = re.sub(r"<math.*?</math>", "", page, flags=re.DOTALL)
    assert "\\frac" not in text
    assert "$$" not in re.sub(r"<(pre|code).*?</\1>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", sorted(utils.ROOT.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_page_is_legible_in_light_and_dark_on_wide_screens_and_phones(path, tmp_path):
    page = tmp_path / f"{path.stem}.html"
    page.write_text(pages.of_notebook(nbformat.read(path, as_version=4)), encoding="utf-8")
    with browser.chromium() as chromium:
        for width in (1200, 400):
            for scheme in ("light", "dark"):
                browser.view(chromium, width, scheme=scheme)
                chromium.get(page.as_uri())
                assert [url for url in browser.requested(chromium) if url != page.as_uri()] == []
                wide = chromium.execute_script("return document.documentElement.scrollWidth")
                assert wide <= width, "the page is wider than the window"
                ink, what = browser.contrasts(chromium)[0]
                assert ink >= 4.5, f"{scheme}, {width}: {what}"  # WCAG AA
        ground = "return getComputedStyle(document.querySelector('body')).backgroundColor"
        dark = [int(part) for part in re.findall(r"\d+", chromium.execute_script(ground))[:3]]
        assert max(dark) < 60, "a reader who prefers dark pages gets a light one"
