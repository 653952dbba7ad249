"""The requests of a run, round by round: which seeds are shown, what is asked for, what comes back.

What it does: ask a teacher in the way that the settings choose (METHOD, REPLY_FORMAT, DOMAIN,
GROUNDING, ANSWER_LENGTH, BATCH), and book the replies in the ledger. What it does not do: word a
request (self_instruct.py), read a reply (parsing.py), filter (curation.py) or decide when to stop
(the notebook does).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import settings
from llm.client import Client
from llm.replies import Reply
from preprocessing import curation, grounding, self_instruct
from preprocessing.ledger import Ledger

TASKS = 20  # of one request, as in Alpaca


@dataclass(frozen=True)
class Asked:
    """A request, and what it shows."""

    language: str
    demonstrations: list[dict]
    request: dict


class Rounds:
    """The requests of a run, a few of each language at a time.

    Args:
        chosen: METHOD and the other settings, REQUESTS and REQUESTS_AT_ONCE among them.
        seeds: what demonstrations are drawn from.
        teacher: who is asked.
    """

    def __init__(self, chosen: settings.Settings, seeds: list[dict], teacher: Client) -> None:
        self.chosen, self.seeds, self.teacher = chosen, seeds, teacher
        self.rng = random.Random(chosen.seed)
        self.passages = grounding.find(chosen.domain) if chosen.grounding else []
        self.text = chosen.reply_format == "text"
        self.categories = self_instruct.categories_of(seeds, own=bool(chosen.seeds))
        self.asked = 0  # requests of each language so far

    @property
    def left(self) -> bool:
        """True while fewer than REQUESTS requests of each language were made."""
        return self.asked < self.chosen.requests

    def prepare(self, language: str, number: int, made: list[dict]) -> Asked:
        """The request `number` in a language, with demonstrations drawn for it; `made` are the
        tasks that were accepted so far, of which Self-Instruct shows two."""
        common = (
            language,
            TASKS,
            number,
            self.chosen.domain,
            self.text,
            grounding.prompt_block(self.passages, language),
            self.chosen.answer_length,
        )
        if self.chosen.method == "alpaca":
            shown = self_instruct.sample_demonstrations(self.seeds, language, 3, self.rng)
            request = self_instruct.batch_request(shown, *common, self.categories)
        else:
            shown = self_instruct.mixed_demonstrations(self.seeds, made, language, self.rng)
            request = self_instruct.instructions_request(shown, *common)
        return Asked(language, shown, request)

    def next(self, made: list[dict]) -> list[Asked]:
        """The next round: REQUESTS_AT_ONCE requests of each language."""
        last = min(self.asked + self.chosen.requests_at_once, self.chosen.requests)
        asked = []
        for number in range(self.asked, last):
            for language in self.chosen.languages:
                asked.append(self.prepare(language, number, made))
        self.asked = last
        return asked

    async def send(self, asked: list[Asked]) -> list[Reply]:
        """A reply for each, in order."""
        schema: type = self_instruct.task_batch(self.categories)
        if self.chosen.method == "self-instruct":
            schema = self_instruct.Instructions
        return await self._ask([one.request for one in asked], schema)

    async def _ask(self, requests: list[dict], schema: type) -> list[Reply]:
        return await self_instruct.ask(
            self.teacher, requests, schema, text=self.text, batch=self.chosen.batch
        )

    def book(self, ledger: Ledger, asked: Asked, reply: Reply) -> list[dict]:
        """Enter a reply's tasks into the ledger; the rows that are to be filtered."""
        return ledger.receive(
            reply,
            self_instruct.tasks_of(reply),
            asked.language,
            asked.demonstrations,
            self.chosen.label("teacher"),
            self.passages,
        )

    async def complete(self, ledger: Ledger) -> None:
        """Self-Instruct's second half: what kind of task each instruction is, and its instances.
        Alpaca's tasks are whole already."""
        if self.chosen.method == "alpaca":
            return
        pending = ledger.open("instances")
        completed = await self_instruct.complete_instructions(
            self._ask,
            pending,
            self.seeds,
            self.text,
            self.chosen.answer_length,
            self.categories,
        )
        for row, (kind, pairs, reason, cost_usd) in zip(pending, completed, strict=True):
            ledger.complete(row, kind, pairs, reason, cost_usd)

    async def criticise(self, ledger: Ledger, least: int) -> None:
        """Let the teacher score every row that is left from 1 to 5; those below `least` go."""
        rows = ledger.open("critique")
        requests = [curation.critique_request(row, self.text) for row in rows]
        replies = await self._ask(requests, curation.Critique)
        for row, reply in zip(rows, replies, strict=True):
            ledger.criticise(row, reply, least)
