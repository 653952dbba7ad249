"""The builder of the Korean notebooks, tried on a small notebook of its own."""

from __future__ import annotations

import nbformat
import polib
import pytest

import utils
from translations import build

TITLE = (
    "[![Open in Colab](https://c.svg)](https://colab.research.google.com/github/OWNER/x/blob/main/"
    "train.ipynb) [한국어](train.ko.ipynb)\n\n# Training"
)
TITLE_KO = TITLE.replace("Training", "학습").replace("[한국어]", "[English]")
TEXT = (
    "A **teacher** (`gpt-4o`, $0 or $2) writes {count} rows, see [train.ipynb](train.ipynb) and "
    "[guide](docs/guide.md#costs).\n\n$$a_{1} = b$$\n\n| a |\n|---|\n| b |\n\n"
    "<details><summary>What to see</summary>\n\n![a figure](assets/loss.svg) with $W$\n\n</details>"
)
TEXT_KO = (
    "**교사**(`gpt-4o`, $0 또는 $2)가 {count}개의 행을 씁니다. [train.ipynb](train.ipynb)와 "
    "[안내](docs/guide.md#비용)를 보세요.\n\n$$a_{1} = b$$\n\n| 가 |\n|---|\n| 나 |\n\n"
    "<details><summary>살펴볼 것</summary>\n\n![그림](assets/loss.svg)과 $W$\n\n</details>"
)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder with a notebook, a page and a figure; both of these have a Korean sibling."""
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    names = ("train.ipynb", "docs/guide.md", "docs/guide.ko.md", "assets/loss.svg")
    for name in (*names, "assets/loss.ko.svg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.fixture
def notebook(house):
    v4 = nbformat.v4
    form = v4.new_code_cell('# @title Settings { display-mode: "form" }\nRUN = "auto"', id="form")
    code = v4.new_code_cell("print('한글')  # train.ipynb", id="code", metadata={"tags": ["x"]})
    code.outputs = [v4.new_output("stream", text="한글\n")]
    title, text = v4.new_markdown_cell(TITLE, id="title"), v4.new_markdown_cell(TEXT, id="text")
    return v4.new_notebook(cells=[title, form, text, code], metadata={"colab": {"x": 1}})


@pytest.fixture
def entries(notebook):
    made = build.catalogue("train")
    made.append(polib.POEntry(msgctxt="title", msgid=TITLE, msgstr=TITLE_KO))
    made.append(polib.POEntry(msgctxt="text", msgid=TEXT, msgstr=TEXT_KO))
    return made


def test_code_outputs_ids_and_metadata_are_copied_and_prose_is_korean(notebook, entries):
    korean = build.build(notebook, entries)
    assert [cell.id for cell in korean.cells] == ["title", "form", "text", "code"]
    assert korean.cells[3] == notebook.cells[3] and korean.metadata == notebook.metadata
    assert korean.cells[2].source.startswith("**교사**(`gpt-4o`, $0 또는 $2)")
    assert notebook.cells[2].source == TEXT, "the English notebook must stay as it is"


def test_an_output_says_what_it_says_to_a_korean_reader(notebook, entries):
    """Lines that the course prints, headings of tables and columns of its own words, but no word of
    a row."""
    code = notebook.cells[3]
    rows = (
        "<tr><th>TRL&#x27;s fused head</th></tr>"
        "<tr><td>its own name</td>\n<td>tie</td><td>7</td></tr>"
        "<tr><td>loss</td>\n<td>A tie &amp; a hat.</td><td>8</td></tr><caption>a > b</caption>"
    )
    table = nbformat.v4.new_output("display_data", data={"text/html": rows})
    lines = "176 seed tasks\n  176 seed tasks\noutput       tie\n"
    code.outputs = [nbformat.v4.new_output("stream", text=lines), table]
    stream, html = build.build(notebook, entries).cells[3].outputs
    assert stream.text == "시드 과제 176개\n  176 seed tasks\n출력         tie\n"
    assert html.data["text/html"] == (
        "<tr><th>TRL의 융합 헤드</th></tr>"
        "<tr><td>심판의 이름</td>\n<td>tie</td><td>7</td></tr>"
        "<tr><td>패</td>\n<td>A tie &amp; a hat.</td><td>8</td></tr><caption>a > b</caption>"
    )
    assert code.outputs[0].text == lines, "the English notebook must stay as it is"


def test_everything_leads_to_the_korean_siblings_and_the_language_link_back(notebook, entries):
    title, form, text, code = (cell.source for cell in build.build(notebook, entries).cells)
    assert "/github/OWNER/x/blob/main/train.ko.ipynb) [English](train.ipynb)" in title
    assert form == '# @title 설정 { display-mode: "form" }\nRUN = "auto"'
    assert "[train.ko.ipynb](train.ko.ipynb)" in text and "docs/guide.ko.md#비용" in text
    assert "![그림](assets/loss.ko.svg)" in text
    assert code == notebook.cells[3].source


def test_a_page_without_a_korean_sibling_is_linked_as_it_is(house):
    assert (
        build.in_korean("[x](docs/other.md) `data_card.md`") == "[x](docs/other.md) `data_card.md`"
    )


def refused(notebook, entries) -> str:
    with pytest.raises(utils.CourseError) as error:
        build.build(notebook, entries)
    return str(error.value)


def test_a_cell_without_korean_is_named(notebook, entries):
    entries[1].msgstr = ""
    assert "cell text: the Korean is missing" in refused(notebook, entries)
    entries[1].msgstr = TEXT  # the English, copied
    assert "cell text: the Korean is missing" in refused(notebook, entries)
    del entries[1]
    said = refused(notebook, entries)
    assert "cell text: the Korean is missing" in said and "cell title" not in said


def test_korean_of_an_older_english_is_named(notebook, entries):
    notebook.cells[2].source += " One sentence more."
    assert "cell text: the Korean is stale" in refused(notebook, entries)


def test_a_fuzzy_cell_is_named(notebook, entries):
    entries[0].flags.append("fuzzy")
    assert "cell title: the Korean is marked fuzzy" in refused(notebook, entries)


def test_korean_without_a_cell_or_twice_is_named(notebook, entries):
    entries.append(polib.POEntry(msgctxt="gone", msgid="Gone.", msgstr="없음"))
    entries.append(polib.POEntry(msgctxt="title", msgid="x", msgstr="둘"))
    said = refused(notebook, entries)
    assert "cell gone: the English notebook has no such cell" in said
    assert "cell title: 2 entries" in said


@pytest.mark.parametrize(
    ("was", "becomes", "named"),
    [
        ("](train.ipynb)", "](trian.ipynb)", "the link is missing: train.ipynb"),
        ("](train.ipynb)", "](trian.ipynb)", "the link leads nowhere: trian.ipynb"),
        ("(docs/guide.md#비용)", "", "the link is missing: docs/guide.md"),
        ("assets/loss.svg", "assets/los.svg", "the figure is missing: assets/loss.svg"),
        ("{count}", "{수}", "the placeholder is not in the English: {수}"),
        ("`gpt-4o`", "`gpt-4`", "the code is missing: gpt-4o"),
        ("a_{1} = b", "a_1 = b", "the formula is missing: $$a_{1} = b$$"),
        ("$W$", "$V$", "the formula is missing: $W$"),
        ("</details>", "", "the tag is missing: </details>"),
        ("| 나 |", "", "the table row is missing: |"),
        (
            "**교사**(",
            "**교사(`teacher`)**가(",
            "the asterisk that is no mark is not in the English: *",
        ),
        ("**교사**(", "# 교사\n\n(", "the heading is not in the English: #"),
    ],
)
def test_a_broken_piece_is_named(notebook, entries, was, becomes, named):
    assert was in TEXT_KO
    entries[1].msgstr = TEXT_KO.replace(was, becomes)
    assert f"cell text: {named}" in refused(notebook, entries)


def test_update_keeps_korean_marks_changes_and_forgets_nothing(notebook, entries):
    assert build.update(notebook, entries) == []
    notebook.cells[2].source = "A teacher writes."
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("New.", id="new"))
    to_do = build.update(notebook, entries)
    assert [line.split(":")[0] for line in to_do] == ["cell new", "cell text"]
    new, text = entries[1], entries[2]
    assert (new.msgctxt, new.msgid, new.msgstr) == ("new", "New.", "")
    assert (text.msgid, text.msgstr) == ("A teacher writes.", TEXT_KO)
    assert text.flags == ["fuzzy"] and text.previous_msgid == TEXT

    notebook.cells[3].source = "A teacher writes again."  # before anybody has read it again
    build.update(notebook, entries)
    assert text.flags == ["fuzzy"] and text.previous_msgid == TEXT

    del notebook.cells[3]
    build.update(notebook, entries)
    assert [entry.msgctxt for entry in entries if entry.obsolete] == ["text"]
    notebook.cells.append(nbformat.v4.new_markdown_cell("A teacher writes again.", id="text"))
    build.update(notebook, entries)
    assert text.msgstr == TEXT_KO and not text.obsolete, "a cell that comes back finds its Korean"


def test_an_untranslated_cell_that_changes_is_missing_and_not_fuzzy(notebook, entries):
    entries[1].msgstr = ""
    notebook.cells[2].source = "Other."
    build.update(notebook, entries)
    assert entries[1].flags == [] and entries[1].msgid == "Other."


@pytest.fixture
def written(house, notebook, entries):
    """The same house with the notebook and its `.po` on disk."""
    nbformat.write(notebook, house / "train.ipynb")
    (house / "translations" / "ko").mkdir(parents=True)
    entries.save(entries.fpath)
    return house


def test_the_commands_write_both_files_and_are_stable(written):
    po, book = written / "translations/ko/train.po", written / "train.ko.ipynb"
    build.main(["--only", "train"])
    build.main(["--only", "train", "--update"])
    first = (po.read_text(encoding="utf-8"), book.read_text(encoding="utf-8"))
    build.main(["--only", "train", "--update"])
    build.main(["--only", "train"])
    assert first == (po.read_text(encoding="utf-8"), book.read_text(encoding="utf-8"))
    assert "교사" in first[0] and "교사" in first[1], "Hangul is written as Hangul"


def test_a_change_goes_from_the_english_cell_through_fuzzy_into_the_korean(written, capsys):
    notebook = nbformat.read(written / "train.ipynb", as_version=4)
    notebook.cells[2].source = "Changed."
    nbformat.write(notebook, written / "train.ipynb")
    with pytest.raises(utils.CourseError, match="cell text: the Korean is stale"):
        build.main(["--only", "train"])
    assert not (written / "train.ko.ipynb").exists()
    build.main(["--only", "train", "--update"])
    assert "cell text: its English has changed" in capsys.readouterr().out
    with pytest.raises(utils.CourseError, match="cell text: the Korean is marked fuzzy"):
        build.main(["--only", "train"])
    entries = build.catalogue("train")
    entry = entries.find("text", by="msgctxt")
    assert entry.previous_msgid == TEXT and entry.msgstr == TEXT_KO
    entry.flags, entry.msgstr = [], "바뀌었습니다."
    entries.save()
    build.main(["--only", "train"])
    assert "바뀌었습니다." in (written / "train.ko.ipynb").read_text(encoding="utf-8")


def test_a_first_update_makes_the_file_and_a_broken_one_is_refused(written, capsys):
    po = written / "translations/ko/train.po"
    po.unlink()
    build.main(["--only", "train", "--update"])
    assert "cell title: write the Korean" in capsys.readouterr().out
    po.write_text('msgid "x\nmsgstr', encoding="utf-8")
    with pytest.raises(utils.CourseError, match="translations/ko/train.po"):
        build.main(["--only", "train"])


def test_a_built_notebook_that_was_edited_by_hand_names_the_cell(notebook, entries):
    built = build.build(notebook, entries)
    found = nbformat.from_dict(built)
    assert build.differences(built, found) == []
    found.cells[2].source += "!"
    assert build.differences(built, found) == ["text"]
    found = nbformat.from_dict(built)
    found.cells[3].outputs = []
    found.cells.append(nbformat.v4.new_markdown_cell("more", id="more"))
    assert build.differences(built, found) == ["code", "more"]
    found = nbformat.from_dict(built)
    found.metadata.colab.x = 2
    assert build.differences(built, found) == ["(order or metadata)"]
