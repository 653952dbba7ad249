"""What a server said, as one plain record: the only place that reads a server's bytes.

What it does: turn any HTTP answer, or any line of a batch's output, into an `Answer` of texts and
whole numbers. It never raises, whatever the bytes are, so that a paid reply can be booked and kept
before anybody interprets it. What it does not do: decide what becomes of the request (endpoint.py),
or read the text (objects.py). It needs the standard library only.

Servers differ in all of this: contents that are lists of parts (Mistral), errors with status 200
(OpenRouter, LM Studio), streams nobody asked for, usage that is absent, null, partial or a string,
reasoning tokens beside `completion_tokens`, half a surrogate pair in a text.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHOWN = 300  # characters of what a server says about an error
# The types of content parts that are the answer, and not a thought or a refusal
ANSWERING = ("text", "output_text", "")
DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Answer:
    """One answer to one request, understood or not.

    A completion has a text (perhaps empty) and is billed; anything else has a `problem`.
    """

    status: int  # of HTTP; where a body with status 200 names another one, that
    completion: bool = False
    text: str = ""
    refusal: str = ""
    finish_reason: str = ""
    model: str = ""  # that answered, as it calls itself
    fingerprint: str = ""
    prompt_tokens: int | None = None  # None: the server does not say
    cached_tokens: int = 0  # part of the prompt's
    completion_tokens: int | None = None  # reasoning included
    problem: str = ""  # in the server's own words where it has any
    code: str = ""  # the error's code, else its type
    parameter: str = ""  # that an error is about
    may_be_billed: bool = False  # though it is no completion: nobody knows how much
    headers: Mapping[str, str] = field(default_factory=dict)


def from_http(status: int, headers: Mapping[str, str], content: bytes) -> Answer:
    """The answer in a body, whatever it holds."""
    text = content.decode("utf-8-sig", "replace").strip()
    unread: dict[str, Any] = {"status": status, "headers": headers}
    if not text:
        return Answer(problem="an empty body", may_be_billed=status == 200, **unread)
    if text.startswith("<"):
        return Answer(problem=f"a web page: {_title(text)}", code="html", **unread)
    try:
        streams = text.startswith(("data:", "event:", ":"))
        value = _streamed(text) if streams else json_value(text)[0]
    except ValueError as error:
        if status != 200:
            return Answer(problem=text[:SHOWN], **unread)
        said = f"malformed JSON: {str(error)[:80]}"
        return Answer(problem=said, may_be_billed=True, **unread)
    return _understood(status, headers, value)


def from_batch(line: object) -> tuple[str, Answer]:
    """`(custom_id, answer)` of a line of a batch's output or error file, as parsed from JSON; the
    name is empty where there is none."""
    record = _object(line)
    response = _object(record.get("response"))
    # A line is billed where a model answered it: a status code is there, and it is 200
    status = _count(response.get("status_code")) or (200 if response.get("body") else 500)
    body = response.get("body") or {"error": record.get("error") or "no answer in this line"}
    return _text(record.get("custom_id")), _understood(status, {}, body)


def plain(text: str) -> str:
    """The text with each half of a surrogate pair replaced: it could not be written to a file."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def json_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start` and where it ends, as lenient as can be without
    guessing: control characters in strings, and whatever follows the value, do no harm.

    Raises:
        ValueError: there is none.
    """
    try:
        return DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None


# --- a body that is JSON --------------------------------------------------------------------------


def _understood(status: int, headers: Mapping[str, str], value: object) -> Answer:
    body = _object(_first(value))
    choices = body.get("choices")
    choice = _object(_first(choices))
    message = _object(choice.get("message")) or _object(choice.get("delta"))
    tokens = _tokens(_object(body.get("usage")))
    said = choice.get("error") or body.get("error") or body.get("detail") or body.get("errors")
    fault = _fault(said or (body if status != 200 or not choices else None))
    text, refusal = _content(message, choice), _refusal(message)
    billed = bool(tokens["prompt_tokens"] or tokens["completion_tokens"])
    # A model has answered, be it nothing at all, unless an error says that it has not
    if status == 200 and (text or refusal or billed or ("choices" in body and not said)):
        if text and tokens["completion_tokens"] == 0:  # a server that does not count writes zeros
            tokens["completion_tokens"] = None
        return Answer(
            status=200,
            completion=True,
            text=text,
            refusal=refusal,
            finish_reason=_text(choice.get("finish_reason")),
            model=_text(body.get("model")),
            fingerprint=_text(body.get("system_fingerprint")),
            problem="" if text else fault["problem"],
            headers=headers,
            **tokens,
        )
    number = fault.pop("number")
    # OpenRouter's way: all is well, says HTTP, and the status stands in the body
    named = status == 200 and number is not None and 400 <= number < 600
    fault["problem"] = fault["problem"] or "no chat completion in it"
    return Answer(
        status=number if named else status,
        may_be_billed=status == 200 and not said,  # an error costs nothing
        headers=headers,
        **fault,
    )


def _content(message: dict, choice: dict) -> str:
    """The text of a message in any of its forms, "" where it has none."""
    content = message.get("content")
    if content is None or content in ("", []):
        call = _object(_first(message.get("tool_calls")))
        content = _object(call.get("function")).get("arguments") or choice.get("text")
    if isinstance(content, list) and all(isinstance(part, str | dict) for part in content):
        parts = [{"text": part} if isinstance(part, str) else part for part in content]
        answering = [part for part in parts if _text(part.get("type")) in ANSWERING]
        return "".join(_text(part.get("text")) for part in answering)
    if isinstance(content, dict | list):  # JSON that a server has read already
        return plain(json.dumps(content, ensure_ascii=False))
    return _text(content)


def _refusal(message: dict) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    said = [_text(_object(part).get("refusal")) for part in parts]
    return _text(message.get("refusal")) or "".join(said)


def _tokens(usage: dict) -> dict[str, Any]:
    """The three counts that are billed, of which a server may say nothing (None), too little, or
    more than can be."""
    prompt = _count(usage.get("prompt_tokens", usage.get("input_tokens"))) or None
    completion = _count(usage.get("completion_tokens", usage.get("output_tokens")))
    total = _count(usage.get("total_tokens"))
    details = _object(usage.get("completion_tokens_details"))
    reasoning = _count(details.get("reasoning_tokens", usage.get("reasoning_tokens"))) or 0
    cached = _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")) or 0
    if prompt is None and total is not None and completion is not None and total > completion:
        prompt = total - completion
    if prompt is not None and total is not None and total > prompt:
        completion = max(completion or 0, total - prompt)  # what is billed beyond the prompt
    if completion is not None and reasoning > completion:  # then it was not counted in it
        completion += reasoning
    return {
        "prompt_tokens": prompt,
        "cached_tokens": min(cached, prompt or 0),
        "completion_tokens": completion,
    }


def _fault(said: object) -> dict[str, Any]:
    """An error in any of its forms, as `problem`, `code`, `parameter` and `number` (a status)."""
    said = _first(said)
    if isinstance(said, dict):
        said = said.get("error") or said
    if not isinstance(said, dict):
        return {"problem": _text(said)[:SHOWN], "code": "", "parameter": "", "number": None}
    sentence = _text(said.get("message") or said.get("msg") or said.get("detail"))
    if not sentence and said:
        sentence = plain(json.dumps(said, ensure_ascii=False))
    if raw := _text(_object(said.get("metadata")).get("raw")):
        sentence += f" ({raw})"  # OpenRouter passes on what the model's own server said
    place = said.get("param") or said.get("loc")
    if isinstance(place, list):
        place = place[-1] if place else ""
    number = _count(said.get("code"))
    code = said.get("type") if number is not None else said.get("code") or said.get("type")
    return {
        "problem": sentence[:SHOWN],
        "code": _text(code),
        "parameter": _text(place),
        "number": number,
    }


def _streamed(text: str) -> dict:
    """The completion that a stream of events adds up to."""
    whole: dict = {"choices": [{"message": {"content": ""}}]}
    choice = whole["choices"][0]
    found = False
    for line in text.splitlines():
        if not line.startswith("data:") or line[5:].strip() in ("", "[DONE]"):
            continue
        event = _object(json_value(line[5:].strip())[0])
        if event.get("error"):
            return event
        whole |= {key: value for key, value in event.items() if key != "choices" and value}
        piece = _object(_first(event.get("choices")))
        found = found or bool(piece)
        said = _object(piece.get("delta")) or _object(piece.get("message"))
        choice["message"]["content"] += _content(said, piece)
        choice["finish_reason"] = piece.get("finish_reason") or choice.get("finish_reason")
    return whole if found else {key: value for key, value in whole.items() if key != "choices"}


# --- plain values ---------------------------------------------------------------------------------


def _first(value: Any) -> Any:
    """The first of a list, None of an empty one; anything else as it is."""
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _object(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    if value is None or isinstance(value, dict | list):
        return ""
    return plain(str(value))


def _count(value: object) -> int | None:
    """A number of tokens, rounded up; None for what is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return math.ceil(number) if 0 <= number < 1e12 else None


def _title(page: str) -> str:
    """What a web page calls itself."""
    found = re.search(r"<title[^>]*>(.*?)</title>", page, re.I | re.S)
    words = found[1] if found else re.sub(r"<[^>]*>", " ", page)
    return html.unescape(" ".join(words.split()))[:SHOWN]
