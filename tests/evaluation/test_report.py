"""The report page: escaped, self-contained, in the right order, and usable in a real browser, on a
phone and in the dark."""

import re
from html.parser import HTMLParser

import pytest
from browser import chromium, contrasts, requested, view, violations

import pages
import utils
from evaluation import report

RESULTS = {
    "run": "test",
    "headline": "tuned wins 71 % [60, 81] of 60 prompts, sign test p = .002, 12 % inconsistent, 0 "
    "failed.",
    "judge": "rehearsal (stand-in, a rule and not an LLM)",
    "teacher": "rehearsal (stand-in, recorded replies)",
    "calibration": "right in 88 % [82, 92] of 120 labelled pairs",
    "base_model": "gemma-3-270m",
    "notes": ["judge and teacher are one model, which may prefer its own style."],
}
HOSTILE = (
    "<script>document.title = 'owned'</script>",
    '</script><img src=x onerror="document.title=`owned`">',
    "[click me](javascript:alert(1)) ![](https://example.com/x.png) <https://example.com>",
    "\"quotes\" and 'apostrophes' & &lt;entities&gt; </div></article></main>",
    "<!-- a comment that never ends",
    "<style>body { display: none }</style>",
    "한국어 답변: 서울의 봄은 <b>따뜻합니다</b>.\n\n  둘째 문단",
    "rtl \u202egnp.exe\u202c and \u2066isolated\u2069 and العربية",
    "long" * 2000,
    "가" * 3000,
    "\ud800 half a character, \x00 and \x1b[31m",
    "  \n ",
    "\nstarts with an empty line\ttab\r\nwindows",
)


def order(tuned_is, verdict, turn=1, **more):
    return {
        "turn": turn,
        "tuned_is": tuned_is,
        "verdict": verdict,
        "explanation": "Because it is right.",
        "error": None,
    } | more


def record(name, outcome="win", language="en", category="open_qa", verdicts=("A", "B"), **more):
    return {
        "id": name,
        "language": language,
        "category": category,
        "prompt": f"What is {name}?",
        "reference": "A reference.",
        "base": "The base answer.",
        "tuned": "The tuned answer.",
        "outcome": outcome,
        "value": {"win": 1.0, "loss": 0.0, "failed": None}.get(outcome, 0.5),
        "judge": RESULTS["judge"],
        "orders": [order("A", verdicts[0]), order("B", verdicts[1])],
    } | more


RECORDS = [
    record("won", scores={"base": 3, "tuned": 9}),
    record("tied", "tie", verdicts=("tie", "tie"), category="code"),
    record("lost", "loss", verdicts=("B", "A"), scores={"base": 6, "tuned": 5}),
    record(
        "lost-badly",
        "loss",
        "ko",
        verdicts=("B", "A"),
        scores={"base": 9, "tuned": 1.5},
        prompt="한국의 수도는 어디인가요?",
    ),
    record(
        "flipped",
        "inconsistent",
        "ko",
        verdicts=("A", "A"),
        category="code",
        scores={"base": None, "tuned": 4},
    ),
    record("unread", "failed")
    | {
        "orders": [
            order("A", None, explanation="", error="no verdict could be read"),
            order("B", "B"),
        ]
    },
    record(
        "two-turns",
        follow_ups=[
            {
                "prompt": "And why?",
                "reference": "",
                "base": "Base on turn two.",
                "tuned": "Tuned on turn two.",
            }
        ],
        orders=[order("A", "A"), order("B", "tie"), order("A", "A", 2), order("B", "B", 2)],
    ),
]


def hostile_records() -> list[dict]:
    shapes = []
    for i, text in enumerate(HOSTILE):
        orders = [order("A", "B", explanation=text), order("B", None, error=text)]
        shapes.append(
            record(
                f"h{i} {text[:40]}",
                "failed",
                prompt=text,
                reference=text,
                base=text,
                tuned=text,
                orders=orders,
            )
        )
    shapes.append(record("names", language='"><script>', category='code" onclick="x'))
    return shapes


class Elements(HTMLParser):
    """Every element with its attributes, and all text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.inside = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text += data


# --- without a browser ----------------------------------------------------------------------------


def test_model_text_adds_no_element_and_loses_no_character():
    page, harmless = report.page(hostile_records(), RESULTS), report.page([record("x")], RESULTS)
    parsed = Elements(page)
    kinds = {tag for tag, _ in parsed.found}
    assert kinds <= {tag for tag, _ in Elements(harmless).found} | {"p", "em", "span"}, (
        "an answer became markup"
    )
    assert sum(tag == "script" for tag, _ in parsed.found) == 1
    assert sum(tag == "article" for tag, _ in parsed.found) == len(HOSTILE) + 1
    names = {name for _, attributes in parsed.found for name in attributes}
    assert not {
        name for name in names if name.startswith("on") or name in ("style", "href", "src")
    }, names
    for text in HOSTILE[:7]:
        assert parsed.text.count(text) >= 5, f"{text!r} is not shown as it was written"
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", page) and "U+202E" in parsed.text
    page.encode("utf-8")  # the half character would raise


def test_page_is_self_contained_and_says_who_judged(tmp_path):
    path = report.write(RECORDS, RESULTS, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    text = Elements(page).text
    for fact in ("headline", "judge", "teacher", "calibration", "base_model"):
        assert RESULTS[fact] in text
    assert RESULTS["notes"][0] in text
    for words in (
        "stand-in, a rule and not an LLM",
        "Because it is right.",
        "no verdict could be read",
        "6 of 10",
        "A reference.",
        "점수 없음",
    ):
        assert words in text


def test_worst_losses_and_flips_come_first():
    page = report.page(RECORDS, RESULTS)
    assert re.findall(r"<h2>([^<]+)", page) == [
        "lost-badly",
        "lost",
        "flipped",
        "unread",
        "tied",
        "two-turns",
        "won",
    ]


def test_verdicts_are_told_from_the_models_not_from_the_letters():
    card = report._card(RECORDS[2], False)
    assert "tuned first: <strong>base</strong>; tuned second: <strong>base</strong>" in card
    card = report._card(RECORDS[4], False)
    assert "tuned 먼저: <strong>tuned</strong>; tuned 나중: <strong>base</strong>" in card
    card = report._card(RECORDS[6], False)
    assert "turn 2, tuned second: <strong>tuned</strong>" in card
    assert "Tuned on turn two." in card
    assert "And why?" in card


def test_contradiction_with_the_single_scores_is_flagged():
    page = report.page(
        [
            record("odd", scores={"base": 9, "tuned": 2}),
            record("even", scores={"base": 2, "tuned": 9}),
        ],
        RESULTS,
    )
    assert page.count("single scores say the opposite") == 1


def test_no_calibration_is_said():
    assert "nothing shows that this judge may be believed" in report.page(
        RECORDS, {k: v for k, v in RESULTS.items() if k != "calibration"}
    )


def test_invisible_characters_are_shown_by_number():
    """A soft hyphen, a space without width, a line separator, tags and a Hangul filler hide text or
    break it; what joins emoji and Persian letters stays."""
    for hidden in "\u00ad\u200b\u2028\u2060\U000e0041\u3164\u115f\u180e\ufeff\u202e":
        assert pages.shown(f"a{hidden}b") == f'a<span class="unseen">U+{ord(hidden):04X}</span>b'
    for kept in ("👩\u200d👩\u200d👧", "❤\ufe0f", "می\u200cخواهم", "한국어\n\ttab", "e\u0301"):
        assert pages.shown(kept) == kept
    assert "U+200D" in pages.shown("pass\u200dword"), "a joiner between Latin letters hides"


def test_labels_are_korean_where_the_prompt_is_korean():
    own = record("k", language="ko", base="가", tuned="나", prompt="무엇?")
    korean = report.page([own], RESULTS | {"names": ["가람", "누리"]})
    assert '<html lang="ko">' in korean and "누리 승" in korean and "가람</h3>" in korean
    text = Elements(korean).text
    for word in ("요청", "참고 답안", "판정", "심판", "검증", "모두 보기"):
        assert word in text
    assert not re.search(
        r"\b(?:Prompt|Verdicts|Judge|wins|base|tuned)\b", text.split("0 failed")[1]
    )
    mixed = report.page(RECORDS, RESULTS)
    assert '<html lang="en">' in mixed and '<article lang="ko"' in mixed


def test_the_file_can_be_read_by_others_as_any_other(tmp_path):
    """It was 0600, from a temporary file: a web server could not read it."""
    path = report.write(RECORDS, RESULTS, tmp_path / "report.html")
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_join_puts_answers_beside_verdicts():
    items = [
        {
            "id": "a",
            "prompt": "P",
            "reference": "",
            "follow_ups": [{"prompt": "F", "reference": ""}, {"prompt": "G", "reference": "H"}],
        },
        {"id": "b", "prompt": "Q", "reference": "R"},
    ]
    verdicts = [
        {key: value for key, value in record(name).items() if key in ("id", "outcome", "orders")}
        for name in "ab"
    ]
    joined = report.join(verdicts, items, [["b1", "b2", "b4"], "b3"], [["t1", "t2", "t4"], ["t3"]])
    assert joined[0]["follow_ups"][1] == {
        "prompt": "G",
        "reference": "H",
        "base": "b4",
        "tuned": "t4",
    }
    assert joined[0]["follow_ups"][0]["base"] == "b2"
    assert joined[0]["tuned"] == "t1"
    assert joined[0]["prompt"] == "P"
    assert joined[1]["tuned"] == "t3"
    assert joined[1]["reference"] == "R"
    assert "follow_ups" not in joined[1]
    with pytest.raises(utils.CourseError, match="'b' is expected"):
        report.join(verdicts[:1], items[1:], ["x"], ["y"])


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(utils.CourseError, match=r"'tuned' of every prompt, and 'won' lacks it"):
        report.write(
            [{k: v for k, v in RECORDS[0].items() if k != "tuned"}], RESULTS, tmp_path / "r.html"
        )
    with pytest.raises(utils.CourseError, match=r"results\['headline'\]"):
        report.write(RECORDS, {}, tmp_path / "r.html")
    assert not list(tmp_path.iterdir()), "a failed report leaves nothing behind"


# --- in Chromium ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


# From the choice to the next picture, in milliseconds
FILTER = """
const [value, done] = arguments, list = document.querySelector("select"), start = performance.now();
list.value = value;
list.dispatchEvent(new Event("change", { bubbles: true }));
document.body.offsetHeight;
requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
"""


def shown(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('article')].filter(a => a.checkVisibility()).map(a "
        "=> a.innerText.split('\\n')[0])"
    )


def test_hostile_answers_in_a_real_browser(browser, tmp_path):
    path = report.write(hostile_records(), RESULTS, tmp_path / "report.html")
    requested(browser)
    for width in (1280, 360):
        view(browser, width)
        browser.get(path.as_uri())
        assert browser.title == "test: base against tuned", "a script in an answer ran"
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"the page is {wide} pixels too wide at {width}"
    texts = browser.execute_script(
        "return [...document.querySelectorAll('article .pair .base .said')].map(e => e.textContent)"
    )
    for text in [*HOSTILE[:7], *HOSTILE[8:10]]:
        assert text in texts
    assert "\nstarts with an empty line\ttab\nwindows" in texts
    links = browser.execute_script(
        "return document.links.length + document.images.length + document.scripts.length"
    )
    assert links == 1, "only the page's own script"
    assert requested(browser) == [path.as_uri()] * 2, (
        "the page asked for something else than itself"
    )
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_policy_stops_what_escaping_might_miss(browser, tmp_path):
    """Were an answer ever to become markup, its scripts, styles and images still would do
    nothing."""
    page = report.page(RECORDS, RESULTS)
    attack = (
        """<script>document.title = "owned"</script>"""
        """<img src="https://example.com/x.png" onerror="document.title='owned'">"""
    )
    (tmp_path / "r.html").write_text(page.replace("<main>", "<main>" + attack), encoding="utf-8")
    requested(browser)
    browser.get((tmp_path / "r.html").as_uri())
    assert browser.title == "test: base against tuned"
    assert requested(browser) == [(tmp_path / "r.html").as_uri()]
    assert any(
        "Content Security Policy" in entry["message"] for entry in browser.get_log("browser")
    )


def test_filters_by_keyboard(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    view(browser, 1280)
    browser.get(report.write(RECORDS, RESULTS, tmp_path / "report.html").as_uri())
    assert len(shown(browser)) == len(RECORDS)

    def press(*keys: str) -> None:
        for key in keys:
            browser.switch_to.active_element.send_keys(key)

    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.accessible_name == "outcome"
    press("tuned loses")  # a list is searched by typing
    assert shown(browser) == ["lost-badly", "lost"]
    assert browser.find_element("tag name", "output").text == "2 of 7 prompts"
    press(Keys.TAB, "Korean")
    assert shown(browser) == ["lost-badly"]
    press(Keys.TAB, "code")
    assert shown(browser) == []
    assert browser.find_element("tag name", "output").text == "0 of 7 prompts"
    press(Keys.TAB, Keys.ENTER)
    browser.implicitly_wait(2)
    browser.find_element("xpath", "//output[text()='7 of 7 prompts']")
    browser.implicitly_wait(0)
    press(Keys.TAB)
    assert browser.switch_to.active_element.text == "참고 답안"
    press(Keys.ENTER)
    assert browser.switch_to.active_element.find_element("xpath", "..").get_attribute("open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_light_and_dark(browser, tmp_path, scheme):
    view(browser, 360, scheme=scheme)
    browser.get(report.write(RECORDS, RESULTS, tmp_path / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    worst = contrasts(browser)
    assert len(worst) > 100 and worst[0][0] >= 4.5, worst[:5]
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == (scheme == "dark")
    small = browser.execute_script(
        "return [...document.querySelectorAll('select, button')].map(e => "
        "e.getBoundingClientRect().height).filter(h => h < 44)"
    )
    assert small == [], "too small for a thumb"


def test_a_thousand_prompts_open_and_filter_in_under_a_second(browser, tmp_path):
    """It took 8.8 s. The best of three counts, for other work on this machine is not the page's."""
    answer = "The answer, a sentence of some length that wraps. 한국어 문장도 있습니다.\n" * 12
    records = [
        record(
            f"p{i}",
            ("win", "loss", "tie")[i % 3],
            ("en", "ko")[i % 2],
            base=answer,
            tuned=answer,
            reference=answer,
            orders=[order("A", "A", explanation=answer), order("B", "B", explanation=answer)],
        )
        for i in range(1000)
    ]
    address = report.write(records, RESULTS, tmp_path / "report.html").as_uri()
    view(browser, 1280)
    opened, filtered = [], []
    for _ in range(3):
        browser.get(address)
        opened.append(
            browser.execute_script(
                "document.body.offsetHeight;"
                "return performance.getEntriesByType('navigation')[0].loadEventEnd"
            )
        )
        filtered.append(browser.execute_async_script(FILTER, "loss"))
        assert len(shown(browser)) == 333
    assert min(opened) < 1000 and min(filtered) < 1000, (opened, filtered)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser, tmp_path, scheme):
    view(browser, 360, scheme=scheme)
    for name, records in (("mixed", RECORDS), ("korean", [record("k", language="ko")])):
        browser.get(report.write(records, RESULTS, tmp_path / f"{name}.html").as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert violations(browser) == []


def test_all_is_shown_without_a_script(browser, tmp_path):
    view(browser, 1280)
    page = report.page(RECORDS, RESULTS).replace(pages.JS, "")
    (tmp_path / "r.html").write_text(page, encoding="utf-8")
    browser.get((tmp_path / "r.html").as_uri())
    assert len(shown(browser)) == len(RECORDS)
    assert not browser.find_element("tag name", "form").is_displayed()


def test_a_korean_reader_has_korean_words_around_english_prompts(monkeypatch):
    monkeypatch.setattr(utils, "_reader", "ko")
    english = record("x") | {"language": "en", "category": "open_qa"}
    said = report.page([english], {"headline": "한 문장", "judge": "j"})
    assert '<html lang="ko">' in said and '<article lang="ko"' in said
    assert ">질문 답하기 (1)</option>" in said and ">요청</h3>" in said and "Prompt" not in said


def test_what_failed_and_what_the_stand_in_says_is_korean_to_a_korean_reader(monkeypatch):
    monkeypatch.setattr(utils, "_reader", "ko")
    reason = (
        "Stand-in judge, a rule and not a language model: similarity to the reference less "
        "penalties is 0.930 for A and 0.867 for B."
    )
    own = record("x")
    orders = [
        order | {"explanation": reason, "error": "no verdict could be read"}
        for order in own["orders"]
    ]
    said = report.page(
        [own | {"orders": orders}],
        {
            "headline": "The judge was not calibrated: nothing shows that it may be believed.",
            "judge": "j",
        },
    )
    assert "감점을 뺀 값이 A는 0.930, B는 0.867입니다." in said and "Stand-in judge" not in said
    assert ">판정을 읽을 수 없음</p>" in said and "이 심판은 검증하지 않았으므로" in said
    assert "베이스 대 튜닝" in said
