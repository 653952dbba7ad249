"""One client of several OpenAI-compatible servers of one model, such as vLLM's: one budget, one
journal, and what a server fails to answer goes to the others.

What it does: let every server take a request whenever it has room, let one that fails rest, and go
on without one that keeps failing. What it does not do: know what is asked (generate.py), or need
Ray: it waits nearly all the time, and one process can wait for many servers.

Money is `llm.Client`'s: before a request is sent its worst case is reserved and noted in the
journal, whichever server it goes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import utils
from llm import endpoint
from llm.client import Client, Work
from llm.endpoint import Endpoint, Failure, Kind
from llm.limits import Limits
from llm.replies import Reply, Request
from utils import CourseError

PLACE = "http://pool/v1"  # in the journal's keys: what one server answered none need answer again
ATTEMPTS = 5  # failures in a row of a server, or of one request at a server: then it is over
UNANSWERED = "not answered: "  # how the error of such a reply begins; the next run asks it again


class Server:
    """One server of a pool: how it does, and how long it rests.

    Args:
        client: the pool's, at this server.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.name = client._endpoint.name
        self.problem = ""  # why it did not answer, since it last did
        self.broken = False  # nothing more is asked of it
        self.work = Work(asyncio.Semaphore(0), proven=True)  # tasks, each with one request at most
        self.proven = asyncio.Event()  # it has answered once
        self._failures = 0  # in a row; those under way together count once
        self._failing: set[str] = set()  # the requests that they were, by key
        self._failed_at = self._answered_at = self._resume = 0.0  # monotonic seconds

    async def rest(self) -> None:
        while (wait := self._resume - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def answered(self) -> None:
        self._answered_at = time.monotonic()
        self.proven.set()
        self._well()

    def acquit(self, key: str) -> None:
        """Forget its failures where all were of one request, which no other server answers."""
        if self._failing <= {key}:
            self._well()

    def _well(self) -> None:
        self._failures = 0
        self._failing.clear()
        self.problem = self.problem if self.broken else ""

    def failed(self, key: str, failure: Failure, started: float) -> None:
        """Take note of a request that it did not answer; for good where no other will be either,
        after `ATTEMPTS` in a row (not all of one request, for then the request may be to blame), or
        where it kept silent until the time was over."""
        now = time.monotonic()
        if self.broken:
            return
        if started >= self._failed_at:
            self._failures, self._failed_at = self._failures + 1, now
        self._failing.add(key)
        wait = random.uniform(0, endpoint.BACKOFF * 2**self._failures)
        asked = min(failure.wait or wait, endpoint.PATIENCE)
        self._resume = max(self._resume, now + asked)
        hung = failure.status is None and now - started >= self.client._endpoint.timeout
        silent = hung and self._answered_at < started
        self.problem = self._reason(failure, now - started if silent else 0)
        down = self._failures >= ATTEMPTS and len(self._failing) > 1
        if failure.kind is Kind.LASTS or silent or down:
            self.broken = True
            self.work.halt(failure)

    def _reason(self, failure: Failure, silent: float) -> str:
        said = str(failure)
        if said.startswith(self.name):
            return said
        if silent:
            return f"{self.name} did not answer for {silent:.0f} seconds."
        often = f" {self._failures} times in a row" if self._failures > 1 else ""
        if failure.status is None:
            return f"{self.name} broke the connection{often} ({said})."
        return f"{self.name} failed{often} ({failure.status}: {said})."


class Pool(Client):
    """A client whose requests any of several servers may answer.

    Where the servers, the budget or the disk put an end to it, `complete` does not raise: what was
    answered is returned, the rest has an error that begins with `UNANSWERED`, and `check` says why.

    Args:
        urls: of the servers; [None] is OpenAI itself.
        concurrency: requests in flight at each server.
        timeout: seconds without a byte after which an answer counts as lost.
        retry_failed: ask again what was answered with a reply that cannot be used.
    """

    def __init__(
        self,
        model: str,
        urls: Sequence[str | None],
        journal: Path,
        budget_usd: float | None = None,
        prices: tuple[float, float, float] | None = None,
        concurrency: int = 64,
        timeout: float = 300.0,
        retry_failed: bool = False,
    ) -> None:
        for url in urls:
            endpoint.check_address(url)
        key = utils.secret("OPENAI_API_KEY")
        if None not in urls:
            key = key or "none"  # servers of one's own may have been given a key, or have none
        # A price must be known where one of the servers may ask for one
        public = min(urls, key=endpoint.is_local)
        super().__init__(
            model,
            public,
            key,
            journal,
            budget_usd,
            max_concurrency=concurrency,
            prices=prices,
            retry_failed=retry_failed,
        )
        self.servers = [self._at(url, key or "", timeout) for url in dict.fromkeys(urls)]
        self.base_url = None if None in urls else PLACE
        self.unanswered: dict[str, str] = {}  # by key: why
        self.stopped: Exception | None = None

    def _at(self, url: str | None, key: str, timeout: float) -> Server:
        """This client, with its money and journal, at one server, with limits of its own."""
        one = copy.copy(self)
        one.limits = Limits()
        one._endpoint = Endpoint(self.model, url, key, one.limits, ATTEMPTS, timeout)
        return Server(one)

    @property
    def answered(self) -> bool:
        """True if one request has an answer, now or in the journal."""
        return self.usage.requests + self.usage.cached > 0

    def check(self) -> None:
        """Raise what put an end to it, or a CourseError where nothing at all was answered."""
        if self.stopped is not None:
            raise self._stopped(self.stopped)
        if self.unanswered and not self.answered:
            reason = next(iter(self.unanswered.values()))
            raise CourseError(f"None of {len(self.unanswered)} requests was answered ({reason}).")

    async def _look_who_answers(self) -> None:
        """Nobody yet: a server without the model says so when it is asked."""

    async def _ask_all(self, todo: dict[str, Request]) -> dict[str, Reply]:
        waiting: asyncio.Queue[Request] = asyncio.Queue()
        for key, request in todo.items():
            if key not in self.unanswered and self.stopped is None:
                waiting.put_nowait(request)
        tries: Counter = Counter()
        async with contextlib.AsyncExitStack() as stack:
            bar = stack.enter_context(utils.progress(waiting.qsize(), self.model))
            tasks = []
            for server in self.servers:
                if not server.broken:
                    sdk = await stack.enter_async_context(server.client._endpoint.open())
                    for number in range(self.max_concurrency):
                        serving = self._serve(server, sdk, number, waiting, tries, bar)
                        tasks.append(asyncio.create_task(serving))
                        server.work.tasks.append(tasks[-1])
            ended = asyncio.gather(*tasks, return_exceptions=True)
            answered = asyncio.create_task(waiting.join())
            await asyncio.wait((ended, answered), return_when=asyncio.FIRST_COMPLETED)
            for task in (answered, *tasks):  # which have nothing under way
                task.cancel()
            await asyncio.wait((ended, answered))
        if self.stopped is None and all(server.broken for server in self.servers):
            reasons = " ".join(server.problem for server in self.servers)
            self.stopped = CourseError(f"No server answers any more: {reasons}")
        return {key: self._reply(request) for key, request in todo.items()}

    async def _serve(self, server: Server, sdk, number: int, waiting, tries, bar) -> None:
        """Ask one server one request after the other, until this task is cancelled."""
        if number >= self._first:
            await server.proven.wait()
        while server.work.stop is None:
            await server.rest()
            request = await waiting.get()
            over, started = False, time.monotonic()
            try:
                await server.client._ask(sdk, request, server.work)
                server.answered()
                over = True
            except Failure as failure:
                over = self._over(server, request, failure, tries, started)
            except Exception as error:  # the budget, or the disk
                self._halt(error)
            finally:
                if not over:
                    waiting.put_nowait(request)  # for another server, or for this one later
                waiting.task_done()
            if over:
                bar.set_postfix_str(self.so_far, refresh=False)
                bar.update()
                if self._journal:
                    await self._journal.synced()

    def _over(
        self, server: Server, request: Request, failure: Failure, tries: Counter, started: float
    ) -> bool:
        """Take note of a failure; True if the request is asked no more in this run."""
        if failure.kind is not Kind.OWN:
            server.failed(request.key, failure, started)
            tries[request.key, server] += 1
            others = [other for other in self.servers if not other.broken]
            often = tries[request.key, server] >= ATTEMPTS and not server.broken
            if not often or not all(tries[request.key, other] for other in others):
                return False
            for other in others:
                other.acquit(request.key)
        self.unanswered[request.key] = str(failure)
        return True

    def _halt(self, error: Exception) -> None:
        self.stopped = self.stopped or error
        for server in self.servers:
            server.work.halt(error)

    def _reply(self, request: Request) -> Reply:
        entry = self._entry(request.key)
        if entry is not None:
            return request.read(entry)
        why = self.unanswered.setdefault(request.key, str(self.stopped))
        return Reply(error=UNANSWERED + why, key=request.key)
