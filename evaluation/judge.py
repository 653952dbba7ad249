"""Asking a judge about two answers, or about one: protocols and records. What `evaluation.ipynb`
calls.

In here: pairwise verdicts in both orders and single scores, with a reference where there is one, in
one turn or two, by JSON schema or as plain text. Not in here: how replies are read (verdicts.py),
whether the judge may be believed (calibration.py), what the verdicts add up to (outcomes.py,
stats.py), and the answers themselves (training/generation.py).

Source: LLM-as-a-judge (arXiv 2306.05685) and its code (lm-sys/FastChat).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import prompts
import settings
import utils
from evaluation import verdicts
from evaluation.outcomes import outcome, side
from evaluation.verdicts import Score, Verdict
from llm.client import Client
from llm.replies import Reply
from preprocessing import contamination, rows
from training import generation
from utils import CourseError

if TYPE_CHECKING:
    from pydantic import BaseModel

Answer = str | Sequence[str]  # one text, or one a turn
TOKENS = 400  # of a judge's reply, at most
SEVERAL_TURNS = ""  # a kind of its own when prompts are sampled
CUT = "the judge was still writing at its limit: raise JUDGE_TOKENS"


# --- requests -------------------------------------------------------------------------------------


def pair_request(
    item: dict,
    answer_a: Answer,
    answer_b: Answer,
    turn: int = 1,
    reply_format: str = "schema",
    tokens: int = TOKENS,
) -> dict:
    """The chat request that compares two answers.

    Args:
        item: `language`, `prompt` and `reference` ("" where there is none); for several turns also
            `follow_ups`, a list of the same, and `system` where the answers had a system message.
        turn: which one is judged, from 1; a later one is shown with the whole conversation.
        reply_format: "schema", or "text" for endpoints that cannot be held to a JSON schema.
        tokens: of the reply, at most; a model that thinks aloud needs more.
    """
    answers = {"a": turns(answer_a), "b": turns(answer_b)}
    return _request(item, answers, "pair", turn, reply_format, tokens)


def single_request(
    item: dict, answer: Answer, turn: int = 1, reply_format: str = "schema", tokens: int = TOKENS
) -> dict:
    """The chat request that scores one answer from 1 to 10; arguments as for `pair_request`."""
    return _request(item, {"": turns(answer)}, "single", turn, reply_format, tokens)


def turns(answer: Answer) -> list[str]:
    """An answer as a list of texts, one a turn."""
    return [answer] if isinstance(answer, str) else list(answer)


def _request(
    item: dict,
    answers: dict[str, list[str]],
    task: str,
    turn: int,
    reply_format: str,
    tokens: int,
) -> dict:
    known = prompts.LANGUAGES[item["language"]]
    names = {key: f"answer_{key}" if key else "answer" for key in answers}
    asked = generation.turns(item)[:turn]
    last = asked[-1]
    texts = {}  # (name, turn) -> text
    if item.get("system"):
        texts["system", 1] = item["system"]
    for number, one in enumerate(asked, 1):
        texts["prompt", number] = one["prompt"]
        if one is last and one["reference"]:
            texts["reference", number] = one["reference"]
        texts |= {(names[key], number): said[number - 1] for key, said in answers.items()}
    sections = [f"[{known.heading(*key)}]\n{_quoted(text)}" for key, text in texts.items()]
    ask = known.judge_task
    closing = [
        f"[{known.heading('end')}]",
        ask[task],
        ask["reference"] if last["reference"] else "",
        ask["last_turn"] if turn > 1 else "",
        ask[f"{task}_{reply_format}"],
    ]
    user = "\n\n".join([*sections, "\n".join(line for line in closing if line)])
    system = known.judge_system if task == "pair" else known.judge_single_system
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"messages": messages, "temperature": 0.0, "max_completion_tokens": tokens}


HEADING = re.compile(
    rf"^(?=\[(?:{'|'.join(map(re.escape, prompts.judge_sections()))})\])", re.MULTILINE
)


def _quoted(text: str) -> str:
    """A text that can open no section of its own: a line that looks like a heading is quoted."""
    return HEADING.sub("> ", text)


# --- the judge ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """One request and what it is about."""

    item: int  # its place among the items
    turn: int
    request: dict
    tuned_is: str = ""  # "A" or "B" in a pair


def _turns_of(item: dict) -> range:
    return range(1, len(generation.turns(item)) + 1)


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
        tokens: of a reply, at most.
    """

    client: Client
    name: str = ""
    reply_format: str = "schema"
    tokens: int = TOKENS

    def __post_init__(self) -> None:
        self.name = self.name or self.client.model

    def estimate(
        self, items: Sequence[dict], tuned: Sequence[Answer], base: Sequence[Answer] | None = None
    ) -> float:
        """Dollars that judging these pairs (or, without `base`, scoring these answers) costs at
        worst, beyond what the journal has."""
        if base is None:
            requests = [one.request for one in self._singles(items, tuned)]
            return self.client.estimate(requests, self._schema(Score))
        requests = [one.request for one in self._pairs(items, tuned, base)]
        return self.client.estimate(requests, self._schema(Verdict))

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
        orders: list[list[dict]] = [[] for _ in items]
        for asked, said in await self._ask(self._pairs(items, tuned, base), Verdict):
            orders[asked.item].append({"turn": asked.turn, "tuned_is": asked.tuned_is} | said)
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
        before, after = await self.score(items, base), await self.score(items, tuned)
        return [
            record | {"scores": {"base": one["score"], "tuned": two["score"]}}
            for record, one, two in zip(records, before, after, strict=True)
        ]

    async def score(self, items: Sequence[dict], answers: Sequence[Answer]) -> list[dict]:
        """Score every answer alone, from 1 to 10: records of `id`, `score` (mean over turns; None
        if one failed) and `turns`."""
        given: list[list[dict]] = [[] for _ in items]
        for asked, said in await self._ask(self._singles(items, answers), Score):
            given[asked.item].append({"turn": asked.turn} | said)
        records = []
        for item, turns in zip(items, given, strict=True):
            scores = [turn["score"] for turn in turns]
            mean = None if None in scores else sum(scores) / len(scores)
            records.append({"id": item["id"], "score": mean, "turns": turns})
        return records

    def _pairs(self, items, tuned, base) -> list[_Asked]:
        asked = []
        for i, (item, ours, theirs) in enumerate(zip(items, tuned, base, strict=True)):
            for turn in _turns_of(item):
                for tuned_is, a, b in (("A", ours, theirs), ("B", theirs, ours)):
                    request = pair_request(item, a, b, turn, self.reply_format, self.tokens)
                    asked.append(_Asked(i, turn, request, tuned_is))
        return asked

    def _singles(self, items, answers) -> list[_Asked]:
        asked = []
        for i, (item, answer) in enumerate(zip(items, answers, strict=True)):
            for turn in _turns_of(item):
                request = single_request(item, answer, turn, self.reply_format, self.tokens)
                asked.append(_Asked(i, turn, request))
        return asked

    def _schema(self, schema: type[BaseModel]) -> type[BaseModel] | None:
        return schema if self.reply_format == "schema" else None

    async def _ask(self, asked: list[_Asked], schema: type[BaseModel]) -> list[tuple[_Asked, dict]]:
        """Every request with what was said to it: `verdict` or `score`, `error` and
        `explanation`."""
        requests = [one.request for one in asked]
        replies = await self.client.complete(requests, self._schema(schema))
        return [(one, self._read(reply, schema)) for one, reply in zip(asked, replies, strict=True)]

    def _read(self, reply: Reply, schema: type[BaseModel]) -> dict:
        """What a reply says; one that does not keep to the schema is read like plain text."""
        name = "score" if schema is Score else "verdict"
        if reply.parsed is not None:
            said = getattr(reply.parsed, name)
            return {name: said, "error": None, "explanation": reply.parsed.explanation}
        value: str | int | None
        if schema is Score:
            value, error = verdicts.parse_score(reply.text)
        else:
            value, error = verdicts.parse_verdict(reply.text)
        if value is not None and reply.finish_reason not in ("length", "content_filter"):
            text = verdicts.explanation(reply.text)
            return {name: value, "error": None, "explanation": text}
        if reply.finish_reason == "length":
            error = CUT
        elif reply.error:
            error = reply.error
            if "does not match the schema" in error:
                error += ' (a server that knows no schemas needs REPLY_FORMAT = "text")'
        return {name: None, "error": error, "explanation": reply.text}

    def _record(self, item: dict, orders: list[dict]) -> dict:
        first, second = _mean_side(orders, "A"), _mean_side(orders, "B")
        value = None if first is None or second is None else (first + second) / 2
        told = ("id", "language", "category", "kind", "difficulty")
        kept = {key: item[key] for key in told if key in item}
        return kept | {
            "outcome": str(outcome(first, second)),
            "value": value,
            "judge": self.name,
            "orders": orders,
        }


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
    """Stop at what would silently spoil every count: an id that occurs twice, or follow-ups that
    are not what `generation.turns` reads.

    Args:
        name: the file that they came from, for the message.
    """
    occurs = Counter([item["id"] for item in items])
    twice = [key for key, times in occurs.items() if times > 1]
    if twice:
        raise CourseError(
            f"{name} has the id {twice[0]!r} more than once: give every record an id of its own."
        )
    for item in items:
        follow_ups = item.get("follow_ups", [])
        well_formed = isinstance(follow_ups, list) and all(
            isinstance(one, dict) and str(one.get("prompt", "")).strip() and "reference" in one
            for one in follow_ups
        )
        if not well_formed or len(follow_ups) >= prompts.MOST_TURNS:
            raise CourseError(
                f"{name}, {item['id']}: follow_ups must be a list of at most "
                f"{prompts.MOST_TURNS - 1} objects with a `prompt`, not empty, and a `reference`, "
                "which may be empty."
            )


def sample(rows: Sequence[dict], n: int, seed: int = 0, by: str = "category") -> list[dict]:
    """About equally many rows of every language and `by`, in the order of the file; what has a
    `kind` (hard prompts) or several turns is a group of its own."""
    rng = random.Random(seed)
    shuffled = rng.sample(list(rows), len(rows))
    kinds = sorted({_kind(row, by) for row in rows} - {SEVERAL_TURNS})
    # Turns come first, so that a small sample has some too
    names = [SEVERAL_TURNS, *rng.sample(kinds, len(kinds))]
    seen: Counter = Counter()
    ranked = []
    for row in shuffled:
        group = _kind(row, by), row["language"]
        ranked.append(((seen[group], names.index(group[0]), group[1]), row["id"]))
        seen[group] += 1
    chosen = {name for _, name in sorted(ranked)[:n]}
    return [row for row in rows if row["id"] in chosen]


def _kind(row: dict, by: str) -> str:
    return row.get("kind") or (SEVERAL_TURNS if row.get("follow_ups") else row[by])


def connect(chosen: settings.Settings, role: str = "judge") -> Judge:
    """The judge of the settings ("judge" or "second_judge"), with the run's journal and budget."""
    connection = chosen.connection(getattr(chosen, role))
    client = Client(
        journal=chosen.folder / "requests.jsonl", budget_usd=chosen.budget_usd, **connection
    )
    return Judge(client, chosen.label(role), chosen.reply_format, chosen.judge_tokens)


def calibration_pairs(chosen: settings.Settings) -> list[dict]:
    """The labelled pairs in the chosen languages, CALIBRATION_PAIRS of them (0: all), of every kind
    of fault as evenly as they come."""
    fields = ("id", "kind", "answer_good", "answer_bad")
    pairs = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl", fields)
    check_items(pairs, "judge_calibration.jsonl")
    pairs = [pair for pair in pairs if pair["language"] in chosen.languages]
    return sample(pairs, chosen.calibration_pairs or len(pairs), chosen.seed, by="kind")


def same_model(chosen: settings.Settings) -> str | None:
    """One sentence where the judge also wrote the training data: it may prefer its own style
    (self-enhancement, arXiv 2306.05685).

    The teacher is looked up in the run's rows, else taken from the settings.
    """
    made = chosen.folder / "instruction.jsonl"
    teachers: set = {chosen.label("teacher")}
    if made.exists():
        teachers = {row.get("teacher") for row in utils.read_jsonl(made)}
    if (name := chosen.label("judge")) not in teachers:
        return None
    return (
        f"Judge and teacher are one model, {name}: it judges answers that were learnt from its "
        "own, and may prefer its own style."
    )
