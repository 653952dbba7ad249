"""A stand-in for GPT-4o on this machine: an OpenAI-compatible endpoint that replays a teacher and
judges by a rule.

What it does: speak the chat-completions wire format (usage, rate-limit headers, error objects) on a
free loopback port, so that the real `openai` SDK and the whole course run without a key. As
*teacher* it deals the task batches recorded in `data/rehearsal/`, flawed ones among them. As
*judge* it applies the rule below. What it is not: a language model. Both say so in every reply.

The judge's rule, for an answer and the reference answer that the judge prompt shows, each embedded
with multilingual E5:

    score = cosine(answer, reference)
            - 0.3 * (share of the answer's 4-grams that repeat)      a loop
            - 0.05 if the answer ends without a final mark, where the reference has one a cut-off
            - 0.1 if the answer is written in another script than the reference

Where the prompt shows no reference, the request takes its place, and the share of the answer's word
pairs that are copied from the request costs 0.3 too: else an echo would be the best answer. Of
several turns the last one and its reference count.

The higher score wins; less than 0.01 apart is a tie. A single answer gets 1 + 9 * (score - 0.75) /
0.25, rounded, from 1 to 10: unrelated E5 vectors score about 0.75 already. It has understood
nothing, so it must pass calibration like any judge.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import prompts
import settings
import utils
from llm import models
from llm.replies import most_tokens, prompt_tokens
from rehearsal import server
from rehearsal.server import Knobs, Server

MODEL = settings.REHEARSAL
KEY = "rehearsal"  # the only key it accepts, so that a wrong key can be rehearsed too
FINGERPRINT = "rehearsal: recorded or rule-based stand-in, not a language model"
TIE = 0.01


# --- the teacher ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def recorded(language: str, domain: str | None = None) -> list[dict]:
    """The recorded teacher replies in one language and domain, each with `tasks`, or with raw
    `content` where it was malformed."""
    batches = utils.read_jsonl(
        utils.DATA / "rehearsal" / f"teacher_{language}.jsonl", ("id", "language")
    )
    return [batch for batch in batches if batch.get("domain") == domain]


def teach(body: dict) -> tuple[str, str]:
    """`(content, finish_reason)` of the recorded reply to what is asked: tasks, instructions, a
    kind, instances or a critique.

    Raises:
        ValueError: nothing was recorded for this domain or row.
    """
    text = body["messages"][-1]["content"]
    language = _language(body["messages"])
    wanted = body.get("response_format", {}).get("json_schema", {}).get("name")
    plain = next(
        (
            name
            for language in prompts.LANGUAGES.values()
            for name, form in language.text_format.items()
            if form in text
        ),
        None,
    )
    write = _as_text if plain and not wanted else functools.partial(json.dumps, ensure_ascii=False)
    wanted = wanted or plain
    if wanted in ("Kind", "InputFirstInstances", "OutputFirstInstances", "Critique"):
        return write(_about(text, wanted)), "stop"
    batches = recorded(language, _domain(text))
    seed = body.get("seed")
    number = (
        seed
        if isinstance(seed, int)
        else int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest(), 16)
    )
    batch = batches[number % len(batches)]
    if "content" in batch:
        return batch["content"], batch["finish_reason"]
    if wanted == "Instructions":
        return write({"instructions": [task["instruction"] for task in batch["tasks"]]}), "stop"
    tasks = []
    for task in batch["tasks"]:
        tasks.append({key: task[key] for key in ("category", "instruction", "input", "output")})
    return write({"tasks": tasks}), "stop"


def _language(messages: list[dict]) -> str:
    """The language that a request is written in: that of the teacher's role, else by its script."""
    role = messages[0]["content"]
    for code, language in prompts.LANGUAGES.items():
        if role in (language.teacher_system, language.critic_system):
            return code
    text = messages[-1]["content"]
    return max(prompts.LANGUAGES, key=lambda code: prompts.LANGUAGES[code].share(text))


def _as_text(value: dict) -> str:
    """What a server without schemas would write: labelled fields, or a numbered list."""
    entries = next(iter(value.values()))
    if not isinstance(entries, list):
        entries = [value]
    elif isinstance(entries[0], str):
        return "\n".join(f"{number}. {entry}" for number, entry in enumerate(entries, 1))
    lines = []
    for entry in entries:
        for name, content in entry.items():
            if isinstance(content, bool):
                content = "yes" if content else "no"
            if name == "input" and content == "":
                content = "<noinput>"
            lines.append(f"{name}: {content}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _domain(text: str) -> str | None:
    """The domain that a request is limited to; only Korean housing was recorded."""
    for language in prompts.LANGUAGES.values():
        if found := re.search(
            "^" + re.escape(language.domain).replace(re.escape("{domain}"), "(.+)") + "$",
            text,
            re.MULTILINE,
        ):
            if re.search(r"hous|rent|tenan|jeonse|주거|주택|전세|월세|집 ", found[1], re.I):
                return "housing"
            raise ValueError(
                "the rehearsal teacher has recorded tasks about housing in Korea, not about "
                f"{found[1]!r}; use a real teacher"
            )
    return None


def _filled(template: str) -> re.Pattern:
    """A pattern for a template with its placeholders filled in, one group for each."""
    pieces = re.split(r"\{(\w+)\}", template)
    fixed, names = pieces[::2], pieces[1::2]
    pattern = re.escape(fixed[0])
    for name, text in zip(names, fixed[1:], strict=True):
        pattern += f"(?P<{name}>.*)" + re.escape(text)
    return re.compile(pattern, re.DOTALL)


def _about(text: str, wanted: str) -> dict:
    """What was recorded about the instruction (and, for a critique, the answer) that a prompt
    shows."""
    template = {
        "Kind": "recognise",
        "InputFirstInstances": "input_first",
        "OutputFirstInstances": "output_first",
        "Critique": "critique",
    }[wanted]
    found = (_filled(getattr(one, template)).search(text) for one in prompts.LANGUAGES.values())
    parts = next(filter(None, found), None)
    if parts is None:
        raise ValueError(f"the prompt is not the course's own ({template} in data/languages/)")
    instruction = parts["instruction"]
    tasks = [task for task in _all_tasks() if task["instruction"].strip() == instruction.strip()]
    if wanted == "Critique":
        output = parts["output"].strip()
        tasks = [task for task in tasks if output in _outputs(task)]
    if not tasks:
        raise ValueError(
            f"the rehearsal teacher has nothing recorded about {instruction[:60]!r}; use a real "
            "teacher"
        )
    task = tasks[0]
    if wanted == "Critique":
        return task["critique"]
    if wanted == "Kind":
        return {
            "is_classification": task["category"] == "classification",
            "category": task["category"],
        }
    order = ("output", "input") if wanted == "OutputFirstInstances" else ("input", "output")
    instances = []
    for one in (task, *task.get("instances", ())):
        instances.append({key: one[key] for key in order})
    return {"instances": instances}


def _outputs(task: dict) -> set[str]:
    """Those of a task and of its further instances."""
    return {one["output"].strip() for one in (task, *task.get("instances", ()))}


@functools.lru_cache(maxsize=1)
def _all_tasks() -> list[dict]:
    return [
        task
        for language in settings.LANGUAGES
        for batch in utils.read_jsonl(utils.DATA / "rehearsal" / f"teacher_{language}.jsonl")
        for task in batch.get("tasks", ())
    ]


# --- the judge ------------------------------------------------------------------------------------


def judge(body: dict) -> str:
    """The verdict of the stated rule, pairwise if the prompt shows two answers, else a score: as
    JSON, or as text if that was asked for."""
    text = body["messages"][-1]["content"]
    last = sections(text)[-1]
    reference = last.get("reference", "")
    scores = [
        score(last[name], reference, last["prompt"])
        for name in ("answer", "answer_a", "answer_b")
        if name in last
    ]
    said = "Stand-in judge, a rule and not a language model: similarity to the "
    said += f"{'reference' if reference else 'request (there is no reference)'} less penalties is "
    verdict: dict[str, str | int]
    if len(scores) == 1:
        said += f"{scores[0]:.3f}."
        verdict = {"score": max(1, min(10, round(1 + 9 * (scores[0] - 0.75) / 0.25)))}
    else:
        a, b = scores
        said += f"{a:.3f} for A and {b:.3f} for B."
        better = "A" if a > b else "B"
        verdict = {"verdict": "tie" if abs(a - b) < TIE else better}
    if asks_for_text(text):
        ((key, value),) = verdict.items()
        return f"{said}\n{key.capitalize()}: {value}"
    return json.dumps({"explanation": said} | verdict)


def asks_for_text(prompt: str) -> bool:
    """True for a judge prompt that asks for plain text instead of JSON."""
    return any(
        language.judge_task[form] in prompt
        for language in prompts.LANGUAGES.values()
        for form in ("pair_text", "single_text")
    )


def sections(prompt: str) -> list[dict[str, str]]:
    """The sections of a judge prompt, turn by turn, by their names in `judge_headings`
    (evaluation/judge.py quotes headings within an answer)."""
    known = prompts.judge_sections()
    pieces = re.split(rf"^\[({'|'.join(map(re.escape, known))})\]$", prompt, flags=re.MULTILINE)
    found: dict[int, dict[str, str]] = {}
    for heading, text in zip(pieces[1::2], pieces[2::2], strict=True):
        name, turn = known[heading]
        found.setdefault(turn, {})[name] = text.strip()
    turns = [found[turn] for turn in sorted(found)]
    whole = turns and "end" in turns[0]
    if not whole or not all("prompt" in t and {"answer", "answer_a"} & t.keys() for t in turns):
        raise ValueError("the prompt has no [Request], [Answer] and [End] sections")
    return turns


def score(answer: str, reference: str, request: str = "") -> float:
    """The rule of this module's docstring, at most 1."""
    if not answer.strip():
        return 0.0
    value = float(embedded(answer) @ embedded(reference or request)) - 0.3 * repetition(answer)
    if not reference:
        value -= 0.3 * copied(answer, request)
    if ends(reference or ".") and not ends(answer):
        value -= 0.05
    if abs(utils.hangul_share(answer) - utils.hangul_share(reference or request)) > 0.5:
        value -= 0.1
    return value


@functools.lru_cache(maxsize=10_000)
def embedded(text: str):
    """The text's vector, computed once: the same answer is judged in two orders, alone, and in
    probes."""
    import similarity

    return similarity.embed([text])[0]


def copied(answer: str, request: str, n: int = 2) -> float:
    """Share of an answer's word n-grams that stand in the request, in [0, 1]."""
    own, theirs = _grams(answer, n), set(_grams(request, n))
    return sum(gram in theirs for gram in own) / len(own) if own else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    """The runs of `n` words in a text."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's word n-grams that occurred before, in [0, 1)."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends(text: str) -> bool:
    return text.rstrip().endswith((".", "!", "?", "…", "”", '"', ")", "`", "}", "]", "。"))


# --- the wire -------------------------------------------------------------------------------------


def respond(body: dict, number: int, serves: tuple[str, ...] = (MODEL,)) -> tuple[int, dict]:
    """Status and JSON body for one chat request: a completion, or an error in OpenAI's form."""
    if body.get("model") not in serves:
        return server.error(
            404, f"The model {body.get('model')!r} does not exist.", code="model_not_found"
        )
    if not body.get("messages"):
        return server.error(400, "'messages' is missing or empty.")
    reasons = body["model"] in models.REASONING and body.get("reasoning_effort") != "none"
    if reasons and "temperature" in body:
        return server.error(
            400,
            "'temperature' is not supported while the model reasons.",
            code="unsupported_parameter",
        )
    wants = (
        body.get("response_format", {})
        .get("json_schema", {})
        .get("schema", {})
        .get("properties", {})
    )
    judging = {"explanation", "verdict"} <= wants.keys() or {"explanation", "score"} <= wants.keys()
    judging = judging or (not wants and asks_for_text(body["messages"][-1]["content"]))
    matters = {key: body.get(key) for key in ("messages", "seed", "response_format")} | {
        "judge": judging
    }
    try:
        content, reason = _content(json.dumps(matters, ensure_ascii=False))
    except ValueError as error:
        return server.error(400, str(error))
    return 200, completion(body, content, reason, number)


@functools.lru_cache(maxsize=10_000)
def _content(matters: str) -> tuple[str, str]:
    """`(content, finish_reason)` for what an answer depends on, as JSON: the same request gets the
    same answer, and gets it sooner."""
    body = {key: value for key, value in json.loads(matters).items() if value is not None}
    return (judge(body), "stop") if body["judge"] else teach(body)


def completion(body: dict, content: str, reason: str, number: int) -> dict:
    """A chat completion object. Token counts are estimates: a third of the UTF-8 bytes."""
    prompt, answer = prompt_tokens(body["messages"]), len(content.encode()) // 3
    return {
        "id": f"chatcmpl-rehearsal-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "finish_reason": reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        },
    }


def version() -> str:
    """Changes with the recorded replies and the rule. It is part of the address, so that a journal
    forgets old answers."""
    files = sorted((utils.DATA / "rehearsal").glob("*.jsonl")) + [Path(__file__)]
    return utils.fingerprint([utils.file_hash(path) for path in files])


def app(knobs: Knobs):
    """The Starlette application (see `server.Knobs` for what may go wrong)."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    answer = functools.partial(respond, serves=knobs.serves)
    wire = Server(answer, KEY, lambda body: sum(most_tokens(body)), knobs)
    return Starlette(routes=[Mount(f"/{version()}/v1", routes=wire.routes())])


def start(port: int = 0, **knobs) -> str:
    """Start the endpoint on a (free) loopback port, in a daemon thread of this process; return its
    base URL.

    Raises:
        CourseError: the server's package is not installed, or it does not start.
    """
    import socket

    utils.require(
        "starlette",
        "the rehearsal endpoint",
        "set TEACHER and JUDGE to a real model and OPENAI_API_KEY",
    )
    import uvicorn

    # With its protocol named, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms
    # for an acknowledgement
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    running = uvicorn.Server(
        uvicorn.Config(app(Knobs(**knobs)), log_level="critical", access_log=False)
    )
    threading.Thread(
        target=running.run, kwargs={"sockets": [listener]}, daemon=True, name="rehearsal"
    ).start()
    deadline = time.time() + 30
    while not running.started:
        if time.time() > deadline:
            raise utils.CourseError(
                "The rehearsal endpoint did not start within 30 seconds: restart the kernel and "
                "try again."
            )
        time.sleep(0.01)
    return f"http://127.0.0.1:{listener.getsockname()[1]}/{version()}/v1"


@contextlib.contextmanager
def separate(**knobs) -> Iterator[str]:
    """The base URL of an endpoint in a process of its own, which ends with the block: for kills and
    measurements."""
    command = [sys.executable, "-m", "rehearsal.stand_ins"]
    for name, value in knobs.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            assert process.stdout is not None  # it is a pipe
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main() -> None:
    """`python -m rehearsal.stand_ins --port 8000 --latency 0.2`: print the base URL, serve until
    standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    for knob in dataclasses.fields(Knobs):
        several = isinstance(knob.default, tuple)
        parse = (lambda text: None if text == "None" else text) if several else type(knob.default)
        parser.add_argument(
            f"--{knob.name.replace('_', '-')}",
            type=parse,
            nargs="*" if several else None,
            default=knob.default,
        )
    chosen = vars(parser.parse_args())
    for name, value in chosen.items():
        if isinstance(value, list):
            chosen[name] = tuple(value)
    print(start(**chosen), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
