"""The blind vote: what is shown and kept, the paper's two setups of agreement, and the page in a
real browser."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from browser import chromium, requested, view, violations

import pages
import utils
from evaluation import vote
from llm.journal import Journal

HOSTILE = (
    "한국어 <script>document.title = 'owned'</script> [a](javascript:1) ${1+1} "
    "{{value}}\n\n  second line"
)


@pytest.fixture
def folder(course):
    """A run with six answered and judged prompts, below the temporary root."""
    path = course / "runs" / "default"
    answers = [
        {
            "id": f"p{i}",
            "prompt": f"질문 {i}: which is better?",
            "base": {"text": f"pear {i} {HOSTILE}", "stopped": True, "tokens": 3},
            "tuned": {"text": f"plum {i}", "stopped": True, "tokens": 3},
        }
        for i in range(6)
    ]
    outcomes = ("win", "loss", "tie", "inconsistent", "failed", "win")
    utils.write_jsonl(path / "answers.jsonl", answers)
    utils.write_jsonl(
        path / "verdicts.jsonl",
        [
            {"id": f"p{i}", "outcome": o, "judge": "rehearsal (stand-in)"}
            for i, o in enumerate(outcomes)
        ],
    )
    return path


def ballot(folder, seed=0):
    return vote.Ballot(vote.pairs(folder, seed), folder / "votes.jsonl")


# --- pairs and votes ------------------------------------------------------------------------------


def test_sides_and_order_depend_on_the_seed_only(folder):
    assert vote.pairs(folder, 1) == vote.pairs(folder, 1)
    orders = {tuple(pair.id for pair in vote.pairs(folder, seed)) for seed in range(20)}
    assert len(orders) > 10
    share = (
        sum(pair.first_is == "tuned" for seed in range(100) for pair in vote.pairs(folder, seed))
        / 600
    )
    assert 0.42 < share < 0.58  # four standard errors
    for pair in vote.pairs(folder, 3):
        assert pair.first.startswith({"base": "pear", "tuned": "plum"}[pair.first_is])
        assert pair.first != pair.second


def test_side_of_a_prompt_does_not_depend_on_the_others(folder):
    before = {pair.id: pair.first_is for pair in vote.pairs(folder)}
    records = utils.read_jsonl(folder / "answers.jsonl")
    utils.write_jsonl(folder / "answers.jsonl", records[::2])
    assert {pair.id: pair.first_is for pair in vote.pairs(folder)} == {
        f"p{i}": before[f"p{i}"] for i in (0, 2, 4)
    }


def test_two_turns_are_shown_together(folder):
    record = {
        "id": "t",
        "prompt": "Name a fruit.",
        "follow_ups": [{"prompt": "And another?", "reference": ""}],
        "base": ["pear", "fig"],
        "tuned": [{"text": "plum"}, {"text": "date"}],
    }
    utils.write_jsonl(folder / "answers.jsonl", [record])
    (pair,) = vote.pairs(folder)
    assert pair.prompt.startswith("Name a fruit.") and pair.prompt.endswith("And another?")
    assert {pair.first.split()[0], pair.second.split()[0]} == {"pear", "plum"}
    assert {pair.first.split()[-1], pair.second.split()[-1]} == {"fig", "date"}


def test_votes_are_kept_and_taken_up_again(folder):
    first = ballot(folder)
    for position in ("first", "tie", "second"):
        first.vote(first.next().key, position)
    for pair, position in zip(first.pairs, ("first", "tie", "second"), strict=False):
        other = {"base": "tuned", "tuned": "base"}[pair.first_is]
        expected = {"first": pair.first_is, "second": other, "tie": "tie"}[position]
        assert first.votes[pair.id]["vote"] == expected
    with (folder / "votes.jsonl").open("a") as file:
        file.write('{"key": "torn')  # killed while writing
    again = ballot(folder)
    assert again.votes == first.votes and again.next() == first.pairs[3]


def test_first_vote_on_a_pair_counts(folder):
    """Two windows, or a double click: the file holds one vote and the next pair is not voted on."""
    box = ballot(folder)
    key = box.next().key
    box.vote(key, "first")
    box.vote(key, "second")
    assert len(box.votes) == 1 and len((folder / "votes.jsonl").read_text().splitlines()) == 1
    assert box.votes[box.pairs[0].id]["position"] == "first"


def test_votes_on_other_answers_do_not_count(folder):
    box = ballot(folder)
    box.vote(box.next().key, "first")
    records = utils.read_jsonl(folder / "answers.jsonl")
    utils.write_jsonl(
        folder / "answers.jsonl", [record | {"tuned": "trained again"} for record in records]
    )
    assert ballot(folder).votes == {}
    assert len(Journal(folder / "votes.jsonl", ("key",)).entries) == 1, "but they are kept"


# --- agreement ------------------------------------------------------------------------------------


def cast(**votes):
    return {name: {"vote": choice, "position": "first"} for name, choice in votes.items()}


def verdicts(**outcomes):
    return [
        {"id": name, "outcome": outcome, "judge": "some judge"}
        for name, outcome in outcomes.items()
    ]


def test_two_setups_of_the_paper_by_hand():
    """S1 takes all and counts inconsistent as a tie: 4 of 7. S2 drops every pair with a tie on
    either side: 2 of 3."""
    learner = cast(
        a="tuned", b="base", c="tuned", d="tie", e="tie", f="tuned", g="base", h="tuned", i="base"
    )
    judge = verdicts(
        a="win",
        b="loss",
        c="loss",
        d="tie",
        e="inconsistent",
        f="inconsistent",
        g="tie",
        h="failed",
    )
    found = vote.agreement(learner, judge)
    assert (found.s1.n, found.s1.accuracy.value) == (7, pytest.approx(4 / 7))
    assert (found.s2.n, found.s2.accuracy.value) == (3, pytest.approx(2 / 3))
    # Wilson, 4 of 7
    assert (found.s1.accuracy.low, found.s1.accuracy.high) == pytest.approx(
        (0.2505, 0.8418), abs=1e-4
    )
    assert (found.failed, found.unjudged) == (1, 1)
    assert "57 % [25, 84] of 7 votes agree (chance 33 %)" in str(found)
    assert "some judge" in str(found)
    assert "1 of your votes, on prompts that have no readable verdict" in str(found)


def test_random_voters_agree_by_chance():
    """A third in S1 and a half in S2, as the paper says; kappa is 0 in both."""
    rng = random.Random(0)
    names = [f"p{i}" for i in range(6000)]
    found = vote.agreement(
        cast(**{name: rng.choice(("tuned", "base", "tie")) for name in names}),
        verdicts(**{name: rng.choice(("win", "loss", "inconsistent")) for name in names}),
    )
    assert found.s1.accuracy.value == pytest.approx(1 / 3, abs=0.02)
    assert found.s2.accuracy.value == pytest.approx(1 / 2, abs=0.03)
    assert abs(found.s1.kappa.value) < 0.04 and abs(found.s2.kappa.value) < 0.06


def test_all_ties_leave_the_second_setup_empty():
    found = vote.agreement(cast(a="tie", b="tie"), verdicts(a="win", b="inconsistent"))
    assert found.s2 is None
    assert found.s1.n == 2
    assert "S2, only where neither called a tie: no votes." in str(found)


def test_own_position_bias_is_told():
    votes = {
        f"p{i}": {"vote": "base", "position": "first" if i < 9 else "second"} for i in range(10)
    }
    told = str(vote.agreement(votes, verdicts(p0="win")))
    assert (
        "9 votes for the first answer shown, 1 for the second, exact binomial test p = .021" in told
    )


def test_result_of_the_command_line(folder, capsys):
    with pytest.raises(utils.CourseError, match="There are no votes"):
        vote.main(["--result"])
    box = ballot(folder)
    box.vote(box.next().key, "first")
    vote.main(["--result"])
    assert "rehearsal (stand-in)" in capsys.readouterr().out
    (folder / "verdicts.jsonl").unlink()
    with pytest.raises(utils.CourseError, match="verdicts.jsonl does not exist"):
        vote.main(["--result"])
    with pytest.raises(utils.CourseError, match="answers.jsonl does not exist"):
        vote.main(["--run", "none"])
    assert not (utils.ROOT / "runs" / "none").exists()


# --- the page -------------------------------------------------------------------------------------

ROOT = utils.ROOT
START = """
import sys; from pathlib import Path
sys.path.insert(0, {root!r})
import utils; from evaluation import vote
utils.ROOT = Path({course!r})
vote.main(["--run", "default"])
"""


@pytest.fixture
def page(folder, course):
    """`(address, process)` of the running command."""
    script = START.format(root=str(ROOT), course=str(course))
    with (course / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    def told():
        return re.search(r"Vote at (\S+)", (course / "log").read_text())

    try:
        yield wait(told, process, course)[1], process
    finally:
        process.kill()
        process.wait()


def wait(condition, process=None, course=None, seconds=60):
    """What `condition` returns once it is true; fails with the log of a process that ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        assert process is None or process.poll() is None, (course / "log").read_text()
        time.sleep(0.1)
    pytest.fail("waited in vain")


def test_three_votes_in_a_browser(page, folder, course):
    address, process = page
    listening = {
        c.laddr.ip
        for c in psutil.Process(process.pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    }
    assert address.startswith("http://127.0.0.1:") and listening == {"127.0.0.1"}, (
        "others on the network could vote"
    )
    expected = vote.pairs(folder)
    with chromium() as browser:
        view(browser, 360)
        browser.get(address)

        def shown(name):
            script = f"return document.getElementById('{name}')?.textContent ?? ''"
            return browser.execute_script(script)

        for number, (pair, button) in enumerate(
            zip(expected, ("choose-1", "choose-tie", "choose-2"), strict=False)
        ):
            assert "6" in shown("status") and str(number) in shown("status")
            texts = [shown(name) for name in ("prompt", "first", "second")]
            assert texts == [pair.prompt, pair.first, pair.second]
            source = browser.page_source.lower()
            assert "tuned" not in source.replace(pages.CSS.lower(), "")
            assert not re.search(r"\bp\d\b|\bbase\b", source.split("</style>")[1]), (
                "the page tells which is which"
            )
            browser.find_element("id", button).click()
            wait(lambda n=number: str(n + 1) in shown("status"))
        votes = [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]
        assert [v["position"] for v in votes] == ["first", "tie", "second"]
        assert [v["id"] for v in votes] == [pair.id for pair in expected[:3]]
        assert votes[0]["vote"] == expected[0].first_is and votes[2]["vote"] != expected[2].first_is

        browser.refresh()
        assert shown("first") == expected[3].first
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, "too wide for a phone"
        assert "owned" not in browser.title, "a script in an answer ran"
        assert violations(browser) == []
        browser.find_element("id", "end").click()
        told = wait(lambda: shown("result"))
        assert "You and the judge rehearsal (stand-in)" in told and violations(browser) == []
        assert all(url.startswith(address) for url in requested(browser)), (
            "the page asked for something that is not on this machine"
        )
    assert told in (course / "log").read_text(), "and printed where the command runs"
    votes = ballot(folder).votes
    assert told == str(vote.agreement(votes, utils.read_jsonl(folder / "verdicts.jsonl")))
    process.send_signal(signal.SIGINT)
    wait(lambda: process.poll() is not None)


def asked(folder):
    from starlette.testclient import TestClient

    return TestClient(vote.app(ballot(folder), folder), base_url="http://127.0.0.1")


def test_a_page_from_elsewhere_cannot_vote_or_read(folder):
    """Another host's name for this machine (DNS rebinding), a vote without the key of a pair."""
    client = asked(folder)
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    for body in ("position=first", "key=x&position=first", "", "key=%ff", "position=" + "x" * 99):
        assert client.post("/vote", content=body, follow_redirects=False).status_code == 303
    assert not (folder / "votes.jsonl").exists()
    key = ballot(folder).next().key
    client.post("/vote", content=f"key={key}&position=neither")
    assert ballot(folder).votes == {}
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_the_last_page_thanks_and_a_korean_prompt_has_korean_buttons(folder):
    records = utils.read_jsonl(folder / "answers.jsonl")
    korean = records[0] | {"prompt": "봄을 한 문장으로 알려 주세요."}
    utils.write_jsonl(folder / "answers.jsonl", [korean])
    client = asked(folder)
    said = client.get("/").text
    assert '<html lang="ko">' in said and "답변 1이 낫습니다" in said and "better" not in said
    key = ballot(folder).next().key
    after = client.post("/vote", content=f"key={key}&position=tie")
    assert "thank you" in after.text and "<form" not in after.text


def test_a_port_in_use_is_one_sentence(folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(utils.CourseError, match=f"Port {port} is in use"):
            vote.main(["--run", "default", "--port", str(port)])


def test_a_korean_reader_votes_in_korean(folder, monkeypatch):
    """Whatever language a prompt is in: the page, the words between turns and the agreement."""
    monkeypatch.setattr(utils, "_reader", "ko")
    record = {
        "id": "p0",
        "language": "en",
        "system": "Be brief.",
        "prompt": "Name a fruit.",
        "follow_ups": [{"prompt": "And another?"}],
        "base": ["pear", "fig"],
        "tuned": ["plum", "date"],
    }
    utils.write_jsonl(folder / "answers.jsonl", [record])
    client = asked(folder)
    pages_read = [client.get("/").text, client.get("/agreement").text]
    assert 'lang="en">--- 시스템 메시지 ---' in pages_read[0] and "이어진 요청" in pages_read[0]
    assert "아직 투표하지 않았습니다" in pages_read[1]
    body = f"key={ballot(folder).next().key}&position=first"
    pages_read += [client.post("/vote", content=body).text, client.get("/agreement").text]
    assert "고맙습니다" in pages_read[2] and "우연히 일치할 비율 33%" in pages_read[3]
    assert "S2, 둘 다 무승부라고 하지 않은 것만: 1표 가운데" in pages_read[3]
    for page in pages_read:
        assert '<html lang="ko">' in page and "vote" not in re.sub("<[^>]*>|/?`.*`", "", page)
