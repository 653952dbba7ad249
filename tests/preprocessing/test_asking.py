"""Rounds of requests: as many as the settings say, of every language, in the chosen method."""

import asyncio

import pytest

import settings
from llm.client import Client
from preprocessing import asking, self_instruct
from preprocessing.ledger import Ledger


def rounds(endpoint: str, **form) -> asking.Rounds:
    form = {"REQUESTS": 3, "REQUESTS_AT_ONCE": 2, **form}
    chosen = settings.resolve({name: str(value) for name, value in form.items()})
    seeds = self_instruct.load_seeds(chosen.languages)
    teacher = Client("rehearsal", endpoint, "rehearsal")
    return asking.Rounds(chosen, seeds, teacher)


def test_every_language_is_asked_as_often_and_no_oftener_than_requests_says(course, endpoint):
    plan = rounds(endpoint)
    first, second = plan.next([]), plan.next([])
    assert [one.language for one in first] == ["en", "ko", "en", "ko"]
    assert [one.language for one in second] == ["en", "ko"] and not plan.left
    told = {str(one.request["messages"]) + str(one.request["seed"]) for one in first + second}
    assert len(told) == 6, "two requests that are alike would be answered once"


def test_the_same_seed_asks_the_same(course, endpoint):
    """Else a second run would pay for everything again."""
    once, again = rounds(endpoint).next([]), rounds(endpoint).next([])
    assert [one.request for one in once] == [one.request for one in again]


@pytest.mark.parametrize(("method", "shown"), [("alpaca", 3), ("self-instruct", 8)])
def test_each_method_shows_as_many_tasks_as_its_paper(course, endpoint, method, shown):
    plan = rounds(endpoint, METHOD=method)
    assert all(len(one.demonstrations) == shown for one in plan.next([]))


def test_what_comes_back_is_booked_with_its_provenance(course, endpoint):
    plan, ledger = rounds(endpoint, LANGUAGE="ko"), Ledger()
    asked = plan.next([])
    replies = asyncio.run(plan.send(asked))
    rows = plan.book(ledger, asked[0], replies[0])
    assert rows and all(row["language"] == "ko" for row in rows)
    assert rows[0]["demonstrations"] == [task["id"] for task in asked[0].demonstrations]
    assert "stand-in" in rows[0]["teacher"]
