"""The page on which a reader reads what became of every row."""

import json
import random

import pytest
from browser import chromium, contrasts, requested, view

import settings
from preprocessing import ledger_page

SEED = {"id": "seed-ko-001", "language": "ko", "instruction": "전세를 설명해 줘.", "input": ""}
SEED |= {"output": "보증금만 맡기는 계약입니다."}
EVIL = '<img src=x onerror="document.title=`owned`"><script>document.title="owned"</script>'


def row(number, fate="kept", language="ko", category="housing", **more):
    said = {"instruction": f"{number}번 질문", "input": "", "output": f"{number}번 답"}
    return {"id": f"run-{number}", "language": language, "category": category} | said | {
        "fate": fate
    } | more  # fmt: skip


ROWS = [
    row(1),
    row(2, "ROUGE-L", reason="near-duplicate", neighbour="seed-ko-001", score=0.81234),
    row(3, "rules", "en", "code", reason=f"a text model cannot do it ({EVIL})", instruction=EVIL),
    row(4, "embedding", "en", EVIL, reason="near-duplicate", neighbour="run-1", score=0.95),
    row(5, critique={"reason": EVIL, "score": 4}),
    row(6, "malformed reply", category="", reason="no tasks in it", instruction="", output=""),
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


def visible(browser):
    cards = browser.find_elements("tag name", "article")
    return [card.find_element("tag name", "h2").text for card in cards if card.is_displayed()]


def test_a_row_its_reason_or_its_neighbour_is_missing_or_runs(browser, tmp_path):
    path = ledger_page.write(ROWS, [SEED], f"mine {EVIL}", tmp_path / "ledger.html")
    view(browser, 390)  # a phone
    requested(browser)
    browser.get(path.as_uri())
    assert browser.title == f"Every row of mine {EVIL} and its fate"
    assert requested(browser) == [path.as_uri()], "it needs the network"
    text = browser.find_element("tag name", "body").text
    for part in (
        "near-duplicate",
        "이 행이 되풀이하는 행 (0.81): seed-ko-001",
        SEED["output"],
        EVIL,
    ):
        assert part in text, part
    assert len(visible(browser)) == 6
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390, "it is wider than a phone"
    assert contrasts(browser)[0][0] >= 4.5
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_filters_or_thirty_at_random_show_something_else(browser, tmp_path):
    many = [*ROWS, *(row(number) for number in range(100, 160))]
    view(browser, 1280)
    browser.get(ledger_page.write(many, [SEED], "mine", tmp_path / "many.html").as_uri())

    def choose(name, value):
        browser.find_element("css selector", f'[name={name}] [value="{value}"]').click()

    choose("stage", "ROUGE-L")
    assert visible(browser) == ["run-2"]
    assert browser.find_element("tag name", "output").text == "1 of 66 rows"
    choose("stage", "kept")
    choose("language", "ko")
    assert len(visible(browser)) == 62
    draw = browser.find_element("css selector", "button.random")
    draw.click()
    first = visible(browser)
    assert len(first) == 30 and "run-2" not in first
    draw.click()
    assert visible(browser) != first, "drawn once for all"
    browser.find_element("css selector", "button[type=reset]").click()
    browser.implicitly_wait(1)
    assert len(visible(browser)) == 66


def test_rows_of_turns_are_not_shown(tmp_path):
    said = [("user", "안녕"), ("assistant", "네"), ("user", "뭐 해?"), ("assistant", "일해요")]
    turns = row(7) | {"messages": [{"role": who, "content": text} for who, text in said]}
    page = ledger_page.write([turns], [], "mine", tmp_path / "ledger.html").read_text("utf-8")
    assert all(f">{text}</div>" in page for _, text in said)
    assert '<html lang="ko">' in page and "무작위로 서른 개" in page


def test_a_long_ledger_takes_long(tmp_path):
    rng, rows = random.Random(0), []
    for number in range(3000):
        rows.append(row(number, rng.choice(["kept", "rules"]), reason="too short"))
    path = ledger_page.write(rows, [], "mine", tmp_path / "ledger.html")
    assert path.stat().st_size < 6e6 and json.dumps(settings.LANGUAGES)
