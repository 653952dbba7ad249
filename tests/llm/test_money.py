"""Money: the budget under servers that do not keep to it, what may be lost, and one writer at a
time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time

import pytest
from client_tools import ask, client, kept, run, spawn
from raw_server import Said, completion, serving

import utils
from llm import models
from llm.budget import BudgetExceeded
from llm.client import Client
from llm.journal import Journal

DOLLAR = (0.0, 0.0, 1e6 / 100)  # of answers: a request of 100 tokens costs $1 at worst
LIMIT = {"prices": DOLLAR, "model": "teacher"}


def of_tokens(count: int) -> Said:
    return Said(completion(usage={"prompt_tokens": 10, "completion_tokens": count}))


# --- a server that does not keep to max_completion_tokens -----------------------------------------


def test_a_server_that_ignores_the_limit_overruns_the_budget_by_one_reply_at_most(tmp_path):
    """ollama#7125: each reply costs eight times its worst case; eight at once spent eight times the
    budget."""
    with serving(of_tokens(800)) as server:
        one = client(server.url, budget_usd=8.0, journal=tmp_path / "j", **LIMIT)
        with pytest.raises(BudgetExceeded, match="the server wrote more than max_completion_tok"):
            run(one, ask(8))
        assert len(server.asked) == 1 and one.spent_usd == pytest.approx(8.0)
        # A restart has learnt it too
        again = client(server.url, budget_usd=19.0, journal=tmp_path / "j", **LIMIT)
        with pytest.raises(BudgetExceeded, match=r"may cost \$12.0000"):
            run(again, ask(8))
        assert len(server.asked) == 1


def test_what_follows_a_dear_reply_is_reserved_at_the_rate_seen():
    with serving(of_tokens(200)) as server:
        one = client(server.url, budget_usd=10.0, **LIMIT)
        with pytest.raises(BudgetExceeded):
            run(one, ask(20))
        # $2 each, reserved at $3: the fifth would reserve $3 of the $2 that are left
        assert one.spent_usd == pytest.approx(8.0) and one.usage.requests == 4


def test_the_run_stops_where_even_that_does_not_hold():
    def worse_and_worse(path: str, body: dict, number: int) -> Said:
        return of_tokens(100 * 2**number)

    with serving(worse_and_worse) as server:
        one = client(server.url, budget_usd=1000.0, max_concurrency=1, **LIMIT)
        with pytest.raises(BudgetExceeded, match="does not keep to max_completion_tokens: a reply"):
            run(one, ask(8))
        # The first keeps to it, the second shows a scale of 3, and the third exceeds that
        assert len(server.asked) == 3


def test_before_the_first_answer_only_one_request_is_under_way_where_a_budget_is_kept():
    def slow(path: str, body: dict, number: int) -> Said:
        return Said(completion(), delay=0.3 if number == 0 else 0.05)

    with serving(slow) as server:
        one = client(server.url, budget_usd=1000.0, **LIMIT)
        run(one, ask(1))
        assert server.most == 1
        run(one, ask(20))
        assert server.most > 1, "after it they go together"


# --- amounts that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [-1.0, math.nan, math.inf, -math.inf])
def test_a_budget_that_is_no_amount_is_refused(budget):
    with pytest.raises(utils.CourseError, match="give BUDGET_USD in dollars, 0 or more"):
        Client("gpt-4o", api_key="x", budget_usd=budget)


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_a_price_that_is_no_amount_is_refused(price):
    with pytest.raises(utils.CourseError, match="PRICES are .*; give dollars, 0 or more"):
        Client("gpt-4o", api_key="x", prices=(1.0, 1.0, price))


def test_more_cached_than_read_costs_no_negative_sum():
    tokens = {"prompt_tokens": 10, "cached_tokens": 900, "completion_tokens": 0}
    assert models.cost((2.5, 1.25, 10.0), tokens) == pytest.approx(10 * 1.25 / 1e6)


# --- what may have been billed without arriving ---------------------------------------------------


def test_lost_answers_are_remembered_over_restarts(tmp_path):
    """Each restart at the same budget spent it anew: four at $0.02 made requests worth $0.073."""
    made = 0
    with serving(Said(completion(), hang_up=True)) as server:
        for _ in range(4):
            one = client(server.url, budget_usd=2.5, attempts=1, journal=tmp_path / "j", **LIMIT)
            with contextlib.suppress(BudgetExceeded):
                run(one, ask(4))
            made = len(server.asked)
    assert made == 2, "at worst $2 of the $2.50 are gone, for ever"
    assert one.lost_usd == pytest.approx(2.0)


def test_an_answer_after_a_lost_one_does_not_forget_it(tmp_path):
    def second(path: str, body: dict, number: int) -> Said:
        return Said(completion(), hang_up=number == 0)

    with serving(second) as server:
        one = client(server.url, budget_usd=9, journal=tmp_path / "j", **LIMIT)
        assert run(one, ask())[0].error is None
    again = client(server.url, budget_usd=9, journal=tmp_path / "j", **LIMIT)
    assert again.lost_usd == one.lost_usd == pytest.approx(1.0)
    assert again.spent_usd == one.spent_usd == pytest.approx(0.05)


def test_what_never_arrived_is_not_lost(tmp_path):
    one = client(
        "http://127.0.0.1:9/v1", budget_usd=2.5, journal=tmp_path / "j", attempts=3, **LIMIT
    )
    with pytest.raises(utils.CourseError, match="cannot be reached"):
        run(one, ask(1))
    again = client("http://127.0.0.1:9/v1", journal=tmp_path / "j", **LIMIT)
    assert again.lost_usd == one.lost_usd == one.usage.lost == 0


def test_what_was_refused_is_not_lost(tmp_path):
    with serving(Said({"error": {"message": "slow down"}}, 429)) as server:
        one = client(server.url, budget_usd=9, attempts=2, journal=tmp_path / "j", **LIMIT)
        run(one, ask())
    again = client(server.url, budget_usd=9, journal=tmp_path / "j", **LIMIT)
    assert again.lost_usd == one.lost_usd == 0


def work_expensively(url: str, path: str) -> None:
    """What is killed: a process of its own."""
    one = client(url, budget_usd=100, journal=path, max_concurrency=3, **LIMIT)
    run(one, ask(1))
    run(one, ask(8))


def test_a_kill_leaves_a_note_of_what_was_under_way(tmp_path, fresh):
    def slow(path: str, body: dict, number: int) -> Said:
        return Said(completion(), delay=0 if number == 0 else 30)

    with serving(slow) as server:
        process = spawn(fresh, work_expensively, server.url, str(tmp_path / "j"))
        while len(server.asked) < 4:
            time.sleep(0.01)
        process.kill()
        process.join()
        one = client(server.url, budget_usd=100, journal=tmp_path / "j", **LIMIT)
        worst = one.estimate(ask(2)[1:])
    assert one.lost_usd == pytest.approx(3 * worst)
    assert one.spent_usd == pytest.approx(0.05)


# --- one writer a journal -------------------------------------------------------------------------


def test_a_second_process_on_the_same_journal_is_refused(tmp_path, fresh):
    """Both would ask and pay for everything, and each report half."""
    with serving(Said(completion(), delay=1.0)) as server:
        process = spawn(fresh, work_expensively, server.url, str(tmp_path / "j"))
        while not server.asked:
            time.sleep(0.01)
        second = client(server.url, journal=tmp_path / "j", **LIMIT)
        with pytest.raises(utils.CourseError, match="is being written by another process or note"):
            run(second, ask(8))
        process.join()
        assert process.exitcode == 0
        # Once it is done, the second knows all that the first was answered
        assert all(reply.cached for reply in run(second, ask(8)))
        assert len(server.asked) == 8 and second.spent_usd == pytest.approx(8 * 0.05)


def test_opening_a_journal_while_another_writes_loses_no_line(tmp_path):
    """Opening cut off a torn last line, which another process was about to finish."""
    path = tmp_path / "j"
    record = json.dumps({"key": "a", "reply": {}, "cost_usd": 0, "usage": {}})
    with open(path, "wb", buffering=0) as file:
        file.write(record.encode() + b'\n{"key": "b", "re')
        assert list(Journal(path).entries) == ["a"]
        file.write(b'ply": {}, "cost_usd": 0, "usage": {}}\n')
    assert list(Journal(path).entries) == ["a", "b"]


def test_a_line_torn_by_a_kill_is_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"key": "a"}\n{"key": "b", "re')
    Journal(path).write({"key": "c"})
    assert [record["key"] for record in utils.read_jsonl(path)] == ["a", "c"]


def test_two_clients_one_after_the_other_share_a_journal(tmp_path):
    """Judge and teacher do, in one process."""
    with serving(Said(completion())) as server:
        first, second = (client(server.url, journal=tmp_path / "j", **LIMIT) for _ in range(2))
        run(first, ask(2))
        assert all(reply.cached for reply in run(second, ask(2)))
        run(second, ask(3))
        assert all(reply.cached for reply in run(first, ask(3))) and len(server.asked) == 3
        assert first.spent_usd == second.spent_usd == pytest.approx(0.15)


def test_an_interrupt_gives_the_journal_back(tmp_path):
    with serving(Said(completion(), delay=5)) as server:
        one = client(server.url, journal=tmp_path / "j", **LIMIT)
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(one.complete(ask(3)), 0.5))
    with serving(Said(completion())) as server:
        run(client(server.url, journal=tmp_path / "j", **LIMIT), ask(3))


# --- failures, old journals, and replies that cannot be used --------------------------------------


def test_bad_replies_are_kept_as_paid_and_asked_again_only_on_request(tmp_path, capsys):
    def better(path: str, body: dict, number: int) -> Said:
        cut = {"finish_reason": "length"} if number < 2 else {}
        return Said(completion(usage={"prompt_tokens": 10, "completion_tokens": 100}, **cut))

    with serving(better) as server:
        one = client(server.url, journal=tmp_path / "j", max_concurrency=1, **LIMIT)
        first = run(one, ask(3))
        assert [bool(reply.error) for reply in first] == [True, True, False]
        again = client(server.url, journal=tmp_path / "j", **LIMIT)
        assert [reply.error for reply in run(again, ask(3))] == [reply.error for reply in first]
        said = capsys.readouterr().out
        assert "3 replies from the journal, 2 of them unusable (RETRY_FAILED=on asks those" in said
        assert len(server.asked) == 3
        retry = client(server.url, journal=tmp_path / "j", retry_failed=True, **LIMIT)
        assert not any(reply.error for reply in run(retry, ask(3))) and len(server.asked) == 5
        assert not any(reply.error for reply in run(retry, ask(3))) and len(server.asked) == 5
    later = client(server.url, journal=tmp_path / "j", **LIMIT)
    assert later.spent_usd == pytest.approx(5.0), "what was paid for the bad ones stays paid"


def test_a_failed_retry_is_not_asked_again_and_again(tmp_path):
    cut = completion(usage={"prompt_tokens": 10, "completion_tokens": 100}, finish_reason="length")
    with serving(Said(cut)) as server:
        run(client(server.url, journal=tmp_path / "j", **LIMIT), ask(2))
        retry = client(server.url, journal=tmp_path / "j", retry_failed=True, **LIMIT)
        for _ in range(3):
            run(retry, ask(2))
        assert len(server.asked) == 4


OLD = {
    "model": "gpt-4o-2024-08-06",
    "system_fingerprint": None,
    "request": {
        "model": "teacher",
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": "과제를 만들어 주세요."}],
        "seed": 0,
    },
    "reply": {"content": "예전 답", "refusal": None, "finish_reason": "stop"},
    "usage": {"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 5},
    "cost_usd": 0.25,
    "time": "2026-01-01T00:00:00Z",
    "seconds": 0.2,
}


def test_a_journal_of_an_earlier_version_is_read_and_its_replies_are_not_paid_for_again(tmp_path):
    url = "http://example.org/v1"
    key = client(url, model="teacher")._request(ask()[0], None).key
    (tmp_path / "j").write_text(json.dumps(OLD | {"key": key}, ensure_ascii=False) + "\n")
    one = client(url, journal=tmp_path / "j", budget_usd=1, **LIMIT)
    assert (one.spent_usd, one.lost_usd) == (0.25, 0.0)
    (reply,) = run(one, ask())
    assert reply.cached and reply.text == "예전 답" and reply.cost_usd == 0.25


def test_another_model_behind_the_same_name_is_not_served_the_old_answers(tmp_path):
    """llama.cpp answers to any name."""

    def loaded(name: str):
        def answers(path: str, body: dict, number: int) -> Said:
            if path.endswith("/models"):
                return Said({"data": [{"id": name}]})
            return Said(completion(f"I am {name}"))

        return answers

    def answer(name: str) -> tuple[str, bool]:
        with serving(loaded(name)) as server:
            (reply,) = run(client(server.url, model="local", journal=tmp_path / "j"), ask())
        return reply.text, reply.cached

    assert answer("gemma.gguf") == ("I am gemma.gguf", False)
    assert answer("gemma.gguf") == ("I am gemma.gguf", True)
    assert answer("qwen.gguf") == ("I am qwen.gguf", False)
    gone = client("http://127.0.0.1:9/v1", model="local", journal=tmp_path / "j")
    assert run(gone, ask())[0].text == "I am qwen.gguf", "a server that is off is asked nothing"
    assert [entry["served"] for entry in kept(tmp_path / "j")] == ["gemma.gguf", "qwen.gguf"]


def test_the_cost_so_far_is_shown_while_asking(tmp_path, capfd):
    slow = Said(of_tokens(50).body, delay=0.2)  # a bar is drawn ten times a second at most
    with serving(slow) as server:
        one = client(server.url, journal=tmp_path / "j", max_concurrency=2, **LIMIT)
        run(one, ask(12))
        drawn = capfd.readouterr().err
        assert re.search(r"<00:0\d.*, \$[1-5]\.\d\d, \dk tokens", drawn), "time left and cost"
        assert one.so_far == "$6.00, 1k tokens"
    with serving(Said(b"")) as server:
        one = client(server.url, attempts=1, **LIMIT)
        run(one, ask())
        assert one.so_far == "$0.00, 0k tokens, up to $1.00 lost"
