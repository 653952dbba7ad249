"""Reading what a judge said: a verdict or a score, or why there is none.

What it does: read JSON, with or without a schema, and the forms in which judges write plain text.
What it does not do: ask (judge.py) or guess. Source: lm-sys/FastChat, whose parser takes the first
"[[A]]" that it sees and any number for a score; here what cannot be read, or says two things, has
failed.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import prompts


class Verdict(BaseModel):
    """Explanation first, so that the verdict follows from it."""

    model_config = ConfigDict(extra="forbid")
    explanation: str
    verdict: Literal["A", "B", "tie"]


class Score(BaseModel):
    model_config = ConfigDict(extra="forbid")
    explanation: str
    score: int = Field(ge=1, le=10)


def _any(name: str) -> str:
    """A pattern for one of the words that the course knows for this, in any of its languages."""
    return f"(?:{prompts.either(prompts.words(name))})"


# "A", "Answer A", "답변 A입니다", "tie", "무승부입니다": an ending of another script may follow
CHOICE = rf"(?:{_any('answer')}\s*)?(A|B|{_any('tie')})(?:[^\W\dA-Za-z]{{1,4}})?"
POINTS = rf"(?:\s*{_any('points')})?"
NUMBER = rf"(-?\d+(?:\.\d+)?){POINTS}(?:\s*/\s*10{POINTS})?(?:[^\W\dA-Za-z]{{1,4}})?"
BEFORE = r"^\W*(?:[^\W\d_]+ ){0,2}?"  # "Final verdict", "My verdict", "최종 판정"
VERDICT_LINE = re.compile(rf"{BEFORE}{_any('verdict')}\W*[:：]\W*{CHOICE}\W*$", re.I | re.M)
SCORE_LINE = re.compile(rf"{BEFORE}{_any('score')}[^\w\n-]*[:：][^\w\n-]*{NUMBER}\W*$", re.I | re.M)
BRACKETED = re.compile(r"\[\[(A|B|C|tie)\]\]", re.I)  # FastChat's form; its C is a tie
BRACKETED_SCORE = re.compile(r"\[\[(-?\d+(?:\.\d+)?)\]\]")


def parse_verdict(text: str) -> tuple[str | None, str | None]:
    """`(verdict, error)` of a reply; exactly one of them is None.

    Read are JSON with a `verdict`, in fences or not, whatever else it holds; "Verdict: A" or "판정:
    A" on a line of its own; "[[A]]"; and a last line that is nothing but a verdict. What a
    reasoning model thinks before `</think>` is not.
    """
    said = _said(text)
    stated = _field(said, "verdict")
    if stated is not None:
        choice = re.fullmatch(rf"\W*{CHOICE}\W*", str(stated), re.I)
        found = [choice[1]] if choice else []
    else:
        found = VERDICT_LINE.findall(said) + BRACKETED.findall(said)
        last = said.strip().rpartition("\n")[2]
        alone = re.fullmatch(rf"\W*{CHOICE}\W*", last, re.I)
        found += [alone[1]] if alone and not BRACKETED.search(last) else []
    verdicts = {mark.upper() if mark.upper() in ("A", "B") else "tie" for mark in found}
    if len(verdicts) == 1:
        return verdicts.pop(), None
    if verdicts:
        return None, f"contradictory verdicts ({', '.join(sorted(verdicts))})"
    return None, "no verdict could be read"


def parse_score(text: str) -> tuple[int | None, str | None]:
    """`(score, error)` of a reply, a whole number from 1 to 10; exactly one of them is None."""
    said = _said(text)
    stated = _field(said, "score")
    if stated is not None:
        number = re.fullmatch(rf"\s*{NUMBER}\s*", str(stated))
        found = [number[1]] if number else []
    else:
        found = SCORE_LINE.findall(said) + BRACKETED_SCORE.findall(said)
    scores = {float(number) for number in found}
    if not scores:
        return None, "no score could be read"
    if len(scores) > 1:
        listed = ", ".join(f"{score:g}" for score in sorted(scores))
        return None, f"contradictory scores ({listed})"
    score = scores.pop()
    if not score.is_integer() or not 1 <= score <= 10:
        return None, f"the score {score:g} is not a whole number from 1 to 10"
    return int(score), None


def explanation(text: str) -> str:
    """Why the judge said so: the field of its JSON, else all that it wrote."""
    stated = _field(_said(text), "explanation")
    return stated if isinstance(stated, str) else text


def _said(text: str) -> str:
    """A reply without its thoughts; nothing where they never end."""
    after = text.rpartition("</think>")[2]
    return "" if "<think>" in after else after


def _field(text: str, name: str):
    """A field of the last JSON object in a text that has it; None where there is none."""
    decoder, found, start = json.JSONDecoder(strict=False), None, text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        known = {str(key).lower(): entry for key, entry in value.items()}
        found = known.get(name, found)
        start = text.find("{", end)
    return found
