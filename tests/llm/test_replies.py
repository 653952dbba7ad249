"""Whatever a server says: what is asked, kept in the journal, booked and said for each kind of
reply. The server sends raw bytes, so that no library of ours makes them nicer than they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from client_tools import ask, client, kept, run
from pydantic import BaseModel, ConfigDict
from raw_server import Said, completion, serving, without

import utils
from llm import answers

YES = "네, 좋아요."
WORST = "the worst case"  # is booked: 18 tokens of prompt at most, and 100 of answer


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class Cities(BaseModel):
    model_config = ConfigDict(extra="forbid")
    cities: list[City]


@dataclass
class Case:
    """One kind of reply to one request, asked at most twice, and what comes of it."""

    name: str
    said: Said
    asked: int = 1
    kept: int = 1  # records in the journal
    booked: tuple[int, int] | str = (10, 5)  # tokens
    lost: int = 0  # answers that may have been billed without arriving
    text: str = YES
    error: str | None = None  # in the reply
    raises: str | None = None  # instead of a reply
    schema: type[BaseModel] | None = None


def good(name: str, body: object, **expected) -> Case:
    return Case(name, Said(body), **expected)


def counted(name: str, usage: object, booked: tuple[int, int] | str) -> Case:
    return Case(name, Said(completion(usage=usage)), booked=booked)


def failing(name: str, said: Said, error: str | None = None, **expected) -> Case:
    """No answer, nothing billed; asked once unless `expected` says more."""
    nothing: dict[str, Any] = {"kept": 0, "booked": (0, 0), "text": ""}
    return Case(name, said, error=error, **nothing | expected)


def fault(message: str, status: int, **more) -> Said:
    return Said({"error": {"message": message} | more}, status)


def stream(*pieces: str, usage: bool = True) -> str:
    """What a server sends that streams without being asked to."""
    chunks: list[dict] = [
        {"choices": [{"delta": {"content": piece}}], "model": "teacher"} for piece in pieces
    ]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    if usage:
        chunks.append({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return ": OPENROUTER PROCESSING\n\n" + "".join(lines) + "data: [DONE]\n\n"


def cities(*names: str) -> str:
    return json.dumps({"cities": [{"name": name} for name in names]}, ensure_ascii=False)


HALF = json.dumps(completion(YES + "\ud83d"))  # json.dumps escapes it, so these bytes are legal
DEEP = "[" * 20_000

CASES = [
    # --- texts
    good("plain", completion()),
    good("half a surrogate pair in the text", HALF, text=YES + "\ufffd"),
    good("a whole surrogate pair in two escapes", completion("\U0001f600"), text="\U0001f600"),
    good("content as parts", completion([{"type": "text", "text": YES}])),
    good("content as strings", completion(["네, ", "좋아요."])),
    good(
        "a thought beside the text (Mistral)",
        completion(
            [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": YES}]
        ),
    ),
    good("content as an object", completion({"name": "서울"}), text='{"name": "서울"}'),
    good(
        "content in the arguments of a tool call",
        completion(
            None,
            message={
                "content": None,
                "tool_calls": [{"function": {"arguments": '{"name": "서울"}'}}],
            },
        ),
        text='{"name": "서울"}',
    ),
    good("a completion of the old kind", completion(message=None, text=YES)),
    good("a delta instead of a message", completion(message=None, delta={"content": YES})),
    good("a number as content", completion(7), text="7"),
    good("an empty text", completion(""), text="", error="an empty reply (finish_reason is stop)"),
    good("null as content", completion(None), text="", error="an empty reply"),
    good("no message", completion(message=None), text="", error="an empty reply"),
    good("only blanks", completion(" \n"), text=" \n", error="an empty reply"),
    good("choices is empty", completion() | {"choices": []}, text="", error="an empty reply"),
    good("choices is null", completion() | {"choices": None}, text="", error="an empty reply"),
    good("choices holds null", completion() | {"choices": [None]}, text="", error="an empty reply"),
    good("no choices, but usage", without(completion(), "choices"), text="", error="an empty repl"),
    good(
        "choices is empty and nothing is counted",
        completion(usage=None) | {"choices": []},
        booked=WORST,
        text="",
        error="an empty reply",
    ),
    good(
        "control characters in a string",
        '{"choices": [{"message": {"content": "a\tb"}}]}',
        booked=WORST,
        text="a\tb",
    ),
    good("a byte order mark", b"\xef\xbb\xbf" + json.dumps(completion()).encode()),
    good("something after the JSON", json.dumps(completion()) + "\n\nbye"),
    good("blank lines before the JSON", "\n\n  \n" + json.dumps(completion())),
    good(
        "bytes that are not UTF-8",
        json.dumps(completion("a?b")).encode().replace(b"?", b"\xff"),
        text="a\ufffdb",
    ),
    good("a list around the completion", [completion()]),
    good("a field nobody knows", completion() | {"surprise": {"deep": [1, {"er": None}]}}),
    good("no model, no id", without(completion(), "model", "id")),
    good("model is a number", completion() | {"model": 4}),
    good("error is null beside the answer", completion() | {"error": None}),
    good("20,000 brackets in the text", completion(DEEP), text=DEEP),
    good(
        "20,000 brackets where a schema is asked for",
        completion(DEEP),
        text=DEEP,
        schema=Cities,
        error="does not match the schema",
    ),
    # --- ends
    good(
        "refusal",
        completion(None, message={"content": None, "refusal": "아니요"}),
        text="",
        error="refused: 아니요",
    ),
    good(
        "refusal as a part",
        completion([{"type": "refusal", "refusal": "no"}]),
        text="",
        error="refused: no",
    ),
    good(
        "content filter",
        completion("", finish_reason="content_filter"),
        text="",
        error="an empty reply (finish_reason is content_filter)",
    ),
    good("no finish_reason", completion(finish_reason=None)),
    good("finish_reason is an object", completion(finish_reason={"type": "stop"})),
    good(
        "cut off at the limit",
        completion(usage={"prompt_tokens": 10, "completion_tokens": 100}, finish_reason="length"),
        booked=(10, 100),
        error="cut off by max_completion_tokens",
    ),
    good(
        "cut off where the context ends (llama.cpp)",
        completion(usage={"prompt_tokens": 90, "completion_tokens": 38}, finish_reason="length"),
        booked=(90, 38),
        error="cut off at the end of the model's context",
    ),
    good(
        "all was spent on thinking",
        completion(
            "",
            usage={"prompt_tokens": 10, "completion_tokens": 100},
            finish_reason="length",
        ),
        booked=(10, 100),
        text="",
        error="an empty reply (cut off by max_completion_tokens)",
    ),
    good(
        "a model's server broke off in the middle (OpenRouter)",
        completion("", finish_reason="error", error={"message": "upstream died", "code": 502}),
        text="",
        error="an empty reply (upstream died)",
    ),
    # --- objects
    good("by the schema", completion(cities("서울")), text=cities("서울"), schema=Cities),
    good(
        "half a surrogate inside the JSON of the text",
        completion('{"cities": [{"name": "\\ud83d"}]}'),
        text='{"cities": [{"name": "\\ud83d"}]}',
        schema=Cities,
    ),
    good(
        "cut off in the third object",
        completion(cities("서울", "부산", "대구")[:-8], finish_reason="length"),
        text=cities("서울", "부산", "대구")[:-8],
        schema=Cities,
    ),
    good(
        "cut off in the first object",
        completion('{"cities": [{"na', finish_reason="length"),
        text='{"cities": [{"na',
        schema=Cities,
        error="cut off at the end of the model's context, does not match the schema",
    ),
    good(
        "prose where a schema is asked for",
        completion(),
        schema=Cities,
        error="does not match the schema: Invalid JSON",
    ),
    # --- counts
    counted("usage is null", None, WORST),
    counted("usage is empty", {}, WORST),
    counted("usage is a list", [], WORST),
    counted("usage is all zeros", {"prompt_tokens": 0, "completion_tokens": 0}, WORST),
    counted("only the prompt is counted", {"prompt_tokens": 12}, (12, 100)),
    counted("only the answer is counted", {"completion_tokens": 7}, (18, 7)),
    counted("prompt and total", {"prompt_tokens": 12, "total_tokens": 20}, (12, 8)),
    counted("answer and total", {"completion_tokens": 8, "total_tokens": 20}, (12, 8)),
    counted("counts are null", {"prompt_tokens": None, "completion_tokens": None}, WORST),
    counted("counts are strings", {"prompt_tokens": "12", "completion_tokens": "7"}, (12, 7)),
    counted("counts are floats", {"prompt_tokens": 12.0, "completion_tokens": 6.5}, (12, 7)),
    counted("counts are negative", {"prompt_tokens": -1, "completion_tokens": -1}, WORST),
    counted("counts are true", {"prompt_tokens": True, "completion_tokens": True}, WORST),
    counted("input_tokens, output_tokens", {"input_tokens": 12, "output_tokens": 7}, (12, 7)),
    counted(
        "reasoning counted only in the total",
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 75},
        (10, 65),
    ),
    counted(
        "reasoning beside completion_tokens",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        (10, 65),
    ),
    counted(
        "more cached than read",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 900},
        },
        (10, 5),
    ),
    counted(
        "details are null",
        {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None},
        (10, 5),
    ),
    good(
        "counts are NaN",
        json.dumps(completion(usage={"prompt_tokens": float("nan")})),
        booked=WORST,
    ),
    good(
        "counts are infinite",
        json.dumps(completion(usage={"completion_tokens": float("inf")})),
        booked=WORST,
    ),
    # --- status 200, and no answer
    good("a stream nobody asked for", stream("네, ", "좋아요.")),
    good("a stream that counts nothing", stream(YES, usage=False), booked=WORST),
    failing(
        "a stream with an error",
        Said('data: {"error": {"message": "no capacity", "code": 503}}\n\n'),
        "no capacity",
        asked=2,
    ),
    failing(
        "an error with status 200",
        fault("Model is loading", 200),
        "no complete answer after 2 attempts (Model is loading)",
        asked=2,
    ),
    failing("an error that is a string", Said({"error": "No models loaded"}), "No models", asked=2),
    failing(
        "an error with its status inside (OpenRouter)",
        fault("Insufficient credits", 200, code=402),
        raises="wants to be paid first (402): Insufficient credits",
    ),
    failing(
        "an error about a passing thing inside (OpenRouter)",
        fault("Provider returned error", 200, code=503, metadata={"raw": "overloaded"}),
        "server error 503 after 2 attempts (Provider returned error (overloaded))",
        asked=2,
    ),
    failing(
        "a web page",
        Said("<!doctype html><title>Sign in &amp; pay</title>"),
        "no complete answer after 2 attempts (a web page: Sign in & pay)",
        asked=2,
    ),
    failing("an empty body", Said(b""), "(an empty body)", asked=2, lost=2),
    failing("half a JSON object", Said('{"id": "x", "choi'), "malformed JSON", asked=2, lost=2),
    failing("20,000 brackets as the body", Said(DEEP), "malformed JSON", asked=2, lost=2),
    failing("an empty object", Said({}), "no chat completion in it", asked=2, lost=2),
    failing("null", Said("null"), "no chat completion in it", asked=2, lost=2),
    failing(
        "a connection cut in the middle",
        Said(completion(), hang_up=True),
        "no complete answer after 2 attempts",
        asked=2,
        lost=2,
    ),
    failing(
        "a connection closed without a word",
        Said(hang_up_before=True),
        "no complete answer after 2 attempts",
        asked=2,
        lost=2,
    ),
    # --- other statuses
    failing("400", fault("messages must alternate", 400), raises="(400): messages must alternate"),
    failing(
        "too long, by OpenAI",
        fault("maximum context length is 128000", 400, code="context_length_exceeded"),
        "the request is too long (400)",
    ),
    failing(
        "too long, by vLLM",
        Said(
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens.",
                "type": "BadRequestError",
                "code": 400,
            },
            400,
        ),
        "the request is too long (400): This model's maximum context length is 4096 tokens.",
    ),
    failing(
        "too long, by llama.cpp",
        fault("the request exceeds it", 400, code=400, type="exceed_context_size_error"),
        "the request is too long (400)",
    ),
    failing(
        "a prompt that OpenAI does not like",
        fault("Invalid prompt: flagged", 400, code="invalid_prompt"),
        "refused by the server (400): Invalid prompt: flagged",
    ),
    failing("401", fault("bad key", 401), raises="rejects the API key (401)"),
    failing("402", fault("Payment Required", 402), raises="wants to be paid first (402): Payment"),
    failing("403", fault("no access", 403), raises="denies this key access to teacher (403)"),
    failing(
        "403 about one prompt",
        fault("your input was flagged by moderation", 403),
        "refused by the server (403)",
    ),
    failing("404", fault("No such model", 404), raises="has no model 'teacher' (404)"),
    failing("405", Said("Method Not Allowed", 405), raises="no chat completions there (405"),
    failing("413", Said("Payload Too Large", 413), raises="(413): Payload Too Large"),
    failing("418", fault("I'm a teapot", 418), raises="(418): I'm a teapot"),
    failing(
        "422 (FastAPI)",
        Said({"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, 422),
        raises="(422): field required",
    ),
    failing(
        "no JSON schema",
        fault("response_format is not supported", 400, param="response_format"),
        raises="Set REPLY_FORMAT to 'text'",
        schema=Cities,
    ),
    failing("429", fault("slow down", 429), "server error 429 after 2 attempts", asked=2),
    failing(
        "429 for today",
        Said({"error": {"message": "daily limit"}}, 429, {"retry-after": "3600"}),
        raises="in 60 minutes (429: daily limit): run again then",
    ),
    failing(
        "no quota",
        fault("You exceeded your quota", 429, code="insufficient_quota"),
        raises="the quota of this key is used up",
    ),
    failing("500", fault("oops", 500), "server error 500 after 2 attempts (oops)", asked=2),
    failing("501", fault("not here", 501), raises="(501): not here"),
    failing(
        "502 as a web page",
        Said("<html><title>Bad Gateway</title></html>", 502),
        "server error 502 after 2 attempts (a web page: Bad Gateway)",
        asked=2,
    ),
    failing("503 as plain text", Said("upstream", 503), "(upstream)", asked=2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_server_says(case, tmp_path, capsys):
    path = tmp_path / "requests.jsonl"
    priced = {"journal": path, "prices": (1.0, 1.0, 1.0), "budget_usd": 1.0, "model": "teacher"}
    with serving(case.said) as server:
        one = client(server.url, attempts=2, **priced)
        worst = one.estimate(ask(), case.schema)
        said, reply = "", None
        try:
            (reply,) = run(one, ask(), case.schema)
        except utils.CourseError as error:
            said = str(error)
        assert len(server.asked) == case.asked
    if case.raises:
        assert case.raises in said, said
    elif case.error:
        assert reply is not None and case.error in reply.error, reply or said
    else:
        assert reply is not None and reply.error is None, reply or said
        assert case.schema is None or reply.parsed is not None
    assert reply is None or reply.text == case.text
    assert len(kept(path)) == case.kept
    if case.booked == WORST:
        assert one.spent_usd == pytest.approx(worst) and one.usage.estimated == 1
        assert "did not count the tokens of 1 replies" in capsys.readouterr().out
    else:
        assert one.spent_usd == pytest.approx(sum(case.booked) / 1e6)
    assert one.lost_usd == pytest.approx(case.lost * worst) and one.usage.lost == case.lost

    # A later run reads the same from the journal, asks nothing, and can write it to a file
    again = client("http://127.0.0.1:9/v1", **priced)
    assert again.spent_usd == pytest.approx(one.spent_usd)
    assert again.lost_usd == pytest.approx(one.lost_usd), "what may have been billed is remembered"
    if case.kept:
        (later,) = run(again, ask(), case.schema)
        assert (later.text, later.error, later.cached) == (reply.text, reply.error, True)
        rows = [later.parsed.model_dump()] if later.parsed else []
        utils.write_jsonl(tmp_path / "rows.jsonl", [{"text": later.text}, *rows])


def test_the_table_is_long_enough():
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_normaliser_gives_plain_values_whatever_comes(case):
    answer = answers.from_http(case.said.status, {}, case.said.content)
    for value in (answer.text, answer.refusal, answer.finish_reason, answer.model, answer.problem):
        assert type(value) is str
        value.encode()
    for value in (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens):
        assert value is None or (type(value) is int and value >= 0)
    assert answer.completion or answer.problem
