"""Many shards of paid work over a pool of OpenAI-compatible endpoints, on Ray: one budget, one
journal a shard, nothing asked twice.

What it does: give every live endpoint the next shard, move the shards of an endpoint that dies to
the others, keep the sum of what is spent and what may still be spent under one limit, and go on
after a crash of a worker or of this program. What it does not do: know what is asked (generate.py).
All nodes must see the output folder under the same path.

Money: before a shard starts, its worst case is reserved, as `llm/budget.py` does for one request;
then its client gets no more than that. What a dead worker had under way may have been billed; its
journal says so, and it counts as spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import llm.client
import utils
from llm.budget import BudgetExceeded
from llm.journal import Journal
from llm.replies import Reply
from utils import CourseError

NOTHING = 1e-9  # dollars; sums of floats are not exact
TRIES = 3  # of a shard whose worker dies


class Client(llm.client.Client):
    """A client of one endpoint of a pool, whose journal's keys name the pool: another endpoint need
    not answer again what this one did."""

    def __init__(self, model: str, base_url: str | None, **options) -> None:
        super().__init__(model, base_url, **options)
        if base_url is not None:
            # From here on only part of the keys: the endpoint is chosen
            self.base_url = "http://pool/v1"
        # Requests that the endpoint failed to answer, and that the next run asks again
        self.unanswered = 0

    async def complete(self, requests: list[dict], schema=None, read=None) -> list[Reply]:
        """`llm.Client.complete`, counting."""
        found = await super().complete(requests, schema, read)
        self.unanswered += sum(self._entry(reply.key) is None for reply in found)
        return found


@dataclass(frozen=True)
class Pool:
    """Where to ask, and how.

    Args:
        model: its name, the same at every endpoint.
        urls: of the endpoints, such as vLLM servers; [None] is OpenAI itself.
        at_once: shards in flight at one endpoint.
        client: further arguments of `llm.Client`, such as prices, max_concurrency, attempts,
            api_key.
    """

    model: str
    urls: Sequence[str | None]
    at_once: int = 1
    client: dict = field(default_factory=dict)

    def connect(self, url: str | None, journal: Path, budget_usd: float | None) -> Client:
        """A client of one of the endpoints."""
        return Client(self.model, url, journal=journal, budget_usd=budget_usd, **self.client)


@dataclass(frozen=True)
class Job:
    """What is done with one shard.

    Args:
        name: part of what tells one job from another, such as "teach".
        ask: `await ask(client, items)` returns the records of the shard's output.
        worst: `worst(client, items)` in dollars, beyond what the client's journal has.
    """

    name: str
    ask: Callable[[Client, list[dict]], Coroutine[None, None, list[dict]]]
    worst: Callable[[Client, list[dict]], float]


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process writes this shard's journal: the worker of a program that crashed
    may live on for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def work(
    pool: Pool,
    job: Job,
    url: str | None,
    items: list[dict],
    journal: str,
    output: str,
    lease_usd: float | None,
) -> dict:
    """Do one shard, in a Ray task.

    Returns:
        `state` ("done", "unreachable" or "stopped"), `message` and `unanswered` (requests).
    """
    path = Path(journal)
    with alone(path):
        limit = None if lease_usd is None else sum(account(path)) + lease_usd
        client = pool.connect(url, path, limit)
        message, state = "", "done"
        try:
            records = asyncio.run(job.ask(client, items))
            good = [record for record in records if not rejected(record)]
            bad = [record for record in records if rejected(record)]
            utils.write_jsonl(Path(output).parent / "rejected" / Path(output).name, bad)
            utils.write_jsonl(output, good)  # last: it says that the shard is done
        except CourseError as error:
            message = str(error)
            state = "unreachable" if "cannot be reached" in message else "stopped"
        return {"state": state, "message": message, "unanswered": client.unanswered}


def rejected(record: dict) -> bool:
    return "error" in record or "problem" in record


def account(journal: Path) -> tuple[float, float]:
    """Dollars in a journal: spent, and at worst lost with answers that never arrived."""
    kept = Journal(journal)
    spent = sum(record.get("cost_usd", 0.0) for record in kept.records)
    return spent, sum(entry.get("lost_usd", 0.0) for entry in kept.entries.values())


@dataclass(frozen=True)
class Lease:
    """A shard that is under way at an endpoint, and the dollars that it may cost at worst."""

    number: int
    url: str | None
    usd: float


class Progress:
    """What of a job is waiting, under way and done, and the money of each shard."""

    def __init__(
        self,
        pool: Pool,
        job: Job,
        shards: list[list[dict]],
        output: Path,
        budget_usd: float | None,
    ) -> None:
        self.pool, self.job, self.shards = pool, job, shards
        self.output, self.budget_usd = output, budget_usd
        # "at_risk_usd": what an attempt may have spent beyond its journal, when journals did not
        # say so
        self.ledger = Journal(output / "ledger.jsonl", ("key", "at_risk_usd"))
        self.before_usd = sum(entry["at_risk_usd"] for entry in self.ledger.entries.values())
        self.accounts: list[tuple[float, float]] = []  # spent and lost, in dollars, of each shard
        for number in range(len(shards)):
            with alone(self.journal(number)):
                self.accounts.append(account(self.journal(number)))
        self.keys = [
            f"done {utils.fingerprint(job.name, pool.model, items, len(shards))}"
            for items in shards
        ]
        done = [key in self.ledger.entries for key in self.keys]
        self.resumed = sum(done)
        self.waiting: deque[int] = deque()
        for number, finished in enumerate(done):
            if not finished or not self.place(number).exists():
                self.waiting.append(number)
        self.free = deque(url for _ in range(pool.at_once) for url in pool.urls)
        self.running: dict[object, Lease] = {}
        self.dead: dict[str | None, str] = {}  # endpoints, and what was said of them
        self.tries = [0] * len(shards)
        self.unanswered = self.moved = 0
        self.stopped: CourseError | None = None

    def place(self, number: int) -> Path:
        return self.output / f"{number:05d}.jsonl"

    def journal(self, number: int) -> Path:
        return self.output / "journal" / f"{number:05d}.jsonl"

    @property
    def spent_usd(self) -> float:
        return sum(spent for spent, _ in self.accounts)

    @property
    def lost_usd(self) -> float:
        """What may have been billed for answers that never arrived."""
        return self.before_usd + sum(lost for _, lost in self.accounts)

    def start(self, task) -> None:
        """Give free endpoints the next shards, as long as the budget holds their worst cases."""
        while self.waiting and self.free and self.stopped is None:
            number, url = self.waiting[0], self.free[0]
            with alone(self.journal(number)):
                client = self.pool.connect(url, self.journal(number), None)
            lease = Lease(number, url, self.job.worst(client, self.shards[number]))
            held = sum(one.usd for one in self.running.values()) + self.spent_usd + self.lost_usd
            if self.budget_usd is not None and held + lease.usd > self.budget_usd + NOTHING:
                if not self.running:  # else what is under way may turn out cheaper
                    self.stopped = self._too_dear(lease, self.budget_usd)
                return
            self.waiting.popleft()
            self.free.popleft()
            self.tries[number] += 1
            ref = task.remote(
                self.pool,
                self.job,
                url,
                self.shards[number],
                str(self.journal(number).resolve()),
                str(self.place(number).resolve()),
                None if self.budget_usd is None else lease.usd,
            )
            self.running[ref] = lease

    def _too_dear(self, lease: Lease, budget_usd: float) -> BudgetExceeded:
        unsure = ""
        if self.lost_usd > NOTHING:
            unsure = f" (and up to ${self.lost_usd:.4f} for answers that were lost)"
        return BudgetExceeded(
            f"Shard {lease.number} of {len(self.shards)} may cost ${lease.usd:.4f}, and "
            f"${self.spent_usd:.4f} of the budget of ${budget_usd:.2f} is spent{unsure}: raise "
            "--budget-usd or use smaller shards. What was answered is kept; run again to go on."
        )

    def finished(self, lease: Lease, result: dict) -> None:
        """Take what `work` says of a shard."""
        self.accounts[lease.number] = account(self.journal(lease.number))
        self.unanswered += result["unanswered"]
        if result["state"] == "done":
            if not result["unanswered"]:  # else the next run asks again what has no answer
                self.ledger.write({"key": self.keys[lease.number], "at_risk_usd": 0.0})
            self._set_free(lease.url)
            return
        self.waiting.append(lease.number)
        if result["state"] == "unreachable":
            self.dead[lease.url] = result["message"]
            self.free = deque(url for url in self.free if url != lease.url)
            self.moved += 1
        elif self.stopped is None:
            self.stopped = CourseError(result["message"])

    def died(self, lease: Lease, error: Exception) -> None:
        """The worker of a shard is gone: its journal says what was paid, and another one goes on.
        Not for ever."""
        self.accounts[lease.number] = account(self.journal(lease.number))
        self._set_free(lease.url)
        self.waiting.append(lease.number)
        if self.tries[lease.number] >= TRIES:
            self.stopped = CourseError(
                f"The worker of shard {lease.number} died {TRIES} times "
                f"({str(error).splitlines()[0][:120]}): run again."
            )

    def _set_free(self, url: str | None) -> None:
        if url not in self.dead:
            self.free.append(url)

    def check(self) -> None:
        """CourseError if not all was done."""
        if self.stopped is not None:
            raise self.stopped
        if self.waiting:
            reasons = "; ".join(dict.fromkeys(self.dead.values()))
            raise CourseError(
                f"None of the {len(self.pool.urls)} endpoints answers any more ({reasons}) What "
                "was answered is kept: run again."
            )

    def report(self) -> dict:
        return {
            "shards": len(self.shards),
            "resumed": self.resumed,
            "moved": self.moved,
            "dead": list(self.dead),
            "unanswered": self.unanswered,
            "spent_usd": self.spent_usd,
            "lost_usd": self.lost_usd,
        }


def run(
    pool: Pool,
    job: Job,
    shards: list[list[dict]],
    output: str | Path,
    budget_usd: float | None = None,
) -> dict:
    """Do all shards within `cluster.connected`; output/00000.jsonl and so on, whole or absent, and
    output/rejected for records with an `error` or a `problem`. Run again to go on after any stop.

    Raises:
        CourseError: no endpoint answers any more, or one refuses (a wrong key, no such model). What
            was answered is kept.
        BudgetExceeded: the next shard may cost more than is left.
    """
    import ray

    gone = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    )
    # A shard waits for answers nearly all the time
    task = ray.remote(max_retries=0, num_cpus=0.1)(work)
    progress = Progress(pool, job, shards, Path(output).resolve(), budget_usd)
    progress.start(task)
    while progress.running:
        (ref,), _ = ray.wait(list(progress.running), num_returns=1)
        lease = progress.running.pop(ref)
        try:
            progress.finished(lease, ray.get(ref))
        except gone as error:
            progress.died(lease, error)
        progress.start(task)
    progress.check()
    return progress.report()
