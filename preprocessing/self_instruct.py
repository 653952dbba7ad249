"""Asking a teacher for new tasks: what `preprocess.ipynb` calls first.

In here: seeds and demonstrations, and the requests and replies of two methods. *Self-Instruct*
(arXiv 2212.10560) asks three times: for instructions, whether each is a classification, and for its
instances, output first where it is one. *Stanford Alpaca* (tatsu-lab/stanford_alpaca) asks for
twenty whole tasks at once. Not in here: what becomes of the tasks (`curation.py`).
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, WithJsonSchema, create_model

import prompts
import settings
import utils
from llm.client import Client
from llm.replies import Reply
from preprocessing import parsing
from preprocessing import rows as reader

SEED_FIELDS = ("id", "language", "category", "instruction", "input", "output", "is_classification")
INSTANCES = 5  # at most, of one instruction
FEWEST_SEEDS = 6  # of each language: Self-Instruct shows six that people wrote
FEW = 3  # replies that cannot be read, and no other, are enough to stop
# Of a task in a reply, at most, by the length that is asked for: twenty long ones are as much as
# gpt-4o writes (16,384)
TOKENS = {"short": 400, "medium": 500, "varied": 600, "long": 800}


class Strict(BaseModel):
    """No defaults and no extra fields: that is what a strict JSON schema asks for."""

    model_config = ConfigDict(extra="forbid")


def one_of(categories: tuple[str, ...]) -> WithJsonSchema:
    """What the schema says of a category. A server that keeps to it can write these only; from one
    that does not, any text is read, and a rule rejects what is none (curation.problem), with a
    reason."""
    return WithJsonSchema({"type": "string", "enum": list(categories)}, mode="serialization")


Category = Annotated[str, one_of(prompts.CATEGORIES)]


class Task(Strict):
    category: Category
    instruction: str
    input: str
    output: str


class TaskBatch(Strict):
    tasks: list[Task]


class Instructions(Strict):
    instructions: list[str]


class Kind(Strict):
    is_classification: bool
    category: Category


def task_batch(categories: tuple[str, ...]) -> type[TaskBatch]:
    """`TaskBatch` whose tasks are of these categories."""
    task = create_model("Task", __base__=Task, category=Annotated[str, one_of(categories)])
    return create_model("TaskBatch", __base__=TaskBatch, tasks=list[task])  # type: ignore


def kind(categories: tuple[str, ...]) -> type[Kind]:
    """`Kind` that is one of these categories."""
    return create_model("Kind", __base__=Kind, category=Annotated[str, one_of(categories)])


class InputFirst(Strict):
    input: str
    output: str


class OutputFirst(Strict):  # the order of the fields is the order in which the teacher writes them
    output: str
    input: str


class InputFirstInstances(Strict):
    instances: list[InputFirst]


class OutputFirstInstances(Strict):
    instances: list[OutputFirst]


# --- seeds and demonstrations ---------------------------------------------------------------------


def load_seeds(
    languages: tuple[str, ...], categories: tuple[str, ...] = (), source: str = ""
) -> list[dict]:
    """The seed tasks in the chosen languages and, for a domain, categories (none: all).

    Args:
        source: seeds of the user's own, in any form that `rows.read` knows, instead of those that
            were written for this course.

    Raises:
        CourseError: too few seeds of a language, or none of a category; it says how many of what.
            Nothing has been asked, so nothing has been paid.
    """
    prompts.known(languages, "The teacher")
    if source:
        seeds = own_seeds(source, languages)
    else:
        seeds = utils.read_jsonl(utils.DATA / "seed_tasks.jsonl", SEED_FIELDS)
    chosen = [seed for seed in seeds if not categories or seed["category"] in categories]
    counted = Counter([seed["category"] for seed in seeds]).most_common()
    listed = ", ".join(f"{category} {count}" for category, count in counted)
    where = source or "data/seed_tasks.jsonl"
    if absent := sorted(set(categories) - {seed["category"] for seed in seeds}):
        raise utils.CourseError(
            f"No seed of {where} is in the category {absent[0]!r} of SEED_CATEGORIES; it has "
            f"{listed}."
        )
    for language in languages:
        have = sum(seed["language"] == language for seed in chosen)
        if have < FEWEST_SEEDS:
            such = settings.LANGUAGES[language]
            if categories:
                such += f" of {', '.join(categories)}"
            raise utils.CourseError(
                f"{where} has {have} seeds in {such}, and {FEWEST_SEEDS} are needed, as many as a "
                f"teacher is shown: write {FEWEST_SEEDS - have} more (it has {listed}), or set "
                "LANGUAGE."
            )
    print(f"from {where}, {'your own' if source else 'which comes with the course'}:")
    return [seed for seed in chosen if seed["language"] in languages]


def own_seeds(source: str, languages: tuple[str, ...]) -> list[dict]:
    """A user's seeds as the course's are: one turn each, with `is_classification`, which where it
    is missing says the category."""
    seeds = []
    for row in reader.read(source, languages=languages):
        if "messages" in row:
            raise utils.CourseError(
                f"The seed {row['id']} of {source} is a conversation, but a seed is one "
                "instruction and its output: split it or delete it."
            )
        row["is_classification"] = row.get("is_classification", row["category"] == "classification")
        seeds.append(row)
    return seeds


def categories_of(seeds: list[dict], own: bool) -> tuple[str, ...]:
    """The categories that the teacher may name: the course's, or those of the user's own seeds."""
    return tuple(sorted({seed["category"] for seed in seeds})) if own else prompts.CATEGORIES


def sample_demonstrations(
    pool: list[dict], language: str, count: int, rng: random.Random
) -> list[dict]:
    """`count` tasks in one language in random order, from different categories as long as there are
    any."""
    shuffled = [task for task in pool if task["language"] == language]
    rng.shuffle(shuffled)
    # The first of every category, then the second of every category, and so on
    seen: Counter[str] = Counter()
    rounds: dict[int, list[dict]] = {}
    for task in shuffled:
        rounds.setdefault(seen[task["category"]], []).append(task)
        seen[task["category"]] += 1
    in_turn = [task for tasks in rounds.values() for task in tasks]
    return in_turn[:count]


def mixed_demonstrations(
    seeds: list[dict], made: list[dict], language: str, rng: random.Random
) -> list[dict]:
    """Self-Instruct's eight: two machine-made tasks once there are some, the rest written by
    people, shuffled."""
    machine = sample_demonstrations(made, language, 2, rng)
    shown = machine + sample_demonstrations(seeds, language, 8 - len(machine), rng)
    rng.shuffle(shown)
    return shown


# --- asking ---------------------------------------------------------------------------------------


async def ask(
    teacher: Client,
    requests: list[dict],
    schema: type[BaseModel],
    text: bool = False,
    batch: bool = False,
) -> list[Reply]:
    """Ask a teacher with a strict JSON schema, or, with `text`, read plain text (the requests must
    ask for it); `batch`: half the price.

    Raises:
        CourseError: none of several replies can be read, so more of them would be paid for nothing.
    """
    send = teacher.complete_batch if batch else teacher.complete
    if text:
        replies = await send(requests, None, functools.partial(parsing.filled, schema=schema))
    else:
        replies = await send(requests, schema)
    _stop_at_junk(teacher.model, replies, schema, text)
    return replies


def _stop_at_junk(model: str, replies: list[Reply], schema: type[BaseModel], text: bool) -> None:
    said = [reply for reply in replies if reply.text]
    if len(said) < FEW or any(reply.parsed for reply in said):
        return
    if all(reply.finish_reason == "length" for reply in said):
        advice = "They are cut off: raise TEACHER_TOKENS."
    elif text:
        advice = (
            "REPLY_FORMAT is 'text' already, so this model does not follow a format: set another "
            "TEACHER."
        )
    else:
        advice = "Set REPLY_FORMAT to 'text' if the server cannot be held to a JSON schema."
    raise utils.CourseError(
        f"None of {len(said)} replies of {model} can be read as {schema.__name__}, so nothing more "
        f"is asked ({said[0].error}; it begins {said[0].text.strip()[:60]!r}). {advice}"
    )


def request(
    content: str,
    language: str,
    seed: int,
    tokens: int,
    schema: type[BaseModel],
    text: bool,
    domain: str = "",
    material: str = "",
    temperature: float = 1.0,
) -> dict:
    """The chat request for `content`; `seed` makes sampling repeatable where a server supports it,
    and tells two requests apart.

    `domain` limits it, where there is one; `material` comes from `grounding.prompt_block` and
    stands last, below every rule.
    """
    known = prompts.LANGUAGES[language]
    limits = known.domain.format(domain=domain) if domain else ""
    form = known.text_format[schema.__name__] if text else ""
    parts = (content, limits, form, material)
    return {
        "messages": [
            {"role": "system", "content": known.teacher_system},
            {"role": "user", "content": "\n\n".join(part for part in parts if part)},
        ],
        "temperature": temperature,
        "seed": seed,
        "max_completion_tokens": tokens,
    }


# --- Alpaca: one request, twenty tasks ------------------------------------------------------------


def batch_request(
    demonstrations: list[dict],
    language: str,
    count: int,
    seed: int,
    domain: str = "",
    text: bool = False,
    material: str = "",
    length: str = "varied",
    categories: tuple[str, ...] = prompts.CATEGORIES,
) -> dict:
    """One chat request for `count` new tasks in `language`, showing `demonstrations` whole; the
    reply is a `TaskBatch`. `length` is one of `TOKENS`: how long the answers are asked to be."""
    shown = []
    for number, task in enumerate(demonstrations, 1):
        fields = {key: task[key] for key in Task.model_fields}
        fields["input"] = task["input"] or '""'
        shown.append(prompts.DEMONSTRATION.format(number=number, **fields))
    known = prompts.LANGUAGES[language]
    content = known.teacher_batch.format(
        count=count,
        categories=", ".join(categories),
        demonstrations="\n\n".join(shown),
        length=known.answer_lengths[length],
    )
    tokens = TOKENS[length] * count
    return request(content, language, seed, tokens, TaskBatch, text, domain, material)


def tasks_of(reply: Reply) -> list[dict]:
    """The tasks in a reply, empty where it has none that can be read; of a reply of instructions
    only, tasks still `pending`."""
    if isinstance(reply.parsed, Instructions):
        empty = dict.fromkeys(Task.model_fields, "")
        return [
            empty | {"instruction": one.strip(), "pending": True}
            for one in reply.parsed.instructions
        ]
    return [task.model_dump() for task in reply.parsed.tasks] if reply.parsed else []


# --- Self-Instruct: instructions, then what kind each is, then its instances ----------------------


def instructions_request(
    demonstrations: list[dict],
    language: str,
    count: int,
    seed: int,
    domain: str = "",
    text: bool = False,
    material: str = "",
    length: str = "varied",
) -> dict:
    """Step 1: new instructions; of the demonstrations only the instructions are shown. The reply is
    `Instructions`."""
    shown = "\n".join(f"{i}. {task['instruction']}" for i, task in enumerate(demonstrations, 1))
    known = prompts.LANGUAGES[language]
    content = known.instructions.format(
        count=count, demonstrations=shown, length=known.answer_lengths[length]
    )
    tokens = 120 * count
    return request(content, language, seed, tokens, Instructions, text, domain, material)


def recognise_request(
    instruction: str,
    language: str,
    seeds: list[dict],
    text: bool = False,
    categories: tuple[str, ...] = prompts.CATEGORIES,
) -> dict:
    """Step 2: is it a classification? Shows 12 seeds that are and 19 that are not, as the paper
    does. The reply is a `Kind`."""
    own = [seed for seed in seeds if seed["language"] == language]
    shown = [seed for seed in own if seed["is_classification"]][:12] + [
        seed for seed in own if not seed["is_classification"]
    ][:19]
    lines = "\n".join(
        f"{seed['instruction']} -> {str(seed['is_classification']).lower()}, {seed['category']}"
        for seed in shown
    )
    content = prompts.LANGUAGES[language].recognise.format(
        categories=", ".join(categories), demonstrations=lines, instruction=instruction
    )
    return request(content, language, 0, 60, Kind, text, temperature=0.0)


def instances_request(
    instruction: str,
    language: str,
    is_classification: bool,
    text: bool = False,
    length: str = "varied",
) -> dict:
    """Step 3: inputs and outputs; for a classification the output comes first, else the inputs all
    lean to one label, and its length is the label's."""
    known = prompts.LANGUAGES[language]
    if is_classification:
        content = known.output_first.format(count=INSTANCES, instruction=instruction)
        return request(content, language, 0, 400 * INSTANCES, OutputFirstInstances, text)
    content = known.input_first.format(
        count=INSTANCES, instruction=instruction, length=known.answer_lengths[length]
    )
    return request(content, language, 0, TOKENS[length] * INSTANCES, InputFirstInstances, text)


async def complete_instructions(
    ask,
    rows: list[dict],
    seeds: list[dict],
    text: bool = False,
    length: str = "varied",
    categories: tuple[str, ...] = prompts.CATEGORIES,
) -> list[tuple[str, list[tuple[str, str]], str | None, float]]:
    """Steps 2 and 3 for every row (with `instruction` and `language`).

    Args:
        ask: takes requests and a schema, such as `functools.partial(self_instruct.ask, teacher)`.

    Returns:
        For each row `(category, [(input, output), ...], reason, dollars)`; without instances and
        with a reason where there are none.
    """
    asked = [
        recognise_request(row["instruction"], row["language"], seeds, text, categories)
        for row in rows
    ]
    kinds = await ask(asked, kind(categories))
    known = [i for i, one in enumerate(kinds) if one.parsed]
    found: list[tuple[str, list[tuple[str, str]], str | None, float]] = [
        ("", [], f"its kind is unknown: {one.error}", one.cost_usd) for one in kinds
    ]
    for wanted, schema in ((True, OutputFirstInstances), (False, InputFirstInstances)):
        places = [i for i in known if kinds[i].parsed.is_classification == wanted]
        asked = [
            instances_request(rows[i]["instruction"], rows[i]["language"], wanted, text, length)
            for i in places
        ]
        for i, reply in zip(places, await ask(asked, schema), strict=True):
            pairs, reason = usable_instances(reply)
            dollars = kinds[i].cost_usd + reply.cost_usd
            found[i] = (kinds[i].parsed.category, pairs, reason, dollars)
    return found


def usable_instances(reply: Reply) -> tuple[list[tuple[str, str]], str | None]:
    """`([(input, output), ...], reason)` after Self-Instruct's rules; no instances and a reason
    where none is left.

    Dropped: an empty output, one that repeats its input or ends in a colon, and repeated pairs; at
    most `INSTANCES` stay. One input with two different outputs drops the whole task. Of a reply cut
    by its length the last instance is not whole and was not read.
    """
    if reply.parsed is None:
        return [], reply.error or "no instances"
    pairs = dict.fromkeys((one.input.strip(), one.output.strip()) for one in reply.parsed.instances)
    good = [
        (given, answer)
        for given, answer in pairs
        if answer and answer != given and not answer.endswith(":")
    ]
    inputs = [given for given, _ in good if given]
    if len(set(inputs)) < len(inputs):
        return [], "one input with two outputs"
    return good[:INSTANCES], None if good else "no usable instance"
