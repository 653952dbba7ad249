"""Generation and judging at several servers: servers that fail in every way, a hard budget, nothing
paid for twice whatever the layout, and a program that is killed."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from raw_server import Said, completion, serving

import utils
from evaluation import judge
from llm import endpoint
from llm.budget import BudgetExceeded
from llm.client import Client
from rehearsal import stand_ins
from scale import generate, pool
from training import generation

MODEL = stand_ins.MODEL
BOTH = ("en", "ko")
# Dollars per million tokens: a request costs about a dollar at worst
DEAR = (50.0, 50.0, 50.0)
FAILS = Said({"error": {"message": "내부 오류"}}, 500)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", stand_ins.KEY)


def rehearse(path: str, body: dict, number: int) -> Said:
    """The rehearsal teacher and judge, but for the wire."""
    if not path.endswith("/chat/completions"):
        return Said({"error": {"message": "Not found"}}, 404)
    status, said = stand_ins.respond(body, number)
    return Said(said, status, delay=0.02)


def teach(output, urls, requests: int = 24, seed: int = 42, languages=BOTH, size=1000, **options):
    """What `python -m scale.generate teach` does, and its report."""
    with generate.alone(output, "teach", MODEL):
        client = pool.Pool(MODEL, urls, output / "requests.jsonl", **{"concurrency": 8} | options)
        items = generate.teach_items(requests, languages, seed)
        return generate.run(client, "teach", items, output, size)


def paid(output) -> list[str]:
    """The keys of all that was answered; a writer may be at its last line now."""
    if not (output / "requests.jsonl").exists():
        return []
    records = utils.read_jsonl(output / "requests.jsonl", whole_lines=True)
    return [record["key"] for record in records if "reply" in record]


def under_way(output) -> set[str]:
    """The keys of what was sent and is not answered."""
    records = utils.read_jsonl(output / "requests.jsonl", whole_lines=True)
    return {record["key"] for record in records} - set(paid(output))


def rows(output) -> list[dict]:
    return [row for path in sorted(output.glob("0*.jsonl")) for row in utils.read_jsonl(path)]


def by_one_client(requests: int, tmp_path) -> list[dict]:
    with serving(rehearse) as server:
        client = Client(MODEL, server.url, journal=tmp_path / "alone.jsonl")
        return asyncio.run(generate.teach(client, generate.teach_items(requests, BOTH)))


# --- servers that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (FAILS, r"failed.* \(500: 내부 오류\)"),
        (Said({"error": {"message": "slow down"}}, 429), r"failed.* \(429: slow"),
        (Said({"error": {"message": "busy"}}, 429, {"retry-after": "9999"}), "no more requests"),
        (Said("<html><title>Bad gateway</title>", 502), r"\(502: a web page: Bad gateway\)"),
        (Said({"error": {"message": "no schemas"}}, 400), "does not accept the request"),
        (Said({"error": {"message": "who?"}}, 401), "rejects the API key"),
        (Said({"error": {"message": "no such model"}}, 404), "has no model"),
        (Said(hang_up_before=True), "broke the connection"),
        (Said(completion(), hang_up=True), "broke the connection"),
        (Said(completion(), delay=4), "did not answer for 1 seconds"),
        (Said("not JSON"), r"failed.* \(200: malformed JSON"),
    ],
)
def test_what_a_server_leaves_goes_to_the_others_in_the_same_run(answers, says, tmp_path):
    with serving(answers) as fails, serving(rehearse) as stays:
        report = teach(tmp_path, [fails.url, stays.url], 40, timeout=1.0)
    assert list(report["failing"]) == [fails.url]
    assert re.search(says, report["failing"][fails.url])
    assert (report["asked"], report["unanswered"]) == (40, 0)
    assert len(set(paid(tmp_path))) == len(paid(tmp_path)) == len(stays.asked) == 40
    assert len(fails.asked) <= 4 * pool.ATTEMPTS  # and not forty times five
    expected = by_one_client(40, tmp_path)
    assert rows(tmp_path) == [row for row in expected if not generate.rejected(row)]
    assert rows(tmp_path / "rejected") == [row for row in expected if generate.rejected(row)]
    assert any(utils.hangul_share(row["instruction"]) > 0.5 for row in rows(tmp_path))


def test_a_server_that_nobody_runs_is_left_out(tmp_path):
    with serving(rehearse) as stays, serving(FAILS) as gone:
        gone.stop()
        report = teach(tmp_path, [gone.url, stays.url], prices=DEAR, budget_usd=1000)
    assert "cannot be reached" in report["failing"][gone.url]
    assert report["lost_usd"] == 0 and report["unanswered"] == 0  # nothing was ever sent there


def test_a_server_that_is_killed_in_the_middle(tmp_path):
    with contextlib.ExitStack() as dying, serving(rehearse) as stays:
        dies = dying.enter_context(stand_ins.separate(latency=0.1))

        def kill():
            while len(paid(tmp_path)) < 20:
                time.sleep(0.02)
            dying.close()

        killer = threading.Thread(target=kill)
        killer.start()
        report = teach(tmp_path, [dies, stays.url], 200, concurrency=2)
        killer.join()
    assert list(report["failing"]) == [dies] and report["unanswered"] == 0
    assert 0 < len(stays.asked) < 200  # some were answered by the other before it was gone
    assert len(set(paid(tmp_path))) == len(paid(tmp_path)) == 200


def test_a_slow_server_is_no_broken_one_and_holds_up_none(tmp_path):
    def slowly(path, body, number):
        return Said(rehearse(path, body, number).body, delay=0.5)

    with serving(slowly) as slow, serving(rehearse) as fast:
        started = time.monotonic()
        report = teach(tmp_path, [slow.url, fast.url], 60, concurrency=2, timeout=5)
    assert report["failing"] == {} and report["unanswered"] == 0
    assert 0 < len(slow.asked) < len(fast.asked) / 3
    assert time.monotonic() - started < 60 / 4 * 0.5  # as long as half of them would take there


def test_a_server_that_fails_now_and_then_is_kept(tmp_path):
    def flaky(path, body, number):
        return FAILS if number % 3 == 1 else rehearse(path, body, number)

    with serving(flaky) as server:
        report = teach(tmp_path, [server.url], 40)
    assert report["failing"] == {} and report["unanswered"] == 0 and report["asked"] == 40


def test_a_request_that_no_server_answers_costs_that_request_only(tmp_path):
    def poisoned(path, body, number):
        return FAILS if body.get("seed") == 3 else rehearse(path, body, number)

    with serving(poisoned) as one, serving(poisoned) as other:
        report = teach(tmp_path, [one.url, other.url], 200, concurrency=1)
        assert report["failing"] == {} and report["unanswered"] == 1
        (left,) = [row for row in rows(tmp_path / "rejected") if row["id"] == "ko-0000003"]
        assert left["error"].startswith(pool.UNANSWERED) and "내부 오류" in left["error"]
        asked = len(one.asked) + len(other.asked)
        assert 199 + pool.ATTEMPTS <= asked <= 199 + 2 * pool.ATTEMPTS
        # And if it is all that is left to ask, no server is to blame either
        report = teach(tmp_path, [one.url, other.url], 200, concurrency=1)
        assert report["failing"] == {} and (report["asked"], report["unanswered"]) == (0, 1)
    with serving(rehearse) as mended:
        report = teach(tmp_path, [mended.url], 200)
    assert (report["asked"], report["unanswered"], len(mended.asked)) == (1, 0, 1)


def command(monkeypatch, output, *options: str) -> None:
    arguments = ["generate", "teach", "--model", MODEL, "--output", str(output), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    generate.main()


def test_a_run_in_which_all_fails_says_why_of_each_server(monkeypatch, tmp_path):
    no_key = Said({"error": {"message": "who?"}}, 401)
    refusal = pytest.raises(utils.CourseError)
    with serving(FAILS) as one, serving(no_key) as other, refusal as refused:
        command(monkeypatch, tmp_path, "--endpoint", one.url, other.url)
    said = str(refused.value)
    assert f"No server answers any more: {one.url} failed 5 times in a row (500: 내부 오류)" in said
    assert f"{other.url} rejects the API key (401)" in said and "\n" not in said
    assert paid(tmp_path) == [] and rows(tmp_path) == []


def test_what_was_answered_before_all_servers_broke_is_written(monkeypatch, tmp_path):
    def breaks(path, body, number):
        return rehearse(path, body, number) if number < 20 else FAILS

    again = pytest.raises(utils.CourseError, match="run again to go on")
    with serving(breaks) as server, again:
        command(monkeypatch, tmp_path, "--endpoint", server.url, "--requests", "50")
    report = utils.read_json(tmp_path / "report.json")
    assert len(paid(tmp_path)) == 20 and len(rows(tmp_path)) == report["kept"] > 100
    assert report["unanswered"] == 30
    with serving(rehearse) as mended:
        command(monkeypatch, tmp_path, "--endpoint", mended.url, "--requests", "50")
    assert len(mended.asked) == 30 and len(set(paid(tmp_path))) == len(paid(tmp_path)) == 50


def test_requests_that_are_all_refused_are_an_error(tmp_path):
    too_long = Said({"error": {"message": "maximum context length", "code": "x"}}, 400)
    with serving(too_long) as server, pytest.raises(utils.CourseError, match="None of 4 requests"):
        teach(tmp_path, [server.url], 4)


def test_replies_that_are_all_junk_stop_after_the_first_few(tmp_path):
    with serving(Said(completion("음, 글쎄요."))) as server:
        with pytest.raises(utils.CourseError, match="None of 8 replies of rehearsal can be read"):
            teach(tmp_path, [server.url], 100)
        assert len(server.asked) == generate.TRIAL
    with serving(rehearse) as mended:
        report = teach(tmp_path, [mended.url], 10, retry_failed=True)
    assert report["unanswered"] == 0 and len(mended.asked) == 10


# --- money ----------------------------------------------------------------------------------------


def test_another_layout_in_the_same_folder_asks_only_what_is_new(tmp_path):
    with serving(rehearse) as server:
        first = teach(tmp_path, [server.url], 20, size=50, prices=DEAR)
        names = sorted(path.name for path in tmp_path.glob("0*.jsonl"))
        before = rows(tmp_path)
        assert len(names) == -(-first["kept"] // 50) > 4
        # Another size of the shards: none is asked, and no shard of the old layout is left
        again = teach(tmp_path, [server.url], 20, size=200, prices=DEAR)
        assert again["asked"] == 0 and again["spent_usd"] == first["spent_usd"]
        assert len(list(tmp_path.glob("0*.jsonl"))) == -(-first["kept"] // 200)
        assert rows(tmp_path) == before
        # Fewer, then more of them
        assert teach(tmp_path, [server.url], 10)["asked"] == 0
        assert len(rows(tmp_path)) < len(before)
        assert teach(tmp_path, [server.url], 30)["asked"] == 10
        assert rows(tmp_path)[: len(before)] == before
        # Another seed, another language, and back
        assert teach(tmp_path, [server.url], 10, seed=7)["asked"] == 10
        assert teach(tmp_path, [server.url], 10, languages=("ko",))["asked"] >= 5
        back = teach(tmp_path, [server.url], 30, prices=DEAR)
    assert back["asked"] == 0
    assert back["spent_usd"] == pytest.approx(sum(costs(tmp_path)))  # that of all layouts
    assert len(set(paid(tmp_path))) == len(paid(tmp_path)) == len(server.asked)


def costs(output) -> list[float]:
    records = utils.read_jsonl(output / "requests.jsonl")
    return [record["cost_usd"] for record in records if "reply" in record]


def test_the_budget_is_hard_over_all_calls_whatever_they_ask(tmp_path):
    with serving(rehearse) as server, serving(rehearse) as other:
        urls = [server.url, other.url]
        for budget in (2.0, 3.5):
            for seed in (1, 2, 3):
                with pytest.raises(BudgetExceeded, match=r"raise BUDGET_USD .* run again to go on"):
                    teach(tmp_path, urls, 100, seed, prices=DEAR, budget_usd=budget)
                assert 0 < sum(costs(tmp_path)) <= budget
        records = utils.read_jsonl(tmp_path / "requests.jsonl")
        assert budget - sum(costs(tmp_path)) < max(
            record["worst_usd"] for record in records if "reply" in record
        )
        assert len(set(paid(tmp_path))) == len(paid(tmp_path))
        assert len(paid(tmp_path)) == len(server.asked) + len(other.asked)
        assert rows(tmp_path)  # a call for which nothing is left takes away no rows


def test_lost_answers_count_and_a_hanging_server_costs_few_of_them(tmp_path):
    with serving(Said(completion(), delay=4)) as hangs, serving(rehearse) as stays:
        urls = [hangs.url, stays.url]
        report = teach(tmp_path, urls, 20, prices=DEAR, budget_usd=1000, timeout=1.0)
    # With a budget, one at a time is under way at a server that has not answered yet
    assert len(hangs.asked) == 1 and 0 < report["lost_usd"] < 1.5
    assert report["unanswered"] == 0


def test_a_server_that_does_not_count_is_booked_at_its_worst_case(tmp_path):
    def uncounted(path, body, number):
        said = rehearse(path, body, number)
        return Said(json.loads(said.content) | {"usage": None}) if said.status == 200 else said

    with serving(uncounted) as server:
        report = teach(tmp_path, [server.url], 4, prices=DEAR)
    worst = [record["worst_usd"] for record in utils.read_jsonl(tmp_path / "requests.jsonl")[-1:]]
    assert report["estimated"] == 4 and report["spent_usd"] > 3.9 * worst[0]


def test_a_killed_program_goes_on_and_what_was_under_way_counts_as_spent(tmp_path):
    with stand_ins.separate(latency=0.5) as url:
        arguments = [sys.executable, "-m", "scale.generate", "teach", "--requests", "60"]
        arguments += ["--model", MODEL, "--endpoint", url, "--output", str(tmp_path)]
        arguments += ["--concurrency", "2", "--prices", "50, 50, 50", "--budget-usd", "100"]
        options = {"cwd": utils.ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        first = subprocess.Popen(arguments, **options)
        deadline = time.time() + 120
        while len(paid(tmp_path)) < 2:
            assert first.poll() is None and time.time() < deadline, first.communicate()
            time.sleep(0.02)
        # Meanwhile another one is refused, with whose folder it is
        other = subprocess.run(arguments, cwd=utils.ROOT, capture_output=True, encoding="utf-8")
        assert other.returncode == 2 and f"by process {first.pid} on " in other.stderr
        # Between one answer and the next request nothing is under way: not a moment to kill it at
        while not under_way(tmp_path):
            assert first.poll() is None and time.time() < deadline, first.communicate()
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        before = paid(tmp_path)
        done = subprocess.run(arguments, cwd=utils.ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    report = utils.read_json(tmp_path / "report.json")
    assert 2 <= len(before) < 60 and len(set(paid(tmp_path))) == len(paid(tmp_path)) == 60
    assert set(before) < set(paid(tmp_path)) and report["asked"] == 60 - len(before)
    assert 0 < report["lost_usd"] < 2.5  # two requests were under way, at a dollar each


# --- the folder -----------------------------------------------------------------------------------


def test_a_folder_of_another_model_job_or_layout_is_refused_before_anything_is_asked(tmp_path):
    with serving(rehearse) as server:
        teach(tmp_path, [server.url], 2)
    for job, model, says in (
        ("teach", "qwen", "is of the model 'rehearsal', and this would be of 'qwen'"),
        ("judge", MODEL, "is of the job 'teach', and this would be of 'judge'"),
    ):
        with (
            pytest.raises(utils.CourseError, match=says),
            generate.alone(tmp_path, job, model),
        ):
            pass
    old = tmp_path / "old"
    utils.write_jsonl(old / "journal" / "00000.jsonl", [])
    with (
        pytest.raises(utils.CourseError, match="not made by this version.*another --output"),
        generate.alone(old, "teach", MODEL),
    ):
        pass


def test_what_an_older_version_paid_for_can_be_taken_along(tmp_path):
    """As scale/README.md says: its journals, one after the other, are the journal."""
    with serving(rehearse) as server:
        teach(tmp_path / "made", [server.url], 6)
        new = tmp_path / "new"
        new.mkdir()
        lines = (tmp_path / "made" / "requests.jsonl").read_text().splitlines(keepends=True)
        (new / "requests.jsonl").write_text("".join(lines[3:] + lines[:3]))
        assert teach(new, [server.url], 6)["asked"] == 0
    assert rows(new) == rows(tmp_path / "made")


def test_a_held_folder_is_said_after_a_second_with_who_holds_it(tmp_path):
    with generate.alone(tmp_path, "teach", MODEL):
        started = time.monotonic()
        says = rf"is being written by process {os.getpid()} on .+, since 20.*both would ask and pay"
        with pytest.raises(utils.CourseError, match=says), generate.alone(tmp_path, "teach", "x"):
            pass
        assert time.monotonic() - started < 5
    with generate.alone(tmp_path, "teach", MODEL):  # and it is free again
        pass


@pytest.mark.parametrize("url", ["http://gpu.example.com:8000/v1", "http://10.0.0.5:8000/v1"])
def test_only_openai_needs_a_key(url, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(utils, "_from_dotenv", lambda name: None)
    assert pool.Pool("qwen", [url], tmp_path / "j").servers[0].name == url
    with pytest.raises(utils.CourseError, match="needs an API key"):
        pool.Pool("gpt-4o", [None], tmp_path / "j")


def test_a_budget_needs_a_price_where_one_server_may_ask_for_one(tmp_path):
    urls = ["http://10.0.0.5:8000/v1", "https://gpu.example.com/v1"]
    with pytest.raises(utils.CourseError, match="price of qwen is unknown"):
        pool.Pool("qwen", urls, tmp_path / "j", budget_usd=1)
    assert pool.Pool("qwen", urls[:1], tmp_path / "j", budget_usd=1).prices == (0, 0, 0)


def test_bad_options_are_one_sentence(monkeypatch, tmp_path):
    for options, says in (
        (["--endpoint", "localhost:8000/v1"], "names no server"),
        (["--requests", "0"], "--requests is 0"),
        (["--budget-usd", "-1", "--prices", "1, 1, 1"], "The budget is -1.0"),
    ):
        with pytest.raises(utils.CourseError, match=says):
            command(monkeypatch, tmp_path, *options)


# --- verdicts -------------------------------------------------------------------------------------


def answered(tmp_path, count: int = 3) -> list[dict]:
    prompts = [
        item
        for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
        if not item.get("follow_ups")
    ][:count]
    base = [[generation.Answer("네.", True, 3)]] * count
    tuned = [[generation.Answer("A longer answer, to be sure.", True, 3)]] * count
    generation.write_answers(
        tmp_path / "answers.jsonl", prompts, base, tuned, generation.Decoding()
    )
    return prompts


def judge_all(tmp_path, url: str) -> dict:
    with generate.alone(tmp_path / "out", "judge", MODEL):
        client = pool.Pool(MODEL, [url], tmp_path / "out" / "requests.jsonl", concurrency=2)
        items = generate.judge_items(tmp_path / "answers.jsonl")
        return generate.run(client, "judge", items, tmp_path / "out")


def test_judging_gives_the_records_of_one_client(tmp_path):
    prompts = answered(tmp_path)
    with serving(rehearse) as server:
        judge_all(tmp_path, server.url)
        client = Client(MODEL, server.url)
        tuned, base = [["A longer answer, to be sure."]] * 3, [["네."]] * 3
        expected = asyncio.run(judge.Judge(client).compare(prompts, tuned, base))
    assert rows(tmp_path / "out") == expected


def test_a_verdict_that_was_not_given_is_no_failed_one(tmp_path):
    answered(tmp_path)

    def breaks(path, body, number):
        return rehearse(path, body, number) if number < 3 else FAILS

    with serving(breaks) as server, pytest.raises(utils.CourseError, match="No server answers"):
        judge_all(tmp_path, server.url)
    assert len(paid(tmp_path / "out")) == 3
    assert len(rows(tmp_path / "out")) <= 1 and len(rows(tmp_path / "out" / "rejected")) >= 2
    assert all(record["outcome"] != "failed" for record in rows(tmp_path / "out"))
    with serving(rehearse) as mended:
        assert judge_all(tmp_path, mended.url)["asked"] == 3
    assert len(rows(tmp_path / "out")) == 3 and rows(tmp_path / "out" / "rejected") == []


def test_answers_to_unknown_prompts_are_refused(tmp_path):
    utils.write_jsonl(tmp_path / "answers.jsonl", [{"id": "nobody"}])
    with pytest.raises(utils.CourseError, match="'nobody', which is no prompt"):
        generate.judge_items(tmp_path / "answers.jsonl")


def test_every_call_makes_the_same_request():
    listed = generate.teach_items(10, ("en", "ko"))
    assert listed[:6] == generate.teach_items(6, ("en", "ko"))
    assert len({str(item["request"]) for item in listed}) == 10
