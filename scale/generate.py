"""Ask a teacher for tasks, or a judge for verdicts, over a pool of OpenAI-compatible endpoints such
as vLLM servers.

    python -m scale.generate teach --requests 5000 --model qwen --endpoint http://a:8000/v1
    http://b:8000/v1 --output tasks/ python -m scale.generate judge --answers runs/big/answers.jsonl
    --model qwen --endpoint http://a:8000/v1 --output verdicts/

What it does: the requests of `preprocessing/self_instruct.py` and `evaluation/judge.py`, in shards,
by `pool.py`. What it
does not do: filter near-duplicates, which is the next step (scale/duplicates.py on the tasks), or
analyse verdicts (evaluation.ipynb's functions do).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import settings
import utils
from evaluation import judge
from llm.client import Client
from preprocessing import curation, self_instruct
from scale import cluster, pool
from training import generation
from utils import CourseError

TASKS = 20  # of one request, as in Alpaca
SHARD = 200  # requests


# --- tasks ----------------------------------------------------------------------------------------


def teach_items(
    requests: int, languages: tuple[str, ...], seed: int = 42, domain: str = ""
) -> list[dict]:
    """What tells one request from another; the demonstrations follow from it, so that every worker
    makes the same request."""
    return [
        {
            "language": languages[number % len(languages)],
            "number": number,
            "seed": seed,
            "domain": domain,
            "languages": list(languages),
        }
        for number in range(requests)
    ]


def _requests(items: list[dict]) -> list[dict]:
    seeds = self_instruct.load_seeds(tuple(items[0]["languages"]))
    made = []
    for item in items:
        rng = random.Random(f"{item['seed']} {item['number']}")
        shown = self_instruct.sample_demonstrations(seeds, item["language"], 3, rng)
        made.append(
            self_instruct.batch_request(
                shown, item["language"], TASKS, item["number"], item["domain"]
            )
        )
    return made


async def teach(client: Client, items: list[dict]) -> list[dict]:
    """Rows of `id, language, category, instruction, input, output, teacher`, with `problem` where
    one of the course's rules rejects it; for a reply that cannot be used, one record with
    `error`."""
    rows = []
    for item, reply in zip(
        items,
        await self_instruct.ask(client, _requests(items), self_instruct.TaskBatch),
        strict=True,
    ):
        name = f"{item['language']}-{item['number']:07d}"
        if reply.error:
            rows.append({"id": name, "error": reply.error})
        for place, task in enumerate(self_instruct.tasks_of(reply)):
            row = {
                "id": f"{name}-{place:02d}",
                "language": item["language"],
                "teacher": client.model,
                **task,
            }
            rows.append(row | ({"problem": problem} if (problem := curation.problem(row)) else {}))
    return rows


def teach_worst(client: Client, items: list[dict]) -> float:
    """Dollars at worst."""
    return client.estimate(_requests(items), self_instruct.TaskBatch)


# --- verdicts -------------------------------------------------------------------------------------


def judge_items(answers: Path, prompts: Path | None = None) -> list[dict]:
    """The evaluation prompts with the answers of both models, one text a turn."""
    records = {
        item["id"]: item
        for item in utils.read_jsonl(prompts or utils.DATA / "eval_prompts.jsonl", ("id", "prompt"))
    }
    asked = [record["id"] for record in utils.read_jsonl(answers, ("id",))]
    if unknown := [name for name in asked if name not in records]:
        raise CourseError(
            f"{utils.short(answers)} answers {unknown[0]!r}, which is no prompt of "
            f"{prompts or 'data/eval_prompts.jsonl'}."
        )
    items = [records[name] for name in asked]
    base, tuned = generation.read_answers(answers, items)
    return [
        {"item": item, "base": _texts(before), "tuned": _texts(after)}
        for item, before, after in zip(items, base, tuned, strict=True)
    ]


def _texts(turns: list[generation.Answer]) -> list[str]:
    return [turn.text for turn in turns]


def _columns(items: list[dict]) -> tuple[list, list, list]:
    return (
        [item["item"] for item in items],
        [item["tuned"] for item in items],
        [item["base"] for item in items],
    )


async def verdicts(client: Client, items: list[dict]) -> list[dict]:
    """The records of `judge.Judge.compare`; a verdict that failed is in its `orders`."""
    return await judge.Judge(client).compare(*_columns(items))


def verdicts_worst(client: Client, items: list[dict]) -> float:
    """Dollars at worst."""
    return judge.Judge(client).estimate(*_columns(items))


JOBS = {
    "teach": pool.Job("teach", teach, teach_worst),
    "judge": pool.Job("judge", verdicts, verdicts_worst),
}


def sharded(items: list[dict], size: int) -> list[list[dict]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def main() -> None:
    """The command line; a mistake of the reader's ends in one sentence and status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--model", required=True, help="its name at the endpoints")
    parser.add_argument("--endpoint", nargs="*", help="base URLs; none: OpenAI")
    parser.add_argument("--output", required=True)
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
    parser.add_argument("--shard", type=int, default=SHARD, help="requests or prompts in a shard")
    parser.add_argument("--at-once", type=int, default=1, help="shards in flight at each endpoint")
    parser.add_argument(
        "--concurrency", type=int, default=64, help="requests in flight in each shard"
    )
    parser.add_argument("--address", help="of a Ray cluster; default: this machine")
    a = parser.parse_args()
    try:
        if a.job == "judge" and not a.answers:
            raise CourseError(
                "Which answers? Give --answers runs/<run>/answers.jsonl, which evaluation.ipynb "
                "writes."
            )
        items = (
            judge_items(a.answers)
            if a.job == "judge"
            else teach_items(
                a.requests, settings.as_languages("--language", a.language), a.seed, a.domain
            )
        )
        options = {
            "max_concurrency": a.concurrency,
            "prices": settings.as_prices("--prices", a.prices) if a.prices else None,
        }
        where = pool.Pool(a.model, a.endpoint or [None], a.at_once, options)
        with cluster.connected(a.address, store_gib=0.2):
            report = pool.run(where, JOBS[a.job], sharded(items, a.shard), a.output, a.budget_usd)
    except CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
