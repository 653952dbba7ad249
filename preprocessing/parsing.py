"""Replies in plain text, for endpoints that cannot be held to a JSON schema: the same objects, read
by their labels.

What it does: fill a pydantic model from JSON in or around prose, from labelled fields or from a
numbered list. What it does not do: guess. A label counts only at the start of a line, so that "16."
or "###" inside an answer stay where they are (the stop strings of Alpaca's own parser cut answers
there), and what cannot be read is an error.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import prompts
from llm import objects
from llm.replies import Reply

if TYPE_CHECKING:
    from pydantic import BaseModel

MAY_BE_MISSING = ("category", "input")  # a rule rejects an unknown category later, with a reason


BETWEEN = re.compile(  # "### 2." belongs to no record
    rf"\n[\s\-=#*]*(?:(?:{prompts.either(prompts.words('example'))})\s*)?\d*[.):]?[\s\-=#*]*$", re.I
)
NOTHING = re.compile(rf"^\W*({prompts.either(prompts.words('nothing'))}|)\W*$", re.I)
NUMBERED = re.compile(r"^[\s>*#\-]*\d+\s*[.)]\**\s+(.*)$")
# A fence that opens nothing, on a line of its own
CLOSING = re.compile(r"(?<=\n)```[ \t]*(?:\n|\Z)")
LABELLED = re.compile(r"^[\s>*#\-]*(?:\d+\s*[.)]|[^\n:：]{1,24}[:：][ \t]*\S)", re.M)
FAREWELL = re.compile(
    rf"\n\s*\n[\s*_>-]*(?:{prompts.either(prompts.words('farewell'))})[^\n]*\s*\Z", re.I
)
YES, NO = prompts.words("yes"), prompts.words("no")


def filled(reply: Reply, schema: type[BaseModel]) -> Reply:
    """The reply with `parsed` read from its text; where nothing can be read, with an error.
    Refusals and failures stay as they are."""
    if reply.error and reply.finish_reason != "length":
        return reply
    value, unread = _read(reply.text, schema, cut=reply.finish_reason == "length")
    error = None if value else reply.error or f"no {schema.__name__} can be read in it"
    return dataclasses.replace(reply, parsed=value, error=error, unread=unread)


def _read(text: str, schema: type[BaseModel], cut: bool) -> tuple[BaseModel | None, int]:
    """`(instance, records that could not be read)`: from JSON if there is any, else by labels or
    numbers.

    Args:
        schema: flat, or with one field that is a list of strings or of flat models.
        cut: the text ended at its length limit, so its last record is not whole and is left out.
    """
    from pydantic import ValidationError

    value, unread, _ = objects.read(text, schema, cut, MAY_BE_MISSING)
    if value is not None:
        return value, unread
    text = _bare(text)
    name, inner = objects.list_field(schema)
    if inner is str:
        entries = numbered(text, cut)
        return (schema.model_validate({name: entries}) if entries else None), int(cut)
    wanted: Any = inner or schema
    found, unread = [], int(cut)
    for record in records(text, tuple(wanted.model_fields), cut and inner is not None):
        try:
            found.append(wanted.model_validate(_typed(record, wanted)))
        except ValidationError:
            unread += 1
    if not found:
        return None, unread
    return (schema.model_validate({name: found}) if inner else found[0]), unread


def _bare(text: str) -> str:
    """A text without what stands around the answer: thoughts, a fence, a farewell."""
    text = objects.without_thoughts(text)
    first, last = text.find("```"), text.rfind("```")
    if first >= 0:
        odd = text.count("```") % 2 == 1  # else fences come in pairs, as around code in an answer
        opening = LABELLED.search(text, 0, first) is None  # nothing of the answer stands before it
        if opening != odd and CLOSING.match(text, last):
            text = text[:last]
        if opening:
            text = text[first:].partition("\n")[2]
    return FAREWELL.sub("", text)


def records(text: str, fields: tuple[str, ...], cut: bool = False) -> list[dict[str, str]]:
    """Labelled records (`field: value`, a value may go on over lines), each with all `fields`; one
    without a needed field is dropped."""
    names = {name: name for name in fields}
    for language in prompts.LANGUAGES.values():
        names |= {label: name for label, name in language.field_labels.items() if name in fields}
    number = r"(?:\d+\s*[.)]\s*)?"
    label = re.compile(
        rf"^[\s>*#\-]*{number}\**\s*({prompts.either(names)})\s*\**\s*[:：]\**[ \t]*(.*)$", re.I
    )
    found: list[dict[str, str]] = []
    current = None
    for line in text.splitlines():
        if match := label.match(line):
            current = names[match[1].lower()]
            if not found or current in found[-1] or (current == fields[0] and found[-1]):
                found.append({})
            found[-1][current] = match[2]
        elif current:
            found[-1][current] += "\n" + line
    if cut:
        found = found[:-1]
    needed = set(fields) - set(MAY_BE_MISSING)
    whole = []
    for one in found:
        if needed <= one.keys():
            whole.append({name: BETWEEN.sub("", one.get(name, "")).strip() for name in fields})
    return whole


def numbered(text: str, cut: bool = False) -> list[str]:
    """The entries of a numbered list; a line without a number goes on with the entry before it."""
    entries: list[str] = []
    for line in text.splitlines():
        if match := NUMBERED.match(line):
            entries.append(match[1].strip())
        elif entries and line.strip():
            entries[-1] += "\n" + line.strip()
    return [entry for entry in (entries[:-1] if cut else entries) if entry]


def _typed(record: dict[str, str], schema: type[BaseModel]) -> dict:
    """Values as the schema's types; a value that is none is left as text, for the schema to
    reject."""
    typed: dict = {}
    for name, text in record.items():
        word = text.strip(" .*\"'").lower()
        kind = schema.model_fields[name].annotation
        if kind is bool:
            typed[name] = word in YES if word in YES or word in NO else text
        elif kind is str:
            typed[name] = "" if name == "input" and NOTHING.match(text) else text
        else:  # a whole number, alone or as "4/5"
            found = re.fullmatch(r"(\d+)\s*(?:점|/\s*\d+)?", word)
            typed[name] = int(found[1]) if found else text
    return typed
