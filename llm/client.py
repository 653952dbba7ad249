"""One client for every chat model in this course: OpenAI, any OpenAI-compatible server, or the
rehearsal endpoint.

What it does: send many requests at once, keep a hard budget in dollars, and write every answered
request to an append-only journal, so
that nothing is paid for twice, whatever happens to the process. What it does not do: know anything
about prompts or data. Importing it imports neither openai nor torch.

Each idea has a module of its own: retries and errors (endpoint.py), rate limits (limits.py), the
journal's file (journal.py), money (budget.py, models.py), batches at half the price (batches.py),
requests and replies as data (replies.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import utils
from llm import models, replies
from llm.batches import Batches
from llm.budget import Budget
from llm.endpoint import Endpoint, Unreadable, is_loopback, may_be_billed
from llm.journal import Journal
from llm.limits import Limits
from llm.models import PRICES
from llm.replies import DEFAULT_TOKENS, Reply, Usage, response_format
from utils import CourseError

if TYPE_CHECKING:
    from pydantic import BaseModel


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
            `PRICES` does not know.
        attempts: tries per request for errors that may pass (429, 5xx, lost connections, unreadable
            answers).
        timeout: seconds without a byte from the server after which an answer counts as lost.
        parameters: sent with every request, such as `{"reasoning_effort": "low"}`; a value of None
            leaves that parameter out.

    Raises:
        CourseError: no key, a budget but no known price, a malformed journal.
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
    ) -> None:
        self.model, self.base_url, self.max_concurrency, self.parameters = (
            model,
            base_url,
            max_concurrency,
            parameters,
        )
        local = is_loopback(base_url)
        api_key = api_key or utils.secret("OPENAI_API_KEY") or ("local" if local else None)
        if not api_key:
            raise CourseError(
                f"{model} needs an API key: set OPENAI_API_KEY in the environment, in Colab's key "
                "panel or in .env."
            )
        self.prices = prices or (models.FREE if local else PRICES.get(model))
        if self.prices is None and budget_usd is not None:
            raise CourseError(
                f"The price of {model} is unknown, so its budget cannot be kept: set PRICES to "
                "'input, cached, output' in dollars "
                "per million tokens, or add it to PRICES in models.py."
            )
        self.limits = Limits(requests_per_minute, tokens_per_minute)
        self._endpoint = Endpoint(model, base_url, api_key, self.limits, attempts, timeout)
        self._journal: Journal | None = None
        self._batches: Batches | None = None
        spent = 0.0
        if journal:
            self._journal = Journal(journal)
            self._batches = Batches(self._journal.path.with_suffix(".batches.jsonl"))
            spent = sum(entry["cost_usd"] for entry in self._journal.entries.values())
        self._budget = Budget(
            budget_usd, spent, lambda: self._batches.held_usd if self._batches else 0.0
        )
        self.usage = Usage()

    @property
    def spent_usd(self) -> float:
        """Dollars paid for everything in the journal, this session included."""
        return self._budget.spent_usd

    @property
    def lost_usd(self) -> float:
        """Dollars, at worst, for answers of this session that never arrived: they may have been
        billed."""
        return self._budget.lost_usd

    def estimate(
        self, requests: list[dict], schema: type[BaseModel] | None = None, batch: bool = False
    ) -> float:
        """Worst-case dollars for `requests` that are not in the journal yet: every answer as long
        as it may be."""
        return sum(
            self._worst_case(body, batch) for body in self._unanswered(requests, schema).values()
        )

    async def complete(
        self, requests: list[dict], schema: type[BaseModel] | None = None
    ) -> list[Reply]:
        """Answer all requests, in the order asked.

        Args:
            requests: keyword arguments of `chat.completions.create` without the model: `messages`,
                `temperature`, `max_completion_tokens` and so on. Two equal requests are one
                request: give `seed` to sample again.
            schema: a pydantic model with `extra="forbid"` and no defaults; sent as a strict JSON
                schema.

        Raises:
            BudgetExceeded: the next request might exceed the budget.
            CourseError: a wrong key, no such model, no quota left, an unreachable endpoint.
        In both cases the requests under way are finished and kept in the journal first: run again
            to go on.
        """
        bodies = self._unanswered(requests, schema)
        waiting = self._batches.waiting() if self._batches else {}
        if both := [key for key in bodies if key in waiting]:
            raise CourseError(
                f"{len(both)} of these requests wait in {waiting[both[0]]} and would be paid for "
                "twice: collect it with complete_batch "
                "(cancel it at the server first, if you do not want to wait)."
            )
        self.limits.refuse_oversize(
            max((sum(replies.most_tokens(body)) for body in bodies.values()), default=0)
        )
        if not bodies:
            return self._in_order(requests, schema, {})
        work, slots, answers = _Work(), asyncio.Semaphore(self.max_concurrency), {}
        async with self._endpoint.open() as sdk:
            with utils.progress(len(bodies), self.model) as bar:

                async def one(key: str, body: dict) -> None:
                    try:
                        async with slots:
                            reply = await self._ask(sdk, key, body, schema, work)
                        if self._journal:  # no slot is held for that: the next request may go
                            await self._journal.synced()
                        answers[key] = reply
                    except Exception as error:
                        work.halt(error)
                    bar.update()

                work.tasks = [asyncio.create_task(one(key, body)) for key, body in bodies.items()]
                await asyncio.gather(*work.tasks, return_exceptions=True)
        if work.stop is not None:
            raise self._stopped(work.stop)
        return self._in_order(requests, schema, answers)

    async def complete_batch(
        self, requests: list[dict], schema: type[BaseModel] | None = None, poll_seconds: float = 30
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
        import openai

        journal, batches = self._journal, self._batches
        if journal is None or batches is None:
            raise CourseError(
                "complete_batch needs a journal, or a restart would submit and pay again: give "
                "Client(journal=...)."
            )
        bodies = self._unanswered(requests, schema)
        if not bodies:
            return self._in_order(requests, schema, {})
        worst = {key: self._worst_case(body, batch=True) for key, body in bodies.items()}
        answers: dict[str, Reply] = {}

        async def answered(key: str, body: dict, completion: dict, batch: str) -> str | None:
            if self._entry(key) is not None:  # it was kept before the process was restarted
                return None
            try:
                parsed = openai.types.chat.ChatCompletion.model_validate(completion)
            except ValueError as error:
                return f"the answer in {batch} cannot be read: {str(error)[:100]}"
            answers[key] = replies.read(self._book(key, body, parsed, batch=batch), schema)
            await journal.synced()
            return None

        try:
            async with self._endpoint.open() as sdk:
                await batches.recover(self._endpoint, sdk)
                waiting = batches.waiting()
                new = {key: body for key, body in bodies.items() if key not in waiting}
                async with self._budget.reserve(
                    sum(worst[key] for key in new), f"A batch of {len(new):,} requests"
                ):
                    await batches.submit(self._endpoint, sdk, new, worst)
                errors = await batches.collect(
                    self._endpoint, sdk, bodies, answered, poll_seconds, self.model
                )
        except (CourseError, openai.APIError, Unreadable) as error:
            raise self._stopped(error) from None
        return self._in_order(
            requests,
            schema,
            {key: Reply(error=why, key=key) for key, why in errors.items()} | answers,
        )

    # --- one request ------------------------------------------------------------------------------

    async def _ask(self, sdk, key: str, body: dict, schema, work: _Work) -> Reply:
        import openai

        worst, tokens = self._worst_case(body), sum(replies.most_tokens(body))

        async def attempt() -> dict:
            async with self._budget.reserve(worst, "The next request"):
                await self.limits.acquire(tokens)
                with work.sending():
                    started = time.time()
                    try:
                        completion = await self._endpoint.send(sdk, body)
                    except openai.RateLimitError:
                        self.limits.refuse_oversize(tokens)  # now that the limit is known
                        raise
                    except BaseException as error:
                        if may_be_billed(
                            error
                        ):  # nobody knows how much, so the budget counts the worst case
                            self.usage.lost += 1
                            self._budget.lost_usd += worst
                        raise
                    return self._book(
                        key, body, completion, seconds=round(time.time() - started, 3)
                    )

        try:
            return replies.read(await self._endpoint.persist(attempt), schema)
        except (openai.APIError, Unreadable) as error:
            if self._endpoint.fatal(error):
                raise
            return Reply(error=self._endpoint.failure(error), key=key)

    def _stopped(self, error: Exception) -> Exception:
        """The error as one sentence, with where to go on from; an unexpected one as it is."""
        import openai

        if isinstance(error, openai.APIError | Unreadable):
            error = CourseError(
                self._endpoint.fatal(error)
                or f"{self._endpoint.name}: {self._endpoint.failure(error)}."
            )
        if self._journal and isinstance(error, CourseError):
            return type(error)(
                f"{error} What was answered is kept in {self._journal.path.name}; run again to go "
                "on from there."
            )
        return error

    # --- money ------------------------------------------------------------------------------------

    def _worst_case(self, body: dict, batch: bool = False) -> float:
        prompt, answer = replies.most_tokens(body)
        return models.cost(
            self.prices, {"prompt_tokens": prompt, "completion_tokens": answer}, batch
        )

    def _book(self, key: str, body: dict, completion, **more) -> dict:
        """Count what was billed and write the journal, before anything else can go wrong with the
        answer."""
        tokens = replies.tokens_used(completion)
        cost = models.cost(self.prices, tokens, "batch" in more)
        entry = replies.record(key, body, completion, cost, **more)
        self._budget.spent_usd += cost
        self.usage.add(tokens, cost)
        if self._journal:
            self._journal.write(entry)
        return entry

    # --- journal ----------------------------------------------------------------------------------

    def _key(self, request: dict, schema) -> str:
        """Hash of everything the answer depends on. A server on this machine is known by its path:
        its port changes."""
        url = urlsplit(self.base_url or "https://api.openai.com/v1")
        endpoint = url.path if is_loopback(self.base_url) else f"{url.netloc}{url.path}"
        sent = models.adjusted(self.model, request, self.parameters)
        parts = [endpoint, self.model, sent, replies.json_schema(schema) if schema else None]
        return hashlib.sha256(
            json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()
        ).hexdigest()

    def _entry(self, key: str) -> dict | None:
        return self._journal.entries.get(key) if self._journal else None

    def _unanswered(self, requests: list[dict], schema) -> dict[str, dict]:
        """What must be sent for those requests that the journal does not answer, by key: equal
        requests once."""
        # Without a limit on the answer the worst case would have none either
        common = {"model": self.model, "max_completion_tokens": DEFAULT_TOKENS}
        shape = {} if schema is None else {"response_format": response_format(schema)}
        bodies = {}
        for request in requests:
            if self._entry(key := self._key(request, schema)) is None:
                bodies[key] = common | models.adjusted(self.model, request, self.parameters) | shape
                bodies[key] |= bodies[key].pop(
                    "extra_body", {}
                )  # what the SDK does with a server's own parameters
        return bodies

    def _in_order(self, requests: list[dict], schema, fresh: dict[str, Reply]) -> list[Reply]:
        """A reply for each request: the fresh one, else the journal's."""
        keys = [self._key(request, schema) for request in requests]
        answers = dict(fresh)
        for key in dict.fromkeys(keys):
            if key not in fresh:
                entry = self._entry(key)
                assert entry is not None  # what is not fresh was in the journal, or it was asked
                answers[key] = replies.read(entry, schema)
                answers[key].cached = True
                self.usage.cached += 1
        return [answers[key] for key in keys]


@dataclass
class _Work:
    """One call of `complete`: its tasks, those with a request under way, and the error that stops
    it."""

    tasks: list[asyncio.Task] = field(default_factory=list)
    under_way: set[asyncio.Task] = field(default_factory=set)
    stop: Exception | None = None

    def halt(self, error: Exception) -> None:
        """Send nothing more, but let what is under way arrive: it is paid for."""
        self.stop = self.stop or error
        for task in set(self.tasks) - self.under_way - {asyncio.current_task()}:
            task.cancel()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None  # it runs in one of `tasks`
        self.under_way.add(task)
        try:
            yield
        finally:
            self.under_way.discard(task)
            if self.stop is not None:  # no further attempt
                task.cancel()
