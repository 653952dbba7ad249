"""Asking a judge about two answers, or about one: protocols, replies, records. What
`evaluation.ipynb` calls.

In here: pairwise verdicts in both orders and single scores, with a reference where there is one, in
one turn or two, by JSON schema or
as plain text. Not in here: whether the judge may be believed (calibration.py), what the verdicts
add up to (outcomes.py, stats.py), and the answers themselves (training/generation.py).

Source: LLM-as-a-judge (arXiv 2306.05685) and its code (lm-sys/FastChat). Its parser takes the first
"[[A]]" it sees and any number for a score; the one here never guesses: what cannot be read, or says
two things, has failed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import prompts
import settings
import utils
from evaluation.outcomes import outcome, side
from llm.client import Client
from llm.replies import Reply
from preprocessing import contamination, rows
from utils import CourseError

Answer = str | Sequence[str]  # one text, or one a turn


class Verdict(BaseModel):
    """Explanation first, so that the verdict follows from it."""

    model_config = ConfigDict(extra="forbid")
    explanation: str
    verdict: Literal["A", "B", "tie"]


class Score(BaseModel):
    model_config = ConfigDict(extra="forbid")
    explanation: str
    score: int = Field(ge=1, le=10)


# --- requests -------------------------------------------------------------------------------------


def pair_request(
    item: dict, answer_a: Answer, answer_b: Answer, turn: int = 1, reply_format: str = "schema"
) -> dict:
    """The chat request that compares two answers.

    Args:
        item: `language`, `prompt` and `reference` ("" where there is none); for two turns also
            `follow_up` and `follow_up_reference`.
        turn: 1, or 2 for the answers to the follow-up, shown with the whole conversation.
        reply_format: "schema", or "text" for endpoints that cannot be held to a JSON schema.
    """
    return _request(item, {"a": turns(answer_a), "b": turns(answer_b)}, "pair", turn, reply_format)


def single_request(item: dict, answer: Answer, turn: int = 1, reply_format: str = "schema") -> dict:
    """The chat request that scores one answer from 1 to 10; arguments as for `pair_request`."""
    return _request(item, {"": turns(answer)}, "single", turn, reply_format)


def turns(answer: Answer) -> list[str]:
    """An answer as a list of texts, one a turn."""
    return [answer] if isinstance(answer, str) else list(answer)


def _request(
    item: dict, answers: dict[str, list[str]], task: str, turn: int, reply_format: str
) -> dict:
    language, suffix = item["language"], {key: f"_{key}" if key else "" for key in answers}
    texts = {"prompt": item["prompt"]}
    if turn == 1:
        texts |= {"reference": item["reference"]}
    texts |= {f"answer{suffix[key]}": said[0] for key, said in answers.items()}
    if turn == 2:
        texts |= {
            "follow_up": item["follow_up"],
            "follow_up_reference": item.get("follow_up_reference", ""),
        }
        texts |= {f"second{suffix[key]}": said[1] for key, said in answers.items()}
    guided = bool(texts.get("reference") or texts.get("follow_up_reference"))
    known = prompts.LANGUAGES[language]
    heading, ask = known.judge_headings, known.judge_task
    sections = [
        f"[{heading[name]}]\n{_quoted(text)}"
        for name, text in texts.items()
        if text or "reference" not in name
    ]
    closing = [
        ask[task],
        ask["reference"] if guided else "",
        ask["follow_up"] if turn == 2 else "",
        ask[f"{task}_{reply_format}"],
    ]
    user = "\n\n".join(
        [*sections, f"[{heading['end']}]\n" + "\n".join(line for line in closing if line)]
    )
    system = known.judge_system if task == "pair" else known.judge_single_system
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"messages": messages, "temperature": 0.0, "max_completion_tokens": 400}


HEADING = re.compile(
    r"^(?=\[(?:"
    + "|".join(
        re.escape(heading)
        for language in prompts.LANGUAGES.values()
        for heading in language.judge_headings.values()
    )
    + r")\])",
    re.M,
)


def _quoted(text: str) -> str:
    """A text that can open no section of its own: a line that looks like a heading is quoted."""
    return HEADING.sub("> ", text)


# --- replies --------------------------------------------------------------------------------------

TIES = {"c", *prompts.words("tie")}  # C is a tie in FastChat's form
BEFORE = r"^\W*"  # on a line of its own, in bold or as a heading perhaps
COLON = r"[^\w\n-]*[:：][^\w\n-]*"
POINTS = f"(?:\\s*(?:{prompts.either(prompts.words('points'))}))?"

VERDICT_MARK = re.compile(
    r"""\[\[(A|B|C|tie)\]\]"""  # FastChat's form
    r"""|"verdict"\s*:\s*"(A|B|tie)\""""  # JSON without a schema
    # "Verdict: A", "최종 판정: 답변A", and "무승부입니다." alone
    rf"""|{BEFORE}(?:{prompts.either(prompts.words("verdict"))}){COLON}"""
    rf"""(?:(?:{prompts.either(prompts.words("answer"))})\s*)?"""
    rf"""(A|B|{prompts.either(prompts.words("tie"))})\W*$"""
    rf"""|{BEFORE}({prompts.either(prompts.words("tie"))})\W*$""",
    re.IGNORECASE | re.MULTILINE,
)
SCORE_MARK = re.compile(
    r"""\[\[(-?\d+(?:\.\d+)?)\]\]|"score"\s*:\s*(-?\d+(?:\.\d+)?)\s*[,}]"""
    # "Rating: 7/10", "점수: 8/10점"
    rf"""|{BEFORE}(?:{prompts.either(prompts.words("score"))}){COLON}"""
    rf"""(-?\d+(?:\.\d+)?){POINTS}(?:\s*/\s*10{POINTS})?\W*$""",
    re.IGNORECASE | re.MULTILINE,
)


def parse_verdict(text: str) -> tuple[str | None, str | None]:
    """`(verdict, error)` of a plain-text reply; exactly one of them is None.

    Read are "Verdict: A" or "판정: A" on a line of its own, "[[A]]", and JSON; what a reasoning
    model thinks before `</think>` is not.
    """
    found = {"tie" if mark.lower() in TIES else mark.upper() for mark in _marks(VERDICT_MARK, text)}
    if len(found) == 1:
        return found.pop(), None
    return (
        None,
        f"contradictory verdicts ({', '.join(sorted(found))})"
        if found
        else "no verdict could be read",
    )


def parse_score(text: str) -> tuple[int | None, str | None]:
    """`(score, error)` of a plain-text reply, a whole number from 1 to 10; exactly one of them is
    None."""
    found = set(map(float, _marks(SCORE_MARK, text)))
    if len(found) != 1:
        return (
            None,
            f"contradictory scores ({', '.join(f'{s:g}' for s in sorted(found))})"
            if found
            else "no score could be read",
        )
    score = found.pop()
    if not score.is_integer() or not 1 <= score <= 10:
        return None, f"the score {score:g} is not a whole number from 1 to 10"
    return int(score), None


def _marks(pattern: re.Pattern, text: str) -> list[str]:
    return [
        next(filter(None, match.groups()))
        for match in pattern.finditer(text.rpartition("</think>")[2])
    ]


# --- the judge ------------------------------------------------------------------------------------


@dataclass
class Judge:
    """A chat model that judges.

    Args:
        client: its journal is keyed by the whole request, that is, by prompt, answers, order, judge
            and the wording of the judge's prompt: nothing is asked twice, a run that was cut off
            goes on, and analysing again costs nothing.
        name: how the judge is named in records and figures; a stand-in says there that it is one.
            Default: the model's name.
        reply_format: "schema" or "text".
    """

    client: Client
    name: str = ""
    reply_format: str = "schema"

    def __post_init__(self) -> None:
        self.name = self.name or self.client.model

    def estimate(
        self, items: Sequence[dict], tuned: Sequence[Answer], base: Sequence[Answer] | None = None
    ) -> float:
        """Dollars that judging these pairs (or, without `base`, scoring these answers) costs at
        worst, beyond what the journal has."""
        if base is None:
            return self.client.estimate(
                [request for *_, request in self._singles(items, tuned)], self._schema(Score)
            )
        return self.client.estimate(
            [request for *_, request in self._pairs(items, tuned, base)], self._schema(Verdict)
        )

    async def compare(
        self, items: Sequence[dict], tuned: Sequence[Answer], base: Sequence[Answer]
    ) -> list[dict]:
        """Judge every pair twice, with the answers swapped the second time; two-turn prompts twice
        in each turn.

        Returns:
            One record a prompt: `id, language, category` (or `kind`), `judge`, `outcome`, `value`
            (mean over orders and turns, 1 for tuned, 0 for base, .5 for a tie; None if a verdict
            failed) and `orders`, the verdicts in the order asked, each with `turn`, `tuned_is` ("A"
            or "B"), `verdict` ("A", "B", "tie" or None), `error` and `explanation`.
        """
        plan = self._pairs(items, tuned, base)
        replies = await self._ask([request for *_, request in plan], Verdict)
        orders: list[list[dict]] = [[] for _ in items]
        for (i, turn, tuned_is, _), (verdict, error, explanation) in zip(
            plan, replies, strict=True
        ):
            orders[i].append(
                {
                    "turn": turn,
                    "tuned_is": tuned_is,
                    "verdict": verdict,
                    "error": error,
                    "explanation": explanation,
                }
            )
        return [self._record(item, said) for item, said in zip(items, orders, strict=True)]

    async def score_both(
        self,
        records: Sequence[dict],
        items: Sequence[dict],
        tuned: Sequence[Answer],
        base: Sequence[Answer],
    ) -> list[dict]:
        """The records of `compare` with the single scores of both models: `scores`, means over the
        turns, None if one failed."""
        scored = {"base": await self.score(items, base), "tuned": await self.score(items, tuned)}
        return [
            record | {"scores": {name: scored[name][i]["score"] for name in scored}}
            for i, record in enumerate(records)
        ]

    async def score(self, items: Sequence[dict], answers: Sequence[Answer]) -> list[dict]:
        """Score every answer alone, from 1 to 10: records of `id`, `score` (mean over turns; None
        if one failed) and `turns`."""
        plan = self._singles(items, answers)
        replies = await self._ask([request for *_, request in plan], Score)
        given: list[list[dict]] = [[] for _ in items]
        for (i, turn, _), (score, error, explanation) in zip(plan, replies, strict=True):
            given[i].append(
                {"turn": turn, "score": score, "error": error, "explanation": explanation}
            )
        records = []
        for item, said in zip(items, given, strict=True):
            scores = [turn["score"] for turn in said]
            records.append(
                {
                    "id": item["id"],
                    "score": None if None in scores else sum(scores) / len(scores),
                    "turns": said,
                }
            )
        return records

    def _pairs(self, items, tuned, base) -> list[tuple[int, int, str, dict]]:
        """`(place of the item, turn, where the tuned answer stands, request)` of every verdict."""
        plan = []
        for i, (item, ours, theirs) in enumerate(zip(items, tuned, base, strict=True)):
            for turn in _turns(item):
                first = pair_request(item, ours, theirs, turn, self.reply_format)
                swapped = pair_request(item, theirs, ours, turn, self.reply_format)
                plan += [(i, turn, "A", first), (i, turn, "B", swapped)]
        return plan

    def _singles(self, items, answers) -> list[tuple[int, int, dict]]:
        """`(place of the item, turn, request)` of every score."""
        plan = []
        for i, (item, answer) in enumerate(zip(items, answers, strict=True)):
            for turn in _turns(item):
                plan.append((i, turn, single_request(item, answer, turn, self.reply_format)))
        return plan

    def _schema(self, schema: type[BaseModel]) -> type[BaseModel] | None:
        return schema if self.reply_format == "schema" else None

    async def _ask(self, requests: list[dict], schema: type[BaseModel]) -> list[tuple]:
        """`(verdict or score, error, explanation)` of every reply."""
        return [
            self._read(reply, schema)
            for reply in await self.client.complete(requests, self._schema(schema))
        ]

    def _read(self, reply: Reply, schema: type[BaseModel]) -> tuple:
        field, parse = ("verdict", parse_verdict) if schema is Verdict else ("score", parse_score)
        if reply.error:
            return None, reply.error, reply.text
        if self.reply_format == "schema":
            return getattr(reply.parsed, field), None, reply.parsed.explanation
        return *parse(reply.text), reply.text

    def _record(self, item: dict, orders: list[dict]) -> dict:
        first, second = _mean_side(orders, "A"), _mean_side(orders, "B")
        value = None if first is None or second is None else (first + second) / 2
        kept = {key: item[key] for key in ("id", "language", "category", "kind") if key in item}
        return kept | {
            "outcome": str(outcome(first, second)),
            "value": value,
            "judge": self.name,
            "orders": orders,
        }


def _turns(item: dict) -> tuple[int, ...]:
    return (1, 2) if item.get("follow_up") else (1,)


def _mean_side(orders: list[dict], tuned_is: str) -> float | None:
    """Mean over the turns of `outcomes.side` where the tuned answer stands there; None where a
    verdict failed."""
    total, turns = 0.0, 0
    for order in orders:
        if order["tuned_is"] == tuned_is:
            said = side(order["verdict"], tuned_is)
            if said is None:
                return None
            total += said
            turns += 1
    return total / turns


# --- the prompts ----------------------------------------------------------------------------------


def evaluation_prompts(chosen: settings.Settings) -> list[dict]:
    """The prompts of EVAL_PROMPTS, or the course's, in the chosen languages.

    Raises:
        CourseError: the file cannot be read, has no prompt in these languages, or what
            `check_items` refuses.
    """
    prompts.known(chosen.languages, "The judge")
    if chosen.eval_prompts:
        items = rows.prompts(chosen.eval_prompts, chosen.languages)
    else:
        items = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", contamination.PROMPT_FIELDS)
    name = chosen.eval_prompts or "eval_prompts.jsonl"
    check_items(items, name)
    asked = [item for item in items if item["language"] in chosen.languages]
    if chosen.eval_prompts and len(asked) < len(items):
        print(
            f"{len(items) - len(asked)} prompts are not asked, because LANGUAGE is "
            f"{', '.join(chosen.languages)}"
        )
    if not asked:
        raise CourseError(
            f"No prompt of {name} is in {' or '.join(chosen.languages)}: check LANGUAGE."
        )
    return asked


def check_items(items: Sequence[dict], name: str) -> None:
    """Stop at what would silently spoil every count: an id that occurs twice, or a follow-up that
    is empty.

    Args:
        name: the file that they came from, for the message.
    """
    twice = [key for key, times in Counter(item["id"] for item in items).items() if times > 1]
    if twice:
        raise CourseError(
            f"{name} has the id {twice[0]!r} more than once: give every record an id of its own."
        )
    for item in items:
        if "follow_up" in item and not str(item["follow_up"]).strip():
            raise CourseError(
                f"{name}, {item['id']}: follow_up is empty; write the second request, or leave "
                "the field out."
            )


TWO_TURNS = "two turns"  # a kind of its own in a sample, whatever the category


def sample(rows: Sequence[dict], n: int, seed: int = 0, by: str = "category") -> list[dict]:
    """About equally many rows of every language and `by`, two-turn prompts being a kind of their
    own, in the order of the file."""
    rng = random.Random(seed)
    shuffled = rng.sample(list(rows), len(rows))
    kinds = sorted({row[by] for row in rows if not row.get("follow_up")})
    # Two turns come first, so that even a small sample has them
    order = [TWO_TURNS, *rng.sample(kinds, len(kinds))]
    # One row of every kind and language, then a second one of each, and so on
    seen: Counter[tuple[str, str]] = Counter()
    ranked = []
    for row in shuffled:
        kind = TWO_TURNS if row.get("follow_up") else row[by]
        language = row["language"]
        ranked.append((seen[kind, language], order.index(kind), language, row["id"]))
        seen[kind, language] += 1
    chosen = {name for *_, name in sorted(ranked)[:n]}
    return [row for row in rows if row["id"] in chosen]


def connect(chosen: settings.Settings, role: str = "judge") -> Judge:
    """The judge of the settings ("judge" or "second_judge"), with the run's journal and budget."""
    connection = chosen.connection(getattr(chosen, role))
    client = Client(
        journal=chosen.folder / "requests.jsonl", budget_usd=chosen.budget_usd, **connection
    )
    return Judge(client, chosen.label(role), chosen.reply_format)


def same_model(chosen: settings.Settings) -> str | None:
    """One sentence where the judge also wrote the training data: it may prefer its own style
    (self-enhancement, arXiv 2306.05685).

    The teacher is looked up in the run's rows, else taken from the settings.
    """
    made = chosen.folder / "instruction.jsonl"
    teachers = (
        {row.get("teacher") for row in utils.read_jsonl(made)}
        if made.exists()
        else {chosen.label("teacher")}
    )
    if (name := chosen.label("judge")) not in teachers:
        return None
    return (
        f"Judge and teacher are one model, {name}: it judges answers that were learnt from its "
        "own, and may prefer its own style."
    )
