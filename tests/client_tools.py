"""What the tests of the client share: requests, a client on a server of ours, processes to
kill."""

import asyncio
import json
import multiprocessing
import urllib.request

from llm.client import Client
from llm.replies import Reply
from rehearsal import stand_ins

KEY = stand_ins.KEY
PRICES = (1.0, 1.0, 1.0)


def ask(count: int = 1, **extra) -> list[dict]:
    return [
        {
            "messages": [{"role": "user", "content": "과제를 만들어 주세요."}],
            "seed": i,
            "max_completion_tokens": 100,
        }
        | extra
        for i in range(count)
    ]


def asked(count: int) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": f"과제 {i}번을 만들어 주세요."}], "seed": i}
        for i in range(count)
    ]


def client(url: str, **options) -> Client:
    return Client(**{"model": "rehearsal", "base_url": url, "api_key": KEY} | options)


def run(client: Client, requests: list[dict], schema=None) -> list[Reply]:
    return asyncio.run(client.complete(requests, schema))


def kept(path) -> list[dict]:
    """The answers in a journal, in the order written; not its notes of what may be lost."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if "reply" in record]


def served(url: str) -> dict:
    """What the endpoint has counted so far."""
    with urllib.request.urlopen(f"{url}/served") as response:
        return json.load(response)


def spawn(context, target, *arguments) -> multiprocessing.Process:
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def killed_until_done(context, rng, longest: float, target, *arguments) -> int:
    """Start work, kill it after some random part of `longest` seconds and start it again, until it
    ends by itself; how often it was killed."""
    kills = 0
    while True:
        process = spawn(context, target, *arguments)
        process.join(rng.uniform(0, longest))
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        process.kill()  # SIGKILL
        process.join()
        kills += 1


def work_one_by_one(url: str, path: str, count: int) -> None:
    """What is killed: a process of its own."""
    asyncio.run(client(url, journal=path, max_concurrency=4).complete(asked(count)))


def work_in_a_batch(url: str, path: str, count: int) -> None:
    """What is killed: a process of its own."""
    one = client(url, journal=path, prices=PRICES, budget_usd=10)
    asyncio.run(one.complete_batch(asked(count), poll_seconds=0.02))
