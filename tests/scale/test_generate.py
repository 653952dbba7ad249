"""Generation and judging over a pool: an endpoint that dies, a worker that dies, a hard budget, and
a program that is killed."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

import utils
from llm.budget import BudgetExceeded
from llm.client import Client
from scale import cluster, generate, pool

SKIP = "this test needs Ray: run `make scale-test`"
KEY = {"api_key": "rehearsal"}
DEAR = {
    "prices": (100.0, 100.0, 100.0)
}  # dollars per million tokens, so that a rehearsal costs something


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason=SKIP)
    with cluster.connected(cpus=2, store_gib=0.2):
        yield sys.modules["ray"]


def items(requests: int, size: int) -> list[list[dict]]:
    return generate.sharded(generate.teach_items(requests, ("en", "ko")), size)


def journal(output) -> list[str]:
    """The keys of all that was paid for, in all journals; one may be at its last line now."""
    return [
        entry["key"]
        for path in sorted((output / "journal").glob("*.jsonl"))
        for entry in utils.read_jsonl(path, whole_lines=True)
        if "reply" in entry
    ]


def rows(output) -> list[dict]:
    return [row for path in sorted(output.glob("0*.jsonl")) for row in utils.read_jsonl(path)]


def good(records: list[dict]) -> list[dict]:
    return [record for record in records if "error" not in record and "problem" not in record]


def test_an_endpoint_that_dies_hands_its_shards_to_the_other(ray, tmp_path):
    from rehearsal import stand_ins

    with contextlib.ExitStack() as stack, stand_ins.separate(latency=0.1) as stays:
        dies = stack.enter_context(stand_ins.separate(latency=0.1))
        where = pool.Pool(
            "rehearsal", [dies, stays], client=KEY | {"max_concurrency": 1, "attempts": 2}
        )

        def kill():
            while len(journal(tmp_path)) < 3:
                time.sleep(0.02)
            stack.close()

        killer = threading.Thread(target=kill)
        killer.start()
        report = pool.run(where, generate.JOBS["teach"], items(32, 4), tmp_path)
        killer.join()
        expected = asyncio.run(
            generate.teach(
                Client("rehearsal", stays, **KEY), generate.teach_items(32, ("en", "ko"))
            )
        )
    assert report["dead"] == [dies] and report["moved"] >= 1
    assert rows(tmp_path) == good(expected)  # those of one client, in the same order
    assert len(rows(tmp_path / "rejected")) == len(expected) - len(good(expected)) > 0
    assert not report[
        "unanswered"
    ]  # malformed replies are among the rejected, and they are answers
    keys = journal(tmp_path)
    assert len(set(keys)) == len(keys) == 32  # nothing is paid for twice, and nothing is missing


def test_no_endpoint_left_is_one_sentence_and_keeps_what_was_answered(ray, tmp_path):
    from rehearsal import stand_ins

    with stand_ins.separate() as url:
        pool.run(
            pool.Pool("rehearsal", [url], client=KEY),
            generate.JOBS["teach"],
            items(4, 2)[:1],
            tmp_path,
        )
    gone = pool.Pool("rehearsal", [url], client=KEY | {"attempts": 1})
    with pytest.raises(
        utils.CourseError,
        match="None of the 1 endpoints answers any more.*cannot be reached.*run again",
    ):
        pool.run(gone, generate.JOBS["teach"], items(4, 2), tmp_path)
    assert len(journal(tmp_path)) == 2


def test_the_budget_is_hard_over_all_shards_and_runs(ray, tmp_path):
    from rehearsal import stand_ins

    with stand_ins.separate() as url:
        where = pool.Pool("rehearsal", [url], at_once=3, client=KEY | DEAR)
        job, shards = generate.JOBS["teach"], items(12, 2)
        one = job.worst(where.connect(url, tmp_path / "none", None), shards[0])
        for budget in (
            1.2 * one,
            1.6 * one,
        ):  # room for one shard at worst, so for a few that turn out cheaper
            with pytest.raises(
                BudgetExceeded, match=r"Shard \d of 6 may cost .*raise --budget-usd"
            ):
                pool.run(where, job, shards, tmp_path, budget)
            paid = [pool.account(path) for path in (tmp_path / "journal").glob("*.jsonl")]
            assert 0 < sum(spent + lost for spent, lost in paid) <= budget
        before = journal(tmp_path)
        report = pool.run(where, job, shards, tmp_path, 20 * one)
    assert (
        report["resumed"] >= 1
        and len(set(journal(tmp_path))) == len(journal(tmp_path)) == 12
        and set(before) < set(journal(tmp_path))
    )


def test_a_worker_that_dies_costs_its_worst_case_and_the_shard_is_done_again(ray, tmp_path):
    from rehearsal import stand_ins

    async def die(client):
        while not client._journal.records:  # until a request is noted, and under way
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), 9)

    async def once(client, shard):
        flag = tmp_path / "died"
        if not flag.exists():
            flag.touch()
            return (await asyncio.gather(generate.teach(client, shard), die(client)))[0]
        return await generate.teach(client, shard)

    with stand_ins.separate(latency=0.5) as url:
        where = pool.Pool("rehearsal", [url], client=KEY | DEAR | {"max_concurrency": 1})
        report = pool.run(
            where,
            pool.Job("teach", once, generate.teach_worst),
            items(4, 2),
            tmp_path / "out",
            100.0,
        )
        one = generate.teach_worst(where.connect(url, tmp_path / "none", None), items(4, 2)[0]) / 2
    assert report["shards"] == 2 and len(journal(tmp_path / "out")) == 4
    assert report["lost_usd"] == pytest.approx(one, rel=0.02)  # one request was under way


def test_a_killed_program_goes_on_from_its_journals(tmp_path):
    pytest.importorskip("ray", reason=SKIP)
    from rehearsal import stand_ins

    with stand_ins.separate(latency=0.2) as url:
        command = [
            sys.executable,
            "-m",
            "scale.generate",
            "teach",
            "--requests",
            "24",
            "--model",
            "rehearsal",
            "--endpoint",
            url,
        ]
        command += ["--output", str(tmp_path), "--shard", "4", "--concurrency", "1"]
        environment = os.environ | {"OPENAI_API_KEY": "rehearsal"}
        first = subprocess.Popen(
            command,
            cwd=utils.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.time() + 400
        while not (tmp_path / "journal").exists() or len(journal(tmp_path)) < 6:
            assert first.poll() is None and time.time() < deadline, first.communicate()[0][-2000:]
            time.sleep(0.05)
        first.kill()
        first.wait()
        before = journal(tmp_path)
        done = subprocess.run(
            command, cwd=utils.ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr[-2000:]
    keys = journal(tmp_path)
    # The request that was under way may have been answered without being written: it is asked
    # again, and only that one
    assert 6 <= len(before) < 24 and len(set(keys)) == len(keys) == 24 and set(before) <= set(keys)


def test_judging_gives_the_records_of_one_machine(ray, tmp_path):
    from evaluation import judge
    from llm.client import Client
    from rehearsal import stand_ins
    from training import generation

    prompts = [
        item
        for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
        if not item.get("follow_ups")
    ][:3]
    base = [[generation.Answer("Yes.", True, 3)]] * len(prompts)
    tuned = [[generation.Answer("A longer answer, to be sure.", True, 3)]] * len(prompts)
    place = tmp_path / "answers.jsonl"
    generation.write_answers(place, prompts, base, tuned, generation.Decoding())
    with stand_ins.separate() as url:
        listed = generate.judge_items(tmp_path / "answers.jsonl")
        pool.run(
            pool.Pool("rehearsal", [url], client=KEY),
            generate.JOBS["judge"],
            generate.sharded(listed, 2),
            tmp_path / "out",
        )
        client = Client("rehearsal", url, **KEY)
        expected = asyncio.run(
            judge.Judge(client).compare(
                prompts, [["A longer answer, to be sure."]] * 3, [["Yes."]] * 3
            )
        )
    assert rows(tmp_path / "out") == expected


def test_every_worker_makes_the_same_request():
    listed = generate.teach_items(10, ("en", "ko"))
    assert generate._requests(listed)[4:6] == generate._requests(listed[4:6])
    assert len({str(request) for request in generate._requests(listed)}) == 10


def test_a_shard_of_a_crashed_program_waits_for_its_old_worker(tmp_path):
    order = []

    def old():
        with pool.alone(tmp_path / "0.jsonl"):
            started.set()
            time.sleep(0.2)
            order.append("old")

    started = threading.Event()
    thread = threading.Thread(target=old)
    thread.start()
    started.wait()
    with pool.alone(tmp_path / "0.jsonl"):
        order.append("new")
    thread.join()
    assert order == ["old", "new"]


def test_answers_to_unknown_prompts_are_refused(tmp_path):
    utils.write_jsonl(tmp_path / "answers.jsonl", [{"id": "nobody"}])
    with pytest.raises(utils.CourseError, match="'nobody', which is no prompt"):
        generate.judge_items(tmp_path / "answers.jsonl")
