"""Many shards of paid work over a pool of OpenAI-compatible endpoints, on Ray: one budget, one
journal a shard, nothing asked twice.

What it does: give every live endpoint the next shard, move the shards of an endpoint that dies to
the others, keep the sum of what is
spent and what may still be spent under one limit, and go on after a crash of a worker or of this
program. What it does not do: know what is asked (generate.py). All nodes must see the output folder
under the same path.

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
            self.base_url = (
                "http://pool/v1"  # from here on only part of the keys: the endpoint is chosen
            )
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
            rejected = lambda record: "error" in record or "problem" in record  # noqa: E731
            utils.write_jsonl(
                Path(output).parent / "rejected" / Path(output).name, filter(rejected, records)
            )
            utils.write_jsonl(
                output, (record for record in records if not rejected(record))
            )  # last: it says that the shard is done
        except CourseError as error:
            message, state = (
                str(error),
                "unreachable" if "cannot be reached" in str(error) else "stopped",
            )
        return {"state": state, "message": message, "unanswered": client.unanswered}


def account(journal: Path) -> tuple[float, float]:
    """Dollars in a journal: spent, and at worst lost with answers that never arrived."""
    kept = Journal(journal)
    spent = sum(record.get("cost_usd", 0.0) for record in kept.records)
    return spent, sum(entry.get("lost_usd", 0.0) for entry in kept.entries.values())


# To be taken apart: it is three loops in one
def run(  # noqa: C901, PLR0912, PLR0915
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

    output = Path(output)
    # "at_risk_usd": what an attempt may have spent beyond its journal, when journals did not say so
    ledger = Journal(output / "ledger.jsonl", ("key", "at_risk_usd"))
    jobs = [utils.fingerprint(job.name, pool.model, items, len(shards)) for items in shards]
    done = {key for key in jobs if ledger.entries.get(f"done {key}")}
    place = lambda number: output / f"{number:05d}.jsonl"  # noqa: E731
    journals = [output / "journal" / f"{number:05d}.jsonl" for number in range(len(shards))]
    accounts = []
    for journal in journals:
        with alone(journal):
            accounts.append(account(journal))
    before = sum(entry["at_risk_usd"] for entry in ledger.entries.values())
    waiting = deque(
        number for number, key in enumerate(jobs) if key not in done or not place(number).exists()
    )
    free = deque(url for _ in range(pool.at_once) for url in pool.urls)
    running: dict[object, tuple[int, str | None, float]] = {}
    dead: dict[str | None, str] = {}
    tries, unanswered, moved = [0] * len(shards), 0, 0
    stopped: CourseError | None = None
    start = ray.remote(max_retries=0, num_cpus=0.1)(
        work
    )  # it waits for answers nearly all the time
    while waiting or running:
        while waiting and free and stopped is None:
            number, url = waiting[0], free[0]
            with alone(journals[number]):
                client = pool.connect(url, journals[number], None)
            lease = job.worst(client, shards[number])
            spent = sum(one[0] for one in accounts)
            lost = before + sum(one[1] for one in accounts)
            held = spent + lost + sum(one[2] for one in running.values())
            if budget_usd is not None and held + lease > budget_usd + NOTHING:
                if not running:
                    unsure = (
                        f" (and up to ${lost:.4f} for answers that were lost)"
                        if lost > NOTHING
                        else ""
                    )
                    stopped = BudgetExceeded(
                        f"Shard {number} of {len(shards)} may cost ${lease:.4f}, and "
                        f"${spent:.4f} of the budget of ${budget_usd:.2f} "
                        f"is spent{unsure}: raise --budget-usd or use smaller shards. What was "
                        "answered is kept; run again to go on."
                    )
                break  # what is under way may turn out cheaper
            waiting.popleft(), free.popleft()
            tries[number] += 1
            allowed = None if budget_usd is None else lease
            ref = start.remote(
                pool,
                job,
                url,
                shards[number],
                str(journals[number].resolve()),
                str(place(number).resolve()),
                allowed,
            )
            running[ref] = number, url, lease
        if stopped and not running:
            break
        if not running:
            reasons = "; ".join(dict.fromkeys(dead.values()))
            raise CourseError(
                f"None of the {len(pool.urls)} endpoints answers any more ({reasons}) What was "
                "answered is kept: run again."
            )
        (ref,), _ = ray.wait(list(running), num_returns=1)
        number, url, _ = running.pop(ref)
        try:
            result = ray.get(ref)
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
        ) as error:
            accounts[number] = account(journals[number])
            if url not in dead:
                free.append(url)
            if tries[number] >= TRIES:
                stopped = CourseError(
                    f"The worker of shard {number} died {TRIES} times "
                    f"({str(error).splitlines()[0][:120]}): run again."
                )
            waiting.append(number)
            continue
        accounts[number] = account(journals[number])
        unanswered += result["unanswered"]
        if result["state"] == "done":
            if not result["unanswered"]:  # else the next run asks again what has no answer
                ledger.write({"key": f"done {jobs[number]}", "at_risk_usd": 0.0})
            if url not in dead:
                free.append(url)
        elif result["state"] == "unreachable":
            dead[url] = result["message"]
            free = deque(other for other in free if other != url)
            waiting.append(number)
            moved += 1
        else:
            stopped = stopped or CourseError(result["message"])
            waiting.append(number)
    if stopped is not None:
        raise stopped
    return {
        "shards": len(shards),
        "resumed": len(done),
        "moved": moved,
        "dead": list(dead),
        "unanswered": unanswered,
        "spent_usd": sum(spent for spent, _ in accounts),
        "lost_usd": before + sum(lost for _, lost in accounts),
    }
