"""How fast, how polite and how complete is the chat client, and how does it compare with a pool of
threads? (About two minutes.)

Run: .venv/bin/python -m benchmarks.client Measures against the rehearsal endpoint in a process of
its own, with 200 ms latency, and prints a table. It fails where a target is missed. The reference
is what such notebooks do: the synchronous SDK without retries in a `ThreadPoolExecutor` of default
size (number of cores + 4), results in order, errors lost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import utils
from llm.client import Client
from llm.replies import Reply
from rehearsal import stand_ins

LATENCY = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--requests", type=int, default=1000, help="for the throughput at a fixed concurrency"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument(
        "--limit", type=int, default=1200, help="requests a minute that the endpoint allows"
    )
    parser.add_argument(
        "--faulty", type=int, default=3000, help="requests to the endpoint with 5 %% faults"
    )
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # journals lie here
        warm_up()
        for measure in (throughput, politeness, faults):
            rows += measure(options)
    print(
        f"\nopenai {version('openai')} over {transport()}, Python {sys.version.split()[0]}, "
        f"{os.cpu_count()} cores\n"
    )
    print("| measure | value | target | met |\n|---|---|---|---|")
    for name, value, target, met in rows:
        print(f"| {name} | {value} | {target} | {'yes' if met else 'NO'} |")
    assert all(met for *_, met in rows), "a target was missed"


def throughput(options) -> list[tuple]:
    """At a fixed concurrency the ideal is concurrency / latency: nothing but waiting. The target is
    for the client's own default; the rows after it show where this machine's cores, and no longer
    the endpoint, become the limit."""
    rows = []
    for concurrency in options.concurrency:
        with stand_ins.separate(latency=LATENCY) as url:
            client = connect(url, concurrency)
            seconds, replies = timed(client, requests(options.requests))
        assert not any(reply.error for reply in replies) and journaled(client) == options.requests
        rate, ideal = options.requests / seconds, concurrency / LATENCY
        judged = concurrency == 8
        name = f"throughput, {options.requests:,} requests, {concurrency} at once"
        value = f"{rate:.0f}/s of {ideal:.0f}/s ({rate / ideal:.1%})"
        rows.append((name, value, ">= 90 %" if judged else "", rate >= 0.9 * ideal or not judged))
    return rows


def politeness(options) -> list[tuple]:
    """A limit that the client learns from the headers, enforced in a true sliding minute; more than
    a minute's worth of requests."""
    count = round(options.limit * 1.1)
    with stand_ins.separate(latency=LATENCY, requests_per_minute=options.limit) as url:
        seconds, replies = timed(connect(url, 32), requests(count))
        refused = served(url).get("rate_limited", 0)
    assert not any(reply.error for reply in replies)
    rate = count / seconds * 60
    name = f"{count:,} requests where {options.limit:,} a minute are allowed"
    return [
        (
            name,
            f"{rate:.0f} a minute ({rate / options.limit:.1%})",
            ">= 95 %",
            rate >= 0.95 * options.limit,
        ),
        (
            "of them answered with 429",
            f"{refused} ({refused / count:.2%})",
            "< 1 %",
            refused < 0.01 * count,
        ),
    ]


def faults(options) -> list[tuple]:
    """5 % of 429, 500, broken connections, malformed JSON and slow bodies: ours and the reference,
    on the same server."""
    asked = requests(options.faulty)
    with stand_ins.separate(
        latency=LATENCY, fault_rate=0.05, seed=7, requests_per_minute=1_000_000
    ) as url:
        client = connect(url, 128)
        seconds, replies = timed(client, asked)
        met = {kind: count for kind, count in served(url).items() if kind.startswith("fault ")}
        theirs, their_seconds = reference(url, asked[: max(100, options.faulty // 10)])
    answered = [reply for reply in replies if reply.error is None]
    accounted = len(answered) + sum(bool(reply.error) for reply in replies) == len(
        asked
    ) and journaled(client) == len(answered)
    got = [answer for answer in theirs if answer is not None]
    assert all(
        answer in (None, reply.text) for answer, reply in zip(theirs, replies, strict=False)
    ), "different answers"
    rate, their_rate = len(answered) / seconds, len(got) / their_seconds
    return [
        (
            f"answered, of {len(asked):,} with {sum(met.values())} faults",
            f"{len(answered):,}",
            "all accounted for",
            accounted,
        ),
        ("answered by the reference", f"{len(got)} of {len(theirs)}, the others lost", "", True),
        (
            "answers a second",
            f"{rate:.0f}, the reference {their_rate:.1f}: {rate / their_rate:.1f} times",
            ">= 10",
            rate >= 10 * their_rate,
        ),
    ]


def reference(url: str, asked: list[dict]) -> tuple[list[str | None], float]:
    """Answers in order, None where there is none, and seconds."""
    from openai import OpenAI

    sdk = OpenAI(base_url=url, api_key=stand_ins.KEY, max_retries=0)

    def ask(request: dict) -> str | None:
        try:
            return (
                sdk.chat.completions.create(model=stand_ins.MODEL, **request)
                .choices[0]
                .message.content
            )
        except Exception:
            return None

    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(ask, asked))
    return answers, time.perf_counter() - started


def requests(count: int) -> list[dict]:
    """Different requests for recorded batches."""
    text = "새 과제를 스무 개 만들어 주세요. 주제는 요리, 여행, 수학, 글쓰기입니다."
    return [
        {"messages": [{"role": "user", "content": text}], "seed": number, "temperature": 0.7}
        for number in range(count)
    ]


def connect(url: str, concurrency: int) -> Client:
    return Client(
        stand_ins.MODEL,
        url,
        stand_ins.KEY,
        journal=f"{time.time_ns()}.jsonl",
        max_concurrency=concurrency,
    )


def timed(client: Client, asked: list[dict]) -> tuple[float, list[Reply]]:
    started = time.perf_counter()
    replies = asyncio.run(client.complete(asked))
    return time.perf_counter() - started, replies


def warm_up() -> None:
    """Imports take a second, once a process, for both; and without `freeze` each full garbage
    collection would walk what they left."""
    with stand_ins.separate() as url:
        timed(connect(url, 1), requests(1))
        reference(url, requests(1))
    gc.freeze()


def journaled(client: Client) -> int:
    assert client._journal is not None  # `connect` gives it one
    return len(utils.read_jsonl(client._journal.path))


def served(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/served") as response:
        return json.load(response)


def version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def transport() -> str:
    from openai import DefaultAioHttpClient

    try:
        DefaultAioHttpClient()
    except RuntimeError:
        return "its default transport"
    return "aiohttp"


if __name__ == "__main__":
    main()
