"""Objects of a pydantic schema from a text that should be JSON, and often is only nearly so.

What it does: read JSON as it stands; else find it behind thoughts, in fences and between chatter,
as one object, an array or JSON Lines, and take it record by record, so that one bad record, or a
text cut off in the twentieth, costs that record only. What it does not do: guess. A record counts
if it is closed and has the fields of the schema; json_repair mends what is inside it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args, get_origin

from llm.answers import json_value, plain

if TYPE_CHECKING:
    from pydantic import BaseModel

THOUGHTS = re.compile(r"^\s*(?:[<\[](think|thinking|thought|reasoning)[>\]])", re.I)
THOUGHT = re.compile(r"[<\[]/(?:think|thinking|thought|reasoning)[>\]]", re.I)
# How an object begins: its first name, and the bracket after it where its value is no text
OPENING = re.compile(r"\{\s*[\"'“]?(\w+)[\"'”]?\s*:\s*([\[{]?)")
FOLLOWING = re.compile(r"[\s,]*(?=\")")  # the next string of an array


def without_thoughts(text: str) -> str:
    """A text without what its model thought before it, which may be all of it."""
    end = THOUGHT.search(text)
    if THOUGHTS.match(text):
        return text[end.end() :] if end else ""
    # Some chat templates open the thoughts in the prompt, so that only their end is here
    return text[end.end() :] if end and "{" not in text[: end.start()] else text


def read(
    text: str, schema: type[BaseModel], cut: bool, optional: tuple[str, ...] = ()
) -> tuple[BaseModel | None, int, str]:
    """`(instance, records that could not be read, problem)`: strictly, else record by record as far
    as they are whole; None where there is nothing to read, and then why.

    Args:
        schema: flat, or with one field that is a list of strings or of flat models.
        cut: the text ended at a limit, so nothing is mended in its last record.
        optional: fields that may be missing or null; they are then "".
    """
    try:
        return schema.model_validate_json(text), 0, ""
    except ValueError as error:
        problem = _sentence(error)
    value, unread = _leniently(without_thoughts(text), schema, cut, optional)
    return value, unread, "" if value else problem


def _sentence(error: Any) -> str:
    """Where a text does not match its schema, and why, of pydantic's error."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{' at ' + where if where else ''}: {problem['msg'][:100]}"


def _leniently(
    text: str, schema: type[BaseModel], cut: bool, optional: tuple[str, ...]
) -> tuple[BaseModel | None, int]:
    name, inner = list_field(schema)
    if inner is str:
        return _strings(text, schema, name)
    wanted = inner or schema
    found, unread = [], 0
    for value in _records(text, wanted, cut):
        record = None if value is None else _record(value, wanted, optional)
        unread += record is None
        if record is not None:
            found.append(record)
    if not found:
        return None, unread
    if inner:
        return schema.model_validate({name: found}), unread
    # One is wanted: two that say different things are not an answer
    same = all(one == found[0] for one in found)
    return (found[0], unread) if same else (None, unread)


def list_field(schema: type[BaseModel]) -> tuple[str, type | None]:
    """`(name, type of its elements)` of a schema's only field where that is a list, else
    `("", None)`."""
    fields = list(schema.model_fields.items())
    if len(fields) == 1 and get_origin(fields[0][1].annotation) is list:
        return fields[0][0], get_args(fields[0][1].annotation)[0]
    return "", None


def _records(text: str, wanted: type[BaseModel], cut: bool) -> Iterator[dict | None]:
    """The objects in a text that have any of the fields of `wanted`: each as a dictionary, or None
    where one begins that cannot be read."""
    place = 0
    while (start := OPENING.search(text, place)) is not None:
        known = start[1].lower() in wanted.model_fields
        if start[2] and not known:  # an object around the records
            place = start.start(2)
            continue
        value, place = _value(text, start.start())
        if value is None:
            following = OPENING.search(text, start.end())
            place = following.start() if following else len(text)
            whole = following or not cut
            value = _repaired(text[start.start() : place]) if whole else None
        names = {str(name).lower() for name in value} if isinstance(value, dict) else set()
        if known or names & wanted.model_fields.keys():
            yield value if names else None


def _value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start` and where it ends; None where there is none."""
    try:
        return json_value(text, start)
    except ValueError:
        return None, start


def _repaired(text: str) -> object:
    """A nearly correct object as json_repair reads it; None where it is not closed, since what it
    lacks would be a guess."""
    import json_repair

    end = text.rfind("}")
    if end < 0:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json_repair.loads(text[: end + 1])
    return None


def _record(value: dict, wanted: type[BaseModel], optional: tuple[str, ...]) -> BaseModel | None:
    """An object as an instance of `wanted`; fields that it should not have are left out."""
    from pydantic import ValidationError

    lower = {str(key).lower(): content for key, content in value.items()}
    fields = {}
    for name in wanted.model_fields:
        content = lower.get(name)
        if content is None and name in optional:
            content = ""
        fields[name] = plain(content) if isinstance(content, str) else content
    with contextlib.suppress(ValidationError):
        return wanted.model_validate(fields)
    return None


def _strings(text: str, schema: type[BaseModel], name: str) -> tuple[BaseModel | None, int]:
    """The strings of the first array of strings in a text, those that are whole."""
    # An array in the middle of a line is part of something else
    start = re.search(rf"(?:^\s*|\"{name}\"\s*:\s*)\[\s*(?=\")", text, re.M)
    if start is None:
        return None, 0
    found, unread, place = [], 0, start.end()
    while (match := FOLLOWING.match(text, place)) is not None:
        value, place = _value(text, match.end())
        if value is None:  # the text was cut off in this one
            unread = 1
            break
        found.append(plain(value).strip())
    found = [one for one in found if one]
    return (schema.model_validate({name: found}) if found else None), unread
