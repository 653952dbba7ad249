"""The Korean notebooks: complete, of the English that stands there now, and as they were built."""

from __future__ import annotations

import base64
import re

import nbformat
import pytest

import settings
import utils
from translations import build

# One word a term, and words that people use today: what not to write, and what instead
WORDS = {
    r"강의(?!실)": "강좌",
    "처음부터 만드는": "밑바닥부터 만드는",
    "지시 튜닝": "인스트럭션 튜닝",
    "문턱값|임계값": "임곗값",
    "기록장": "요청 기록",
    r"참고 답(?!안)": "참고 답안",
    "교정": "검증 (심판의)",
    "낱말": "단어",
    "까닭": "이유",
    "견주": "비교하다",
    "누리집": "웹사이트",
    "맴도": "되풀이하다",
    r"\d %": "86%, without a space",
    r"(?<![니시])다\.(?=\s|$)": "-습니다 (합니다체)",
}
PAGES = ("README.ko.md", "colab_guide.md", "docs/swap_guide.md", "scale/README.md")


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_every_cell_has_its_korean(name):
    wrong = build.problems(build.english(name), build.catalogue(name))
    assert not wrong, f"translations/ko/{name}.po (`make korean ARGS=--update`):\n" + "\n".join(
        wrong
    )


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_no_korean_notebook_was_edited_by_hand_or_left_behind(name):
    assert build.korean_path(name).exists(), "run `make korean`"
    built = build.build(build.english(name), build.catalogue(name))
    found = nbformat.read(build.korean_path(name), as_version=4)
    assert not build.differences(built, found), "cells that `make korean` writes otherwise"


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_each_language_leads_to_the_other_and_its_own_badge(name):
    for path, other in (
        (f"{name}.ipynb", f"{name}.ko.ipynb"),
        (f"{name}.ko.ipynb", f"{name}.ipynb"),
    ):
        top = nbformat.read(utils.ROOT / path, as_version=4).cells[0].source.splitlines()[0]
        assert f"]({other})" in top, f"the top of {path} does not link {other}"
        assert f"/blob/main/{path})" in top, f"the badge of {path} opens another notebook"


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_korean_notebooks_lead_to_korean_notebooks(name):
    cells = nbformat.read(build.korean_path(name), as_version=4).cells
    text = "\n".join(cell.source for cell in cells[1:] if cell.cell_type == "markdown")
    assert not re.findall(r"\((?:preprocess|train|evaluation)\.ipynb\)", text)
    assert any(cell.source.startswith(build.FORM_TITLE[1]) for cell in cells), "no Korean form"


def korean_texts() -> dict[str, str]:
    """Every Korean text of the pages and notebooks by where it stands, without code."""
    texts = {}
    for name in settings.NOTEBOOKS:
        for entry in build.catalogue(name):
            texts[f"{name}.po, cell {entry.msgctxt}"] = entry.msgstr
    for name in PAGES:
        lines = (utils.ROOT / name).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            if utils.hangul_share(line) > 0.5 and "<!--" not in line:
                texts[f"{name}, line {number}"] = line
    return {where: re.sub(r"`[^`]*`", "`", text) for where, text in texts.items()}


@pytest.mark.parametrize("wrong", WORDS)
def test_korean_has_one_word_a_term_and_one_register(wrong):
    found = [
        where for where, text in korean_texts().items() if re.search(wrong, text, re.MULTILINE)
    ]
    assert not found, f"write {WORDS[wrong]}: {found}"


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_every_figure_of_a_korean_notebook_is_korean(name):
    """`make outputs` takes the twins from the same run as the English figures."""
    korean = nbformat.read(build.korean_path(name), as_version=4)
    drawn = 0
    for cell in korean.cells:
        figure = build.FIGURE.search(cell.source) if cell.cell_type == "code" else None
        images = [one for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
        if figure and images:
            twin = build.FIGURES / f"{figure[1]}.ko.png"
            assert twin.exists(), f"{cell.id}: no Korean twin, run `make outputs`"
            assert (
                images[0].data["image/png"].strip() == base64.b64encode(twin.read_bytes()).decode()
            )
            drawn += 1
        else:
            assert not images, f"{cell.id}: shown without `utils.show`, so it has no Korean twin"
    assert drawn
