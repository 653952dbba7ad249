"""One client for every chat model in this course: OpenAI, any OpenAI-compatible server, or the
rehearsal endpoint.

What it does: send many requests at once, keep a hard budget in dollars, and write every answered
request to an append-only journal, so that nothing is paid for twice, whatever happens to the
process. What it does not do: know anything about prompts or data. Importing it imports neither
openai nor torch.

Each idea has a module of its own: what a server said as a plain record (answers.py), retries and
failures (endpoint.py), rate limits (limits.py), the journal's file (journal.py), money (budget.py,
models.py), batches at half the price (batches.py), requests and replies as data (replies.py), and
objects from a text (objects.py).

The way of a request: it becomes a `Request` once (key, body, worst case). Its worst case is
reserved, and noted in the journal as possibly lost; it is sent; the answer is booked and journalled
as it came; and only then is it read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import utils
from llm import endpoint, models, replies
from llm.answers import Answer
from llm.batches import Answered, Batches
from llm.budget import Budget
from llm.endpoint import Endpoint, Failure, Kind
from llm.journal import Journal
from llm.limits import Limits
from llm.replies import DEFAULT_TOKENS, Reply, Request, Usage, response_format
from utils import CourseError

if TYPE_CHECKING:
    from pydantic import BaseModel

FIRST = 4  # requests under way before one has been answered; if they all fail, so do the others

Read = Callable[[Reply], Reply]  # what a text says, where no schema is sent


class Client:
    """A chat client with a journal and a budget.

    Args:
        model: the model's name at the endpoint.
        base_url: an OpenAI-compatible endpoint, None for OpenAI.
        api_key: defaults to the secret OPENAI_API_KEY; local servers take any.
        journal: path of the append-only JSON Lines journal; None keeps nothing.
        budget_usd: hard limit over everything in the journal, this session and earlier ones; None
            for no limit.
        requests_per_minute, tokens_per_minute: limits to stay under, where they are lower than
            those the server announces.
        max_concurrency: requests in flight at once.
        prices: (input, cached input, output) in dollars per million tokens, for models that
            `models.price` does not know.
        attempts: tries per request for errors that may pass (429, 5xx, lost connections, unreadable
            answers).
        timeout: seconds without a byte from the server after which an answer counts as lost.
        parameters: sent with every request, such as `{"reasoning_effort": "low"}`; a value of None
            leaves that parameter out.
        retry_failed: ask again what the journal answers with a reply that cannot be used.

    Raises:
        CourseError: no key, an address that is none, a price or budget that is no amount, a budget
            but no known price, a malformed journal.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        journal: str | Path | None = None,
        budget_usd: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_concurrency: int = 8,
        prices: tuple[float, float, float] | None = None,
        attempts: int = 5,
        timeout: float = 300.0,
        parameters: dict | None = None,
        retry_failed: bool = False,
    ) -> None:
        endpoint.check_address(base_url)
        self.model, self.base_url, self.parameters = model, base_url, parameters
        self.max_concurrency, self.retry_failed = max_concurrency, retry_failed
        self._local = endpoint.is_local(base_url)
        api_key = api_key or utils.secret("OPENAI_API_KEY") or ("local" if self._local else None)
        if not api_key:
            raise CourseError(
                f"{model} needs an API key: set OPENAI_API_KEY in the environment, in Colab's key "
                "panel or in .env."
            )
        # A local server that serves one of OpenAI's models passes it on, and somebody pays for it
        self.prices = prices or models.price(model) or (models.FREE if self._local else None)
        if self.prices is None and budget_usd is not None:
            raise CourseError(
                f"The price of {model} is unknown, so its budget cannot be kept: set PRICES to "
                "'input, cached, output' in dollars per million tokens, or add it to PRICES in "
                "models.py."
            )
        if not all(math.isfinite(price) and price >= 0 for price in self.prices or ()):
            raise CourseError(f"PRICES are {self.prices}; give dollars, 0 or more.")
        self.limits = Limits(requests_per_minute, tokens_per_minute)
        self._endpoint = Endpoint(model, base_url, api_key, self.limits, attempts, timeout)
        self._journal: Journal | None = None
        self._batches: Batches | None = None
        if journal:
            self._journal = Journal(journal)
            noted = self._journal.path.with_suffix(".batches.jsonl")
            self._batches = Batches(noted, self._endpoint)
        self._budget = Budget(budget_usd, lambda: self._batches.held_usd if self._batches else 0.0)
        self._served: str | None = None  # the model that answers at a local server, once known
        self._asked: set[str] = set()  # what this client has asked, by key
        self.usage = Usage()
        self._account()

    @property
    def _priced(self) -> bool:
        return self.prices is not None and max(self.prices) > 0

    @property
    def _first(self) -> int:
        """Requests under way at a server that has not answered yet: one only where a budget is to
        be kept, for nobody knows yet whether it keeps to max_completion_tokens."""
        return 1 if self._budget.limit_usd is not None and self._priced else FIRST

    @property
    def spent_usd(self) -> float:
        """Dollars paid for everything in the journal, this session included."""
        return self._budget.spent_usd

    @property
    def lost_usd(self) -> float:
        """Dollars, at worst, for answers that never arrived, in the journal and this session: they
        may have been billed."""
        return self._budget.lost_usd

    @property
    def so_far(self) -> str:
        """What this session and earlier ones have cost, in a few words."""
        tokens = self.usage.prompt_tokens + self.usage.completion_tokens
        said = f"${self.spent_usd:.2f}, {tokens / 1000:,.0f}k tokens"
        return f"{said}, up to ${self.lost_usd:.2f} lost" if self.lost_usd > 0 else said

    def estimate(self, requests: list[dict], schema: type[BaseModel] | None = None) -> float:
        """Worst-case dollars for `requests` that are not in the journal yet: every answer as long
        as it may be."""
        made = [self._request(one, schema) for one in requests]
        return sum(one.worst_usd for one in self._unanswered(made).values())

    async def complete(
        self,
        requests: list[dict],
        schema: type[BaseModel] | None = None,
        read: Read | None = None,
    ) -> list[Reply]:
        """Answer all requests, in the order asked.

        Args:
            requests: keyword arguments of `chat.completions.create` without the model: `messages`,
                `temperature`, `max_completion_tokens` and so on. Two equal requests are one
                request: give `seed` to sample again.
            schema: a pydantic model with `extra="forbid"` and no defaults; sent as a strict JSON
                schema.
            read: reads the text of a reply, where no schema is sent; gives the reply its `parsed`
                or its `error`.

        Raises:
            BudgetExceeded: the next request might exceed the budget.
            CourseError: a wrong key, no such model, no quota left, an unreachable endpoint, the
                first few requests failing all alike, another writer of the journal.
        Before that the requests under way are finished and kept in the journal: run again to go on.
        """
        made = [self._request(one, schema, read) for one in requests]
        with self._writing():
            await self._look_who_answers()
            todo = self._unanswered(made)
            self._refuse_waiting(todo)
            self.limits.refuse_oversize(max((one.tokens for one in todo.values()), default=0))
            fresh = await self._ask_all(todo) if todo else {}
        return self._in_order(made, fresh)

    async def complete_batch(
        self,
        requests: list[dict],
        schema: type[BaseModel] | None = None,
        read: Read | None = None,
        poll_seconds: float = 30,
    ) -> list[Reply]:
        """Answer all requests at half the price, within 24 hours, by OpenAI's Batch API; the
        arguments are those of `complete`.

        The journal is the same, so that neither asks what the other has answered. Killed at any
        moment, the same call goes on with the same batches. A request that expired, was cancelled
        or failed has a reply with an error: another call asks it again.

        Args:
            poll_seconds: time between two looks at a batch.

        Raises:
            BudgetExceeded: all of it, at worst, is over the budget; nothing was submitted.
            CourseError: no journal, or the server refuses a batch; what the other batches answered
                is kept.
        """
        journal, batches = self._journal, self._batches
        if journal is None or batches is None:
            raise CourseError(
                "complete_batch needs a journal, or a restart would submit and pay again: give "
                "Client(journal=...)."
            )
        made = [self._request(one, schema, read) for one in requests]
        fresh: dict[str, Reply] = {}

        async def ended(batch: str, answered: list[Answered]) -> None:
            for one in answered:
                # What was kept before this process was started is not booked again
                if journal.entries.get(one.key, {}).get("batch") != batch:
                    request = todo.get(one.key) or self._named(one.key, one.body)
                    entry = self._book(request, one.answer, batch=batch)
                    fresh[one.key] = request.read(entry)
            await journal.synced()

        with self._writing(), batches.journal.writing():
            todo = self._unanswered(made)
            if todo:
                try:
                    async with self._endpoint.open() as sdk:
                        await batches.recover(sdk)
                        waiting = batches.waiting()
                        new = {key: one for key, one in todo.items() if key not in waiting}
                        worst = sum(one.worst_usd for one in new.values()) * models.BATCH_SHARE
                        async with self._budget.reserve(worst, f"A batch of {len(new):,} requests"):
                            await batches.submit(sdk, new)
                        errors = await batches.collect(sdk, todo.keys(), ended, poll_seconds)
                except (CourseError, Failure) as error:
                    raise self._stopped(error) from None
                fresh = {key: Reply(error=why, key=key) for key, why in errors.items()} | fresh
        return self._in_order(made, fresh)

    # --- many requests ----------------------------------------------------------------------------

    async def _ask_all(self, todo: dict[str, Request]) -> dict[str, Reply]:
        """Replies to all of `todo`, by key."""
        proven = self.usage.requests > 0
        work = Work(asyncio.Semaphore(len(todo) if proven else self._first), proven)
        slots, found = asyncio.Semaphore(self.max_concurrency), {}
        estimated = self.usage.estimated
        async with self._endpoint.open() as sdk:
            with utils.progress(len(todo), self.model) as bar:

                async def one(request: Request) -> None:
                    try:
                        async with work.trial, slots:
                            entry = await self._endpoint.persist(
                                lambda: self._ask(sdk, request, work)
                            )
                        # No slot is held for these: the next request may go
                        if self._journal:
                            await self._journal.synced()
                        found[request.key] = request.read(entry)
                    except Failure as failure:
                        work.failed(failure)
                        found[request.key] = Reply(error=str(failure), key=request.key)
                    except Exception as error:
                        work.halt(error)
                    bar.set_postfix_str(self.so_far, refresh=False)
                    bar.update()

                work.tasks = [asyncio.create_task(one(request)) for request in todo.values()]
                await asyncio.gather(*work.tasks, return_exceptions=True)
        work.conclude()
        if count := self.usage.estimated - estimated:
            print(
                f"{self.model}: the server did not count the tokens of {count} replies, so they "
                "are booked at the most that they may have cost"
            )
        if work.stop is not None:
            raise self._stopped(work.stop)
        return found

    async def _ask(self, sdk, request: Request, work: Work) -> dict:
        """One attempt: reserve, wait for a turn, note the risk, send, book. The journal's record of
        the answer."""
        try:
            async with self._budget.reserve(request.worst_usd, "The next request"):
                await self.limits.acquire(request.tokens)
                with work.sending(), self._at_risk(request) as risked:
                    started = time.time()
                    with self._endpoint.failures():  # what never arrived is not at risk
                        answer = await self._endpoint.send(sdk, request.body)
                    more = {"seconds": round(time.time() - started, 3)} | risked
                    entry = self._book(request, answer, **more)
        except Failure as failure:
            if failure.status == 429:  # its headers may have told the limit
                self.limits.refuse_oversize(request.tokens)
            raise
        work.answered()
        return entry

    def _refuse_waiting(self, todo: dict[str, Request]) -> None:
        waiting = self._batches.waiting() if self._batches else {}
        if both := [key for key in todo if key in waiting]:
            raise CourseError(
                f"{len(both)} of these requests wait in {waiting[both[0]]} and would be paid for "
                "twice: collect it with complete_batch "
                "(cancel it at the server first, if you do not want to wait)."
            )

    def _stopped(self, error: Exception) -> Exception:
        """The error as one sentence, with where to go on from; an unexpected one as it is."""
        if isinstance(error, Failure):
            error = CourseError(str(error))
        if self._journal and isinstance(error, CourseError):
            return type(error)(
                f"{error} What was answered is kept in {self._journal.path.name}; run again to go "
                "on from there."
            )
        return error

    # --- money ------------------------------------------------------------------------------------

    def _account(self) -> None:
        """Take from the journal what was spent and perhaps lost, and how far this server kept to
        its limits."""
        if self._journal is None:
            return
        records, entries = self._journal.records, self._journal.entries.values()
        self._budget.spent_usd = sum(record.get("cost_usd", 0.0) for record in records)
        self._budget.lost_usd = sum(entry.get("lost_usd", 0.0) for entry in entries)
        mine = [one for one in records if one.get("request", {}).get("model") == self.model]
        self._budget.remember([(one["cost_usd"], one.get("worst_usd", 0.0)) for one in mine])

    @contextlib.contextmanager
    def _at_risk(self, request: Request) -> Iterator[dict]:
        """While the block runs the journal says that the request may be lost, in case this process
        is killed; and if its answer is lost indeed, that stays.

        Yields:
            What earlier attempts at it may have cost, for its record: `{"lost_usd": dollars}`.
        """
        journal = self._journal if request.worst_usd > 0 else None
        before = journal.entries.get(request.key, {}).get("lost_usd", 0.0) if journal else 0.0
        worst = request.worst_usd * self._budget.scale
        if journal:
            journal.write(replies.loss(request, before + worst))
        try:
            yield {"lost_usd": before} if before else {}
        except BaseException as error:
            if not isinstance(error, Failure) or error.may_be_billed:
                self.usage.lost += 1
                self._budget.lost_usd += worst
            elif journal:
                journal.write(replies.loss(request, before))
            raise

    def _book(self, request: Request, answer: Answer, **more) -> dict:
        """Count what was billed and write the journal, before anything else can go wrong with the
        answer."""
        share = models.BATCH_SHARE if "batch" in more else 1.0
        tokens = replies.tokens_used(answer, request, self._priced)
        cost = models.cost(self.prices, tokens) * share
        if self._served:
            more["served"] = self._served
        entry = replies.record(request, answer, tokens, cost, **more)
        self._budget.spent_usd += cost
        self.usage.add(entry)
        self._asked.add(request.key)
        if self._journal:
            self._journal.write(entry)
        self._budget.learn(cost, request.worst_usd * share)
        return entry

    # --- journal ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the journal's only writer, with all that others have written to it."""
        if self._journal is None:
            yield
            return
        known = len(self._journal.records)
        with self._journal.writing():
            if self._batches is not None:
                self._batches.journal.catch_up()
            if len(self._journal.records) != known:
                self._account()
            yield

    def _request(self, asked: dict, schema, parse: Read | None = None) -> Request:
        """What is sent for `asked`, its name and its worst case. A server on this machine is known
        by its path: its port changes."""
        url = urlsplit(self.base_url or "https://api.openai.com/v1")
        loopback = endpoint.is_loopback(self.base_url)
        place = url.path if loopback else f"{url.netloc}{url.path}"
        sent = models.adjusted(self.model, asked, self.parameters)
        parts = [place, self.model, sent, replies.json_schema(schema) if schema else None]
        text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
        body: dict[str, Any] = {"model": self.model}
        if "max_tokens" not in sent:  # without a limit on the answer there were no worst case
            body["max_completion_tokens"] = DEFAULT_TOKENS
        body |= sent
        if schema is not None:
            body["response_format"] = response_format(schema)
        body |= body.pop("extra_body", {})  # what the SDK does with a server's own parameters
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        return self._named(key, body, schema, parse)

    def _named(self, key: str, body: dict, schema=None, parse: Read | None = None) -> Request:
        prompt, answer = replies.most_tokens(body)
        worst = models.cost(self.prices, {"prompt_tokens": prompt, "completion_tokens": answer})
        return Request(key, body, prompt, answer, worst, schema, parse)

    def _entry(self, key: str) -> dict | None:
        """The journal's answer to a request, None where it has none. What another model behind the
        name of a local server has answered is none."""
        entry = self._journal.entries.get(key) if self._journal else None
        if entry is None or "reply" not in entry:
            return None
        answered = entry.get("served") or entry.get("model")
        return entry if not self._served or answered in (self._served, self.model) else None

    def _unanswered(self, made: list[Request]) -> dict[str, Request]:
        """Those requests that are to be sent, by key: equal ones once."""
        todo = {}
        for request in made:
            entry = self._entry(request.key)
            again = self.retry_failed and request.key not in self._asked
            if entry is None or (again and request.read(entry).error):
                todo[request.key] = request
        return todo

    def _in_order(self, made: list[Request], fresh: dict[str, Reply]) -> list[Reply]:
        """A reply for each request: the fresh one, else the journal's."""
        found, kept = dict(fresh), []
        for request in made:
            if request.key not in found and (entry := self._entry(request.key)) is not None:
                reply = found[request.key] = request.read(entry)
                reply.cached = True
                kept.append(reply)
        self.usage.cached += len(kept)
        if unusable := sum(reply.error is not None for reply in kept):
            print(
                f"{self.model}: {len(kept)} replies from the journal, {unusable} of them unusable "
                "(RETRY_FAILED=on asks those again)"
            )
        return [found[request.key] for request in made]

    async def _look_who_answers(self) -> None:
        """Ask a local server which model it has: many answer to any name."""
        if not self._local or self._journal is None or self._served is not None:
            return
        async with self._endpoint.open() as sdk:
            names = await self._endpoint.served(sdk)
        alone = names[0] if len(names) == 1 else ""
        self._served = self.model if self.model in names else alone


@dataclass
class Work:
    """One call of `complete`: its tasks, those with a request under way, and the error that stops
    it. Before the first answer only a few requests are under way."""

    trial: asyncio.Semaphore
    proven: bool  # has this server answered?
    tasks: list[asyncio.Task] = field(default_factory=list)
    under_way: set[asyncio.Task] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    stop: Exception | None = None

    def answered(self) -> None:
        if not self.proven:
            self.proven = True
            for _ in self.tasks:
                self.trial.release()

    def failed(self, failure: Failure) -> None:
        """Stop where no other request can be answered, or the first few all were not."""
        self.failures.append(failure)
        if failure.kind is Kind.LASTS:
            self.halt(failure)
        elif not self.proven and len(self.failures) == FIRST:
            said = f"The first {FIRST} requests all failed: {failure}"
            self.halt(Failure(said, Kind.LASTS))

    def conclude(self) -> None:
        """Stop also where all were refused, be they ever so few."""
        refused = [one for one in self.failures if one.kind is Kind.REFUSED]
        if not self.proven and len(refused) == len(self.tasks):
            self.stop = self.stop or refused[0]

    def halt(self, error: Exception) -> None:
        """Send nothing more, but let what is under way arrive: it is paid for."""
        self.stop = self.stop or error
        for task in self.tasks:
            if task not in self.under_way and task is not asyncio.current_task():
                task.cancel()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None, "requests are sent by tasks"
        self.under_way.add(task)
        try:
            yield
        finally:
            self.under_way.discard(task)
            if self.stop is not None:  # no further attempt
                task.cancel()
