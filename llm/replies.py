"""What is asked and what comes back, as data: a `Request`, a `Reply`, and the journal's record of
an answer.

What it does: make a request once, with its name and its worst case; turn an answer into a journal
record, and a record into a `Reply` with the schema checked. What it does not do: send or pay for
anything. Importing it needs the standard library only.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm.answers import Answer

if TYPE_CHECKING:
    from pydantic import BaseModel

DEFAULT_TOKENS = 4096  # an answer's limit where the request sets none


@dataclass(frozen=True)
class Request:
    """One request, made once: what is sent, its name in the journal, what it may need, and how its
    answer is read."""

    key: str  # content hash
    body: dict
    prompt_tokens: int  # at most
    answer_tokens: int  # at most
    worst_usd: float  # at the full price, not a batch's
    schema: type[BaseModel] | None = None
    parse: Callable[[Reply], Reply] | None = None  # of a text, where no schema is sent

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def read(self, entry: dict) -> Reply:
        """The reply in a journal record, with the schema checked now, so that a stored bad answer
        stays a bad answer."""
        stored = entry["reply"]
        reply = Reply(
            text=stored["content"] or "",
            finish_reason=stored["finish_reason"],
            usage=entry["usage"],
            cost_usd=entry["cost_usd"],
            key=entry["key"],
        )
        cut = _cut(entry)
        if stored.get("refusal"):
            reply.error = f"refused: {stored['refusal'][:100]}"
        elif not reply.text.strip():
            reason = stored.get("problem") or cut or f"finish_reason is {reply.finish_reason}"
            reply.error = f"an empty reply ({reason})"
        elif self.schema is None:
            reply.error = cut or None
        else:
            from llm import objects

            reply.parsed, reply.unread, problem = objects.read(reply.text, self.schema, bool(cut))
            if reply.parsed is None:
                reply.error = f"{cut + ', ' if cut else ''}does not match the schema{problem}"
        return self.parse(reply) if self.parse else reply


@dataclass
class Reply:
    """The answer to one request, in the order asked."""

    text: str = ""
    parsed: Any = None  # an instance of the schema; None without a schema or with an error
    # Why there is no usable answer: refusal, truncation, schema mismatch, server failure
    error: str | None = None
    finish_reason: str | None = None
    usage: dict = field(default_factory=dict)
    cost_usd: float = 0.0
    cached: bool = False  # came from the journal and cost nothing now
    key: str = ""  # content hash of the request; its name in the journal
    unread: int = 0  # records in the text that are not whole, or do not match the schema


@dataclass
class Usage:
    """What a client has asked and paid since it was made. Journal hits are counted in `cached`
    only."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    # Answers that never arrived or could not be read: they may have been billed, nobody knows how
    # much
    lost: int = 0
    estimated: int = 0  # replies whose server did not count, booked at their worst case

    def add(self, entry: dict) -> None:
        self.requests += 1
        self.prompt_tokens += entry["usage"]["prompt_tokens"]
        self.completion_tokens += entry["usage"]["completion_tokens"]
        self.cost_usd += entry["cost_usd"]
        self.estimated += entry.get("estimated", False)


# --- the journal's records ------------------------------------------------------------------------


def tokens_used(answer: Answer, request: Request, priced: bool) -> dict[str, int]:
    """The three token counts that are billed. What the server does not say is the worst case where
    it costs something, else 0."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    if prompt is None:
        prompt = request.prompt_tokens if priced else 0
    if completion is None:
        completion = request.answer_tokens if priced else 0
    cached = answer.cached_tokens
    return {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion}


def record(request: Request, answer: Answer, tokens: dict, cost_usd: float, **more) -> dict:
    """The journal's record of an answered request, usable or not."""
    said = {
        "content": answer.text,
        "refusal": answer.refusal or None,
        "finish_reason": answer.finish_reason or None,
    }
    if answer.problem:
        said["problem"] = answer.problem
    estimated = cost_usd > 0 and None in (answer.prompt_tokens, answer.completion_tokens)
    return {
        "key": request.key,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint or None,  # where a stand-in says that it is one
        "request": request.body,
        "reply": said,
        "usage": tokens,
        "cost_usd": cost_usd,
        "worst_usd": request.worst_usd,
        **({"estimated": True} if estimated else {}),
        "time": now(),
    } | more


def loss(request: Request, lost_usd: float) -> dict:
    """The journal's record of a request without an answer (yet), and of what it may have cost all
    the same."""
    return {"key": request.key, "lost_usd": lost_usd, "time": now()}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _cut(entry: dict) -> str:
    """What cut a reply off, "" where nothing did."""
    if entry["reply"]["finish_reason"] != "length":
        return ""
    used = entry["usage"]["completion_tokens"]
    if 0 < used < most_tokens(entry["request"])[1]:  # llama.cpp says "length" for both
        return "cut off at the end of the model's context"
    return "cut off by max_completion_tokens"


# --- schemas and sizes ----------------------------------------------------------------------------


@functools.cache
def json_schema(schema: type[BaseModel]) -> dict:
    """What a schema is known by in the journal's keys."""
    return schema.model_json_schema()


@functools.cache
def response_format(schema: type[BaseModel]) -> dict:
    """The `response_format` that holds an OpenAI-compatible server to a pydantic model: where a
    field says so (`WithJsonSchema(mode="serialization")`), to less than the model accepts."""
    sent = schema.model_json_schema(mode="serialization")
    named = {"name": schema.__name__, "strict": True, "schema": sent}
    return {"type": "json_schema", "json_schema": named}


def prompt_tokens(messages: list[dict]) -> int:
    """An upper estimate of prompt tokens without a tokenizer: a third of the UTF-8 bytes, for
    Hangul (3 bytes, about one token a syllable) as for English (about four bytes a token), and a
    little for each message's frame."""
    total = 0
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False)
        total += math.ceil(len(content.encode("utf-8", "replace")) / 3) + 8
    return total


def most_tokens(body: dict) -> tuple[int, int]:
    """`(prompt, answer)`: the most tokens that a request body may need. A schema is part of the
    prompt."""
    schema = json.dumps(body["response_format"]) if "response_format" in body else ""
    prompt = prompt_tokens(body["messages"]) + math.ceil(len(schema) / 3)
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_TOKENS
    return prompt, limit * (body.get("n") or 1)
