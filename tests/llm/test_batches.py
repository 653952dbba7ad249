"""Batches at half the price: submitted once, whatever happens, and collected whatever came of
them."""

import asyncio
import json
import random
import time

import client_tools
import pytest
from client_tools import PRICES, ask, asked, client, run, served, spawn, work_in_a_batch

import utils
from llm import batches, models
from llm.budget import BudgetExceeded
from llm.client import Client
from llm.replies import Reply, Request
from preprocessing.self_instruct import TaskBatch
from rehearsal import stand_ins


def batch(one: Client, requests: list[dict], schema=None) -> list[Reply]:
    return asyncio.run(one.complete_batch(requests, schema, poll_seconds=0.02))


def interrupted(one: Client, requests: list[dict], seconds: float = 1.0) -> None:
    """Submit, and give up waiting."""
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(one.complete_batch(requests, poll_seconds=0.02), seconds))


def test_same_answers_at_half_the_price_and_one_journal(tmp_path):
    url = stand_ins.start(batch_seconds=0.1)
    plain = client(url, journal=tmp_path / "plain", prices=PRICES)
    expected = run(plain, ask(9), TaskBatch)
    one = client(url, journal=tmp_path / "j", prices=PRICES, budget_usd=1)
    run(one, ask(2), TaskBatch)
    replies = batch(one, ask(9), TaskBatch)  # the server answers in another order
    assert [reply.text for reply in replies] == [reply.text for reply in expected]
    assert [reply.cached for reply in replies] == [True] * 2 + [False] * 7
    assert replies[5].parsed.tasks == expected[5].parsed.tasks
    assert replies[5].cost_usd == pytest.approx(expected[5].cost_usd / 2)
    assert (
        one.spent_usd
        == pytest.approx(sum(reply.cost_usd for reply in replies))
        == pytest.approx(one.usage.cost_usd)
    )

    again = client(url, journal=tmp_path / "j")
    assert all(reply.cached for reply in run(again, ask(9), TaskBatch))
    assert again.usage.requests == 0
    assert all(reply.cached for reply in batch(again, ask(9), TaskBatch))
    assert served(url)["batches"] == 1


def test_large_inputs_are_split_by_number_and_by_size(tmp_path, monkeypatch):
    body = {"messages": [{"role": "user", "content": "가" * 30}]}
    bodies = {str(number): Request(str(number), body, 100, 100, 0.0) for number in range(10)}
    line = len(next(batches.files(bodies))[1]) // 10
    monkeypatch.setattr(batches, "MOST_REQUESTS", 4)
    assert [len(keys) for keys, _ in batches.files(bodies)] == [4, 4, 2]
    monkeypatch.setattr(batches, "MOST_BYTES", 3 * line + 1)
    parts = list(batches.files(bodies))
    assert [len(keys) for keys, _ in parts] == [3, 3, 3, 1]
    assert all(len(content) <= 3 * line + 1 for _, content in parts)
    url = stand_ins.start()
    assert not any(reply.error for reply in batch(client(url, journal=tmp_path / "j"), ask(10)))
    assert served(url)["batches"] >= 3


@pytest.mark.parametrize("fate", ["expired", "cancelled", "partial"])
def test_what_was_answered_is_kept_and_the_rest_can_be_asked_again(tmp_path, fate):
    url = stand_ins.start(fates=(fate,))
    one = client(url, journal=tmp_path / "j", prices=PRICES)
    replies = batch(one, ask(8))
    missing = [reply for reply in replies if reply.error]
    assert len(missing) == 4 and one.usage.requests == 4 and one.spent_usd > 0
    reason = {
        "expired": "batch_expired: ",
        "cancelled": "cancelled before it was answered: ask again",
        "partial": "server_error: The server had an error. (in",
    }
    assert all(reason[fate] in reply.error for reply in missing)
    again = client(url, journal=tmp_path / "j")
    assert not any(reply.error for reply in batch(again, ask(8)))
    assert again.usage.requests == again.usage.cached == 4


def test_a_file_that_is_refused_as_a_whole_costs_nothing(tmp_path):
    url = stand_ins.start(fates=("failed",))
    one = client(url, journal=tmp_path / "j", prices=PRICES, budget_usd=1)
    with pytest.raises(
        utils.CourseError,
        match=r"refused batch_rehearsal_0 as a whole \(line 1: This line is not parseable",
    ):
        batch(one, ask(3))
    assert one.spent_usd == 0 and not any(reply.error for reply in batch(one, ask(3)))


def test_one_request_that_is_refused_does_not_cost_the_others(tmp_path):
    url = stand_ins.start()
    good, bad, other = batch(
        client(url, journal=tmp_path / "j"), [*ask(1), {"messages": []}, *ask(1, temperature=0.5)]
    )
    assert good.error is None
    assert other.error is None
    assert "'messages' is missing or empty" in bad.error


def test_a_batch_whose_creation_was_not_heard_of_is_found_again(tmp_path):
    """The connection breaks after the server has created it: creating another would pay twice."""
    url = stand_ins.start(fates=("lost", "lost"))
    assert not any(reply.error for reply in batch(client(url, journal=tmp_path / "j"), ask(5)))
    assert served(url)["batches"] == 1


def test_a_restart_waits_for_the_same_batch_even_with_other_requests(tmp_path):
    url = stand_ins.start(batch_seconds=2)
    interrupted(client(url, journal=tmp_path / "j"), ask(5))
    # Two of those, and two new ones
    replies = batch(client(url, journal=tmp_path / "j"), ask(7)[3:])
    assert not any(reply.error for reply in replies)
    assert served(url)["batches"] == 2
    assert served(url)["batch_served"] == 7
    kept = client(url, journal=tmp_path / "j")
    assert not any(reply.error for reply in run(kept, ask(7))) and kept.usage.requests == 0, (
        "all that was paid for is kept"
    )
    requests = [json.loads(line)["request"] for line in (tmp_path / "j").read_text().splitlines()]
    assert {request["seed"] for request in requests} == set(range(7))


def test_complete_does_not_ask_what_waits_in_a_batch(tmp_path):
    url = stand_ins.start(batch_seconds=60)
    interrupted(client(url, journal=tmp_path / "j"), ask(5))
    with pytest.raises(
        utils.CourseError,
        match="3 of these requests wait in batch_rehearsal_0 and would be paid for twice",
    ):
        run(client(url, journal=tmp_path / "j"), ask(3))


def test_budget_is_asked_before_anything_is_submitted(tmp_path):
    url = stand_ins.start(batch_seconds=60)
    worst = client(url, prices=PRICES).estimate(ask(10)) * models.BATCH_SHARE
    options = {"journal": tmp_path / "j", "prices": PRICES}
    with pytest.raises(BudgetExceeded, match=r"A batch of 10 requests may cost"):
        batch(client(url, budget_usd=worst * 0.99, **options), ask(10))
    assert served(url)["batches"] == 0
    interrupted(client(url, budget_usd=worst, **options), ask(10))
    with pytest.raises(BudgetExceeded, match="wait in a batch"):  # after a restart, too
        run(client(url, budget_usd=worst * 1.1, **options), ask(10, temperature=0.5))


def test_errors_are_for_people(tmp_path):
    url = stand_ins.start()
    with pytest.raises(utils.CourseError, match="complete_batch needs a journal"):
        batch(client(url), ask())
    with pytest.raises(utils.CourseError, match=r"rejects the API key \(401\)"):
        batch(client(url, journal=tmp_path / "j", api_key="wrong"), ask())
    with pytest.raises(utils.CourseError, match="cannot be reached"):
        batch(client("http://127.0.0.1:9/v1", journal=tmp_path / "k", attempts=2), ask())
    interrupted(client(stand_ins.start(batch_seconds=60), journal=tmp_path / "l"), ask())
    with pytest.raises(
        utils.CourseError, match=r"does not know batch_rehearsal_0 .* delete l.batches.jsonl"
    ):
        batch(client(url, journal=tmp_path / "l"), ask())


def test_luna_in_a_batch(tmp_path):
    url = stand_ins.start(serves=("gpt-6-luna",))
    one = client(url, journal=tmp_path / "j", model="gpt-6-luna")
    assert not any(reply.error for reply in batch(one, ask(3, temperature=0.7)))


def test_kill_9_submits_nothing_twice(tmp_path, fresh):
    rng, count, kills, rounds = random.Random(1), 40, 0, 0
    with stand_ins.separate(batch_seconds=0.3) as url:
        expected = [reply.text for reply in run(client(url), asked(count))]
        started = time.monotonic()
        spawn(fresh, work_in_a_batch, url, str(tmp_path / "timed"), count).join()
        duration = time.monotonic() - started
        while kills < 12:
            path = tmp_path / f"journal {rounds}.jsonl"
            work = (work_in_a_batch, url, str(path), count)
            kills += client_tools.killed_until_done(fresh, rng, duration, *work)
            rounds += 1
            after = client(url, journal=path)
            assert [reply.text for reply in run(after, asked(count))] == expected
            assert after.usage.requests == 0
            keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
            assert len(keys) == len(set(keys)) == count
            assert served(url)["batches"] == rounds + 1, "one a journal, and the timed one"
