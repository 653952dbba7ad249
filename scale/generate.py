"""Ask a teacher for tasks, or a judge for verdicts, at several OpenAI-compatible servers such as
vLLM's.

    python -m scale.generate teach --requests 5000 --model qwen --endpoint http://a:8000/v1
    http://b:8000/v1 --output tasks/
    python -m scale.generate judge --answers runs/big/answers.jsonl --model qwen --endpoint
    http://a:8000/v1 --output verdicts/

What it does: the requests of `preprocessing/self_instruct.py` and `evaluation/judge.py`, through
`pool.py`, and the shards of what was answered. What it does not do: filter near-duplicates, which
is the next step (scale/duplicates.py on the tasks), or analyse verdicts (evaluation.ipynb's
functions do).

The output folder: requests.jsonl, the journal of everything that was ever paid for in it;
folder.json, of which job and model it is; 00000.jsonl and so on, the records of the last call, and
rejected/, those that cannot be used; report.json, written last, which says that these are whole.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

import settings
import utils
from evaluation import judge
from llm.client import Client
from preprocessing import curation, self_instruct
from preprocessing.asking import TASKS
from scale import pool
from training import generation
from utils import CourseError

LAYOUT = 2  # of the output folder
SHARDS = "[0-9][0-9][0-9][0-9][0-9].jsonl"
SHARD = 5000  # records
TRIAL = 8  # requests or prompts that are asked before all others


# --- tasks ----------------------------------------------------------------------------------------


def teach_items(
    requests: int, languages: tuple[str, ...], seed: int = 42, domain: str = ""
) -> list[dict]:
    """Requests, each with its `language` and a `name`. The demonstrations follow from seed and
    number, so that every call makes the same ones."""
    seeds = self_instruct.load_seeds(languages)
    items = []
    for number in range(requests):
        language = languages[number % len(languages)]
        rng = random.Random(f"{seed} {number}")
        shown = self_instruct.sample_demonstrations(seeds, language, 3, rng)
        request = self_instruct.batch_request(shown, language, TASKS, number, domain)
        name = f"{language}-{number:07d}"
        items.append({"name": name, "language": language, "request": request})
    return items


async def teach(client: Client, items: list[dict]) -> list[dict]:
    """Rows of `id, language, category, instruction, input, output, teacher`, with `problem` where
    one of the course's rules rejects it; for a reply that cannot be used, one record with
    `error`."""
    requests = [item["request"] for item in items]
    replies = await self_instruct.ask(client, requests, self_instruct.TaskBatch)
    rows = []
    for item, reply in zip(items, replies, strict=True):
        if reply.error:
            rows.append({"id": item["name"], "error": reply.error})
        for place, task in enumerate(self_instruct.tasks_of(reply)):
            row = {
                "id": f"{item['name']}-{place:02d}",
                "language": item["language"],
                "teacher": client.model,
                **task,
            }
            rows.append(row | ({"problem": problem} if (problem := curation.problem(row)) else {}))
    return rows


# --- verdicts -------------------------------------------------------------------------------------


def judge_items(answers: Path) -> list[dict]:
    """The evaluation prompts with the answers of both models, one text a turn."""
    prompts = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", ("id", "prompt"))
    known = {item["id"]: item for item in prompts}
    asked = [record["id"] for record in utils.read_jsonl(answers, ("id",))]
    if unknown := [name for name in asked if name not in known]:
        raise CourseError(
            f"{utils.short(answers)} answers {unknown[0]!r}, which is no prompt of "
            "data/eval_prompts.jsonl."
        )
    items = [known[name] for name in asked]
    base, tuned = map(generation.texts, generation.read_answers(answers, items))
    return [
        {"item": item, "base": before, "tuned": after}
        for item, before, after in zip(items, base, tuned, strict=True)
    ]


async def verdicts(client: Client, items: list[dict]) -> list[dict]:
    """The records of `judge.Judge.compare`; a verdict that failed is in its `orders`."""
    prompts = [item["item"] for item in items]
    tuned = [item["tuned"] for item in items]
    base = [item["base"] for item in items]
    return await judge.Judge(client).compare(prompts, tuned, base)


JOBS = {"teach": teach, "judge": verdicts}


# --- the output folder ----------------------------------------------------------------------------


@contextlib.contextmanager
def alone(output: Path, job: str, model: str) -> Iterator[None]:
    """Be the only program that writes into the folder while the block runs, which is of this job
    and model for ever.

    Raises:
        CourseError: another program writes it, or it is of another job, model or layout.
    """
    with utils.disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / "writer.lock", timeout=1)
        try:
            lock.acquire()
        except Timeout:
            who = utils.read_json(output / "writer.json")
            raise CourseError(
                f"{utils.short(output)} is being written by process {who.get('process')} on "
                f"{who.get('host')}, since {who.get('since')}: wait until it is done, stop it, or "
                "give another --output (both would ask and pay for the same)."
            ) from None
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        utils.write_json(output / "writer.json", who)
        _claim(output, {"layout": LAYOUT, "job": job, "model": model})
        yield
    finally:
        lock.release()


def _claim(output: Path, wanted: dict) -> None:
    """Write what a new folder is of, or refuse one that is of something else."""
    place = output / "folder.json"
    if not place.exists():
        if (output / "journal").exists() or any(output.glob(SHARDS)):
            raise CourseError(
                f"{utils.short(output)} was not made by this version of scale.generate: give "
                "another --output (scale/README.md says how to take along what was paid for)."
            )
        utils.write_json(place, wanted)
    found = utils.read_json(place)
    for name, value in wanted.items():
        if found.get(name) != value:
            raise CourseError(
                f"{utils.short(output)} is of the {name} {found.get(name)!r}, and this would be of "
                f"{value!r}: give another --output."
            )


def write(output: Path, records: list[dict], size: int) -> dict[str, int]:
    """The records in shards of `size`, the rejected ones apart, instead of those of an earlier
    call: whatever matches the names of shards is of this one. Returns how many went where."""
    parts = {
        output: [record for record in records if not rejected(record)],
        output / "rejected": [record for record in records if rejected(record)],
    }
    (output / "report.json").unlink(missing_ok=True)
    for folder, part in parts.items():
        for shard in folder.glob(SHARDS):
            shard.unlink()
        for number, start in enumerate(range(0, len(part), size)):
            utils.write_jsonl(folder / f"{number:05d}.jsonl", part[start : start + size])
    return {"kept": len(parts[output]), "rejected": len(parts[output / "rejected"])}


def rejected(record: dict) -> bool:
    """True for a row with an `error` or a `problem`, and a verdict of which one order was not
    answered: it has not failed, the next run asks it."""
    said = [order["error"] or "" for order in record.get("orders", [])]
    unanswered = any(error.startswith(pool.UNANSWERED) for error in said)
    return "error" in record or "problem" in record or unanswered


def run(client: pool.Pool, job: str, items: list[dict], output: Path, size: int = SHARD) -> dict:
    """Ask what `output` has no answer to, and write all of it; the report. Run it again to go on
    after any stop.

    Raises:
        CourseError: nothing was answered, or not all, because no server answers any more, one
            record cannot be written, the budget is used up (BudgetExceeded), or none of the first
            few replies can be read. What was answered is kept, and written.
    """

    async def ask() -> list[dict]:
        # The first few may show that there is no use in asking more
        await JOBS[job](client, items[:TRIAL])
        return await JOBS[job](client, items)

    records = asyncio.run(ask())
    if not client.answered:  # then what an earlier call has written stays
        client.check()
    counts = write(output, records, size)
    report = {
        "items": len(items),
        **counts,
        "asked": client.usage.requests,
        "unanswered": len(client.unanswered),
        "failing": {one.name: one.problem for one in client.servers if one.problem},
        "spent_usd": client.spent_usd,
        "lost_usd": client.lost_usd,
        "estimated": client.usage.estimated,
    }
    utils.write_json(output / "report.json", report)
    client.check()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--model", required=True, help="its name at the servers")
    parser.add_argument("--endpoint", nargs="*", help="base URLs; none: OpenAI")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--budget-usd", type=float, help="hard, for everything ever spent into this output folder"
    )
    parser.add_argument(
        "--prices",
        help="'input, cached, output' in dollars per million tokens, where llm/models.py does not "
        "know the model",
    )
    parser.add_argument(
        "--requests", type=int, default=100, help=f"teach: requests, of {TASKS} tasks each"
    )
    parser.add_argument("--language", default="both")
    parser.add_argument("--domain", default="")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--answers", type=Path, help="judge: answers.jsonl of a run")
    parser.add_argument("--shard", type=int, default=SHARD, help="records in a file of the output")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight a server")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds in which a reply must begin"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again where a reply cannot be used"
    )
    a = parser.parse_args()
    items = _items(a)
    prices = settings.as_prices("--prices", a.prices) if a.prices else None
    with alone(a.output, a.job, a.model):
        client = pool.Pool(
            a.model,
            a.endpoint or [None],
            a.output / "requests.jsonl",
            a.budget_usd,
            prices,
            a.concurrency,
            a.timeout,
            a.retry_failed,
        )
        report = run(client, a.job, items, a.output, a.shard)
    print(json.dumps(report, indent=1))


def _items(a: argparse.Namespace) -> list[dict]:
    for name in ("requests", "shard", "concurrency"):
        settings.as_positive(f"--{name}", getattr(a, name))
    if a.job == "teach":
        languages = settings.as_languages("--language", a.language)
        return teach_items(a.requests, languages, a.seed, a.domain)
    if not a.answers:
        raise CourseError(
            "Which answers? Give --answers runs/<run>/answers.jsonl, which evaluation.ipynb writes."
        )
    return judge_items(a.answers)


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
