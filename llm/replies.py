"""What is asked and what comes back, as data: a `Reply`, its record in the journal, and how many
tokens a request may need.

What it does: turn a completion into a journal record and a record into a `Reply`, with the schema
checked. What it does not do: send or pay for anything. Importing it needs the standard library
only.
"""

from __future__ import annotations

import functools
import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

DEFAULT_TOKENS = 4096  # an answer's limit where the request sets none


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


@dataclass
class Usage:
    """What a client has asked and paid since it was made. Journal hits are counted in `cached`
    only."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    # answers that never arrived or could not be read: they may have been billed, nobody knows how
    # much
    lost: int = 0

    def add(self, tokens: dict, cost_usd: float) -> None:
        self.requests += 1
        self.prompt_tokens += tokens["prompt_tokens"]
        self.completion_tokens += tokens["completion_tokens"]
        self.cost_usd += cost_usd


def tokens_used(completion) -> dict:
    """The three token counts that are billed, 0 where the server does not count."""
    usage = completion.usage
    return {
        "prompt_tokens": usage.prompt_tokens if usage else 0,
        "cached_tokens": getattr(
            getattr(usage, "prompt_tokens_details", None), "cached_tokens", None
        )
        or 0,
        "completion_tokens": usage.completion_tokens if usage else 0,
    }


def record(key: str, body: dict, completion, cost_usd: float, **more) -> dict:
    """The journal's record of an answered request, usable or not."""
    choice = completion.choices[0]
    return {
        "key": key,
        "model": completion.model,
        "system_fingerprint": completion.system_fingerprint,  # where a stand-in says that it is one
        "request": body,
        "reply": {
            "content": choice.message.content or "",
            "refusal": choice.message.refusal,
            "finish_reason": choice.finish_reason,
        },
        "usage": tokens_used(completion),
        "cost_usd": cost_usd,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    } | more


def read(entry: dict, schema: type[BaseModel] | None) -> Reply:
    """A journal record as a Reply, with the schema checked now, so that a stored bad answer stays a
    bad answer."""
    from pydantic import ValidationError

    stored = entry["reply"]
    reply = Reply(
        text=stored["content"],
        finish_reason=stored["finish_reason"],
        usage=entry["usage"],
        cost_usd=entry["cost_usd"],
        key=entry["key"],
    )
    if stored.get("refusal"):
        reply.error = f"refused: {stored['refusal'][:100]}"
    elif schema is not None:
        try:
            reply.parsed = schema.model_validate_json(reply.text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            cut = "cut off by max_completion_tokens, " if reply.finish_reason == "length" else ""
            reply.error = (
                f"{cut}does not match the schema{' at ' + where if where else ''}: "
                f"{problem['msg'][:100]}"
            )
    elif reply.finish_reason == "length":
        reply.error = "cut off by max_completion_tokens"
    return reply


@functools.cache
def json_schema(schema: type[BaseModel]) -> dict:
    return schema.model_json_schema()


def response_format(schema: type[BaseModel]) -> dict:
    """The `response_format` that asks an OpenAI-compatible server to follow a pydantic model
    strictly."""
    return {
        "type": "json_schema",
        "json_schema": {"name": schema.__name__, "strict": True, "schema": json_schema(schema)},
    }


def prompt_tokens(messages: list[dict]) -> int:
    """An upper estimate of prompt tokens without a tokenizer: a third of the UTF-8 bytes, for
    Hangul (3 bytes, about one token a syllable) as for English (about four bytes a token), and a
    little for each message's frame."""
    return sum(math.ceil(len(message["content"].encode()) / 3) + 8 for message in messages)


def most_tokens(body: dict) -> tuple[int, int]:
    """`(prompt, answer)`: the most tokens that a request body may need. A schema is part of the
    prompt."""
    schema = json.dumps(body["response_format"]) if "response_format" in body else ""
    prompt = prompt_tokens(body["messages"]) + math.ceil(len(schema) / 3)
    return prompt, body.get("max_completion_tokens", DEFAULT_TOKENS) * (body.get("n") or 1)
