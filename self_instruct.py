"""Asking a teacher for new tasks: what `preprocess.ipynb` calls first.

In here: seeds and demonstrations, and the requests and replies of two methods. *Self-Instruct* (arXiv 2212.10560) asks three times:
for instructions, whether each is a classification, and for its instances, output first where it is one. *Stanford Alpaca*
(tatsu-lab/stanford_alpaca) asks for twenty whole tasks at once. Not in here: what becomes of the tasks (`curation.py`).
"""

from __future__ import annotations

import json
import random
import re

from pydantic import BaseModel, ConfigDict, ValidationError

import prompts
import utils
from llm import Client, Reply

SEED_FIELDS = ("id", "language", "category", "instruction", "input", "output", "is_classification")
INSTANCES = 5  # at most, of one instruction


class Strict(BaseModel):
    """No defaults and no extra fields: that is what a strict JSON schema asks for."""

    model_config = ConfigDict(extra="forbid")


class Task(Strict):
    category: str
    instruction: str
    input: str
    output: str


class TaskBatch(Strict):
    tasks: list[Task]


class Instructions(Strict):
    instructions: list[str]


class Kind(Strict):
    is_classification: bool
    category: str


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


# --- seeds and demonstrations --------------------------------------------------------------------------------------


def load_seeds(languages: tuple[str, ...], categories: tuple[str, ...] = ()) -> list[dict]:
    """The seed tasks in the chosen languages and, for a domain, categories (none: all). Written for this course."""
    seeds = [seed for seed in utils.read_jsonl(utils.DATA / "seed_tasks.jsonl", SEED_FIELDS) if seed["language"] in languages]
    chosen = [seed for seed in seeds if not categories or seed["category"] in categories]
    if len(chosen) < 3 * len(languages):
        raise utils.CourseError(f"Only {len(chosen)} seeds are in SEED_CATEGORIES ({', '.join(categories)}): name another category too.")
    return chosen


def sample_demonstrations(pool: list[dict], language: str, count: int, rng: random.Random) -> list[dict]:
    """`count` tasks in one language in random order, from different categories as long as there are any."""
    shuffled = [task for task in pool if task["language"] == language]
    rng.shuffle(shuffled)
    seen: dict[str, int] = {}
    turns = [seen.setdefault(task["category"], 0) for task in shuffled]
    for i, task in enumerate(shuffled):
        turns[i], seen[task["category"]] = seen[task["category"]], seen[task["category"]] + 1
    return [shuffled[i] for i in sorted(range(len(shuffled)), key=turns.__getitem__)[:count]]


def mixed_demonstrations(seeds: list[dict], made: list[dict], language: str, rng: random.Random) -> list[dict]:
    """Self-Instruct's eight: two machine-made tasks once there are some, the rest written by people, shuffled."""
    machine = sample_demonstrations(made, language, 2, rng)
    shown = machine + sample_demonstrations(seeds, language, 8 - len(machine), rng)
    rng.shuffle(shown)
    return shown


# --- Alpaca: one request, twenty tasks -----------------------------------------------------------------------------


def batch_request(
    demonstrations: list[dict], language: str, count: int, seed: int, domain: str = "", text: bool = False, material: str = ""
) -> dict:
    """One chat request for `count` new tasks in `language`, showing `demonstrations`.

    `seed` makes sampling at temperature 1 repeatable where the server supports it, and tells two requests apart in the journal.
    With `text` the reply is to be plain text (`parse_tasks`) instead of JSON. `material` comes from `grounding.prompt_block`.
    """
    shown = [
        prompts.DEMONSTRATION[language].format(number=i, **{key: task[key] for key in Task.model_fields} | {"input": task["input"] or '""'})
        for i, task in enumerate(demonstrations, 1)
    ]
    content = prompts.TEACHER_BATCH[language].format(
        count=count, categories=", ".join(prompts.CATEGORIES), demonstrations="\n\n".join(shown)
    )
    return _request(_extended(content, language, domain, text, material), language, seed, 400 * count)


def _extended(content: str, language: str, domain: str, text: bool, material: str) -> str:
    extras = [prompts.DOMAIN[language].format(domain=domain)] if domain else []
    return "\n\n".join([content, *extras, *([prompts.TEXT_FORMAT[language]] if text else []), *([material] if material else [])])


def _request(content: str, language: str, seed: int, tokens: int, temperature: float = 1.0) -> dict:
    return {
        "messages": [{"role": "system", "content": prompts.TEACHER_SYSTEM[language]}, {"role": "user", "content": content}],
        "temperature": temperature,
        "seed": seed,
        "max_completion_tokens": tokens,
    }


LABEL = re.compile(
    r"^[\s>*#\-]*(?:\d+\s*[.)]\s*)?\**\s*(category|instruction|input|output|범주|지시|입력|출력)\s*\**\s*[:：]\**[ \t]*(.*)$", re.I
)
NAMES = {"범주": "category", "지시": "instruction", "입력": "input", "출력": "output"}
BETWEEN = re.compile(r"\n[\s\-=#*]*(?:(?:task|과제)\s*)?\d*[.):]?[\s\-=#*]*$", re.I)  # "### 2." and the like, which belongs to no task
NOTHING = re.compile(r"^\W*(noinput|none|n/a|없음|)\W*$", re.I)


def parse_tasks(text: str, cut: bool = False) -> list[dict]:
    """Tasks from a reply in plain text, or from JSON in or around prose: for endpoints without strict schemas.

    A label counts only at the start of a line, so that "16." or "###" inside an answer stay where they are. A task without an
    instruction or an output field is dropped, and with `cut` (the reply ended at its length limit) the last task too.
    """
    if found := _from_json(text):
        return found
    tasks: list[dict] = []
    field = None
    for line in text.splitlines():
        if label := LABEL.match(line):
            field = NAMES.get(label[1].lower(), label[1].lower())
            if not tasks or field in tasks[-1] or (field == "category" and tasks[-1]):
                tasks.append({})
            tasks[-1][field] = label[2]
        elif field:
            tasks[-1][field] += "\n" + line
    read = []
    for task in tasks[: -1 if cut else None]:
        values = {key: BETWEEN.sub("", task.get(key, "")).strip() for key in Task.model_fields}
        if "instruction" in task and "output" in task:
            read.append(values | {"input": "" if NOTHING.match(values["input"]) else values["input"]})
    return read


def _from_json(text: str) -> list[dict]:
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    if start < 0:
        return []
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
        return [Task.model_validate(task).model_dump() for task in (value["tasks"] if isinstance(value, dict) else value)]
    except (ValueError, KeyError, TypeError, ValidationError):
        return []


def tasks_of(reply: Reply) -> list[dict]:
    """The tasks in a reply to `batch_request`, with a schema or as text; empty where it has none that can be read."""
    if reply.parsed is not None:
        return [task.model_dump() for task in reply.parsed.tasks]
    return [] if reply.error and reply.finish_reason != "length" else parse_tasks(reply.text, reply.finish_reason == "length")


# --- Self-Instruct: instructions, then what kind each is, then its instances ---------------------------------------


def instructions_request(demonstrations: list[dict], language: str, count: int, seed: int, domain: str = "", material: str = "") -> dict:
    """Step 1: new instructions; of the demonstrations only the instructions are shown."""
    shown = "\n".join(f"{i}. {task['instruction']}" for i, task in enumerate(demonstrations, 1))
    content = prompts.INSTRUCTIONS[language].format(count=count, demonstrations=shown)
    return _request(_extended(content, language, domain, False, material), language, seed, 120 * count)


def recognise_request(instruction: str, language: str, seeds: list[dict]) -> dict:
    """Step 2: is it a classification? Shows 12 seeds that are and 19 that are not, as the paper does."""
    own = [seed for seed in seeds if seed["language"] == language]
    shown = [seed for seed in own if seed["is_classification"]][:12] + [seed for seed in own if not seed["is_classification"]][:19]
    lines = "\n".join(f"{seed['instruction']} -> {str(seed['is_classification']).lower()}, {seed['category']}" for seed in shown)
    content = prompts.RECOGNISE[language].format(categories=", ".join(prompts.CATEGORIES), demonstrations=lines, instruction=instruction)
    return _request(content, language, 0, 60, temperature=0.0)


def instances_request(instruction: str, language: str, is_classification: bool) -> dict:
    """Step 3: inputs and outputs; for a classification the output comes first."""
    template = prompts.OUTPUT_FIRST if is_classification else prompts.INPUT_FIRST
    return _request(template[language].format(count=INSTANCES, instruction=instruction), language, 0, 400 * INSTANCES)


async def complete_instructions(teacher: Client, rows: list[dict], seeds: list[dict], ask=None) -> tuple[list[Reply], list[Reply]]:
    """Steps 2 and 3 for every row (with `instruction` and `language`): `(kinds, instances)`, one reply a row each.

    A row whose kind could not be read counts as no classification. `ask` defaults to `teacher.complete`.
    """
    ask = ask or teacher.complete
    kinds = await ask([recognise_request(row["instruction"], row["language"], seeds) for row in rows], Kind)
    labels = [bool(kind.parsed and kind.parsed.is_classification) for kind in kinds]
    replies: dict[int, Reply] = {}
    for wanted, schema in ((True, OutputFirstInstances), (False, InputFirstInstances)):
        places = [i for i, label in enumerate(labels) if label == wanted]
        asked = [instances_request(rows[i]["instruction"], rows[i]["language"], wanted) for i in places]
        replies |= dict(zip(places, await ask(asked, schema), strict=True))
    return kinds, [replies[i] for i in range(len(rows))]


def usable_instances(reply: Reply) -> tuple[list[tuple[str, str]], str | None]:
    """`([(input, output), ...], reason)` after Self-Instruct's rules; no instances and a reason where none is left.

    Dropped: an empty output, one that repeats its input or ends in a colon, and repeated pairs; at most `INSTANCES` stay. One input
    with two different outputs drops the whole task. A reply cut by its length does not match its schema and has no instances.
    """
    if reply.parsed is None:
        return [], reply.error or "no instances"
    pairs = dict.fromkeys((one.input.strip(), one.output.strip()) for one in reply.parsed.instances)
    good = [(given, answer) for given, answer in pairs if answer and answer != given and not answer.endswith(":")]
    inputs = [given for given, _ in good if given]
    if len(set(inputs)) < len(inputs):
        return [], "one input with two outputs"
    return good[:INSTANCES], None if good else "no usable instance"
