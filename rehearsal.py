"""A stand-in for GPT-4o on this machine: an OpenAI-compatible endpoint that replays a teacher and judges by a rule.

What it does: speak the chat-completions wire format (usage, rate-limit headers, error objects) on a free loopback port, so that the
real `openai` SDK and the whole course run without a key. As *teacher* it deals the task batches recorded in `data/rehearsal/`,
flawed ones among them. As *judge* it applies the rule below. What it is not: a language model. Both say so in every reply.

The judge's rule, for an answer and the reference answer that the judge prompt shows, each embedded with multilingual E5:

    score = cosine(answer, reference)
            - 0.3 * (share of the answer's 4-grams that repeat)      a loop
            - 0.05 if the answer ends without a final mark, where the reference has one     a cut-off
            - 0.1 if the answer is written in another script than the reference

The higher score wins; less than 0.01 apart is a tie. A single answer gets 1 + 9 * (score - 0.75) / 0.25, rounded, from 1 to 10:
unrelated E5 vectors score about 0.75 already. It has never read the request, so it must pass calibration like any judge.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import threading
import time
from collections import Counter

import utils

MODEL = utils.REHEARSAL
KEY = "rehearsal"  # the only key it accepts, so that a wrong key can be rehearsed too
FINGERPRINT = "rehearsal: recorded or rule-based stand-in, not a language model"
TIE = 0.01
REQUESTS_PER_MINUTE = 10_000


# --- the teacher ---------------------------------------------------------------------------------------------------


def recorded(language: str) -> list[dict]:
    """The recorded teacher replies in one language, each with `tasks`, or with raw `content` where it was malformed."""
    return utils.read_jsonl(utils.DATA / "rehearsal" / f"teacher_{language}.jsonl", ("id", "language"))


def teach(body: dict) -> tuple[str, str]:
    """`(content, finish_reason)` of the recorded reply that this request gets: by its seed, else by a hash of its messages."""
    text = body["messages"][-1]["content"]
    hangul = len(re.findall("[가-힣]", text))
    batches = recorded("ko" if hangul > len(re.findall("[A-Za-z]", text)) / 2 else "en")
    seed = body.get("seed")
    number = seed if isinstance(seed, int) else int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest(), 16)
    batch = batches[number % len(batches)]
    if "content" in batch:
        return batch["content"], batch["finish_reason"]
    tasks = [{key: value for key, value in task.items() if key != "flaw"} for task in batch["tasks"]]
    return json.dumps({"tasks": tasks}, ensure_ascii=False), "stop"


# --- the judge -----------------------------------------------------------------------------------------------------


def judge(body: dict) -> str:
    """The JSON verdict of the stated rule: pairwise if the prompt shows two answers, else a score."""
    parts = sections(body["messages"][-1]["content"])
    reference, *answers = parts[1:]
    scores = [score(answer, reference) for answer in answers]
    rule = "Stand-in judge, a rule and not a language model: similarity to the reference less penalties is "
    if len(scores) == 1:
        grade = max(1, min(10, round(1 + 9 * (scores[0] - 0.75) / 0.25)))
        return json.dumps({"explanation": f"{rule}{scores[0]:.3f}.", "score": grade})
    a, b = scores
    verdict = "tie" if abs(a - b) < TIE else "A" if a > b else "B"
    return json.dumps({"explanation": f"{rule}{a:.3f} for A and {b:.3f} for B.", "verdict": verdict})


JUDGE_PROMPT = re.compile(
    r"^\[(?:Request|요청)\]\n(.*)\n\n\[(?:Reference answer|참고 답안)\]\n(.*)\n\n\[(?:Answer|Answer A|답변|답변 A)\]\n(.*?)"
    r"(?:\n\n\[(?:Answer B|답변 B)\]\n(.*))?\n\n\[(?:End|끝)\]$",
    re.DOTALL | re.MULTILINE,
)


def sections(prompt: str) -> list[str]:
    """Request, reference and one or two answers of a judge prompt (see prompts.JUDGE_PAIR)."""
    found = JUDGE_PROMPT.search(prompt)
    if found is None:
        raise ValueError("the prompt has no [Request], [Reference answer] and [Answer] sections")
    return [part.strip() for part in found.groups() if part is not None]


def score(answer: str, reference: str) -> float:
    """The rule of this module's docstring, at most 1."""
    import similarity

    if not answer.strip():
        return 0.0
    a, b = similarity.embed([answer, reference])
    value = float(a @ b) - 0.3 * repetition(answer)
    if ends(reference) and not ends(answer):
        value -= 0.05
    if abs(hangul_share(answer) - hangul_share(reference)) > 0.5:
        value -= 0.1
    return value


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's word n-grams that occurred before, in [0, 1)."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return 1 - len(grams) / total if (total := sum(grams.values())) else 0.0


def ends(text: str) -> bool:
    return text.rstrip().endswith((".", "!", "?", "…", "”", '"', ")", "`", "}", "]", "。"))


def hangul_share(text: str) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum("가" <= character <= "힣" for character in letters) / len(letters) if letters else 0.0


# --- the wire ------------------------------------------------------------------------------------------------------


def app(latency: float = 0.0, faults: tuple = ()):
    """The Starlette application.

    Args:
        latency: seconds before each answer.
        faults: what goes wrong, for tests: the n-th request of this server meets the n-th entry, one of None, "429", "500",
            "quota", "disconnect"; requests past the end are answered.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    counter = itertools.count()

    def failure(status: int, message: str, kind: str, code: str | None, headers: dict | None = None):
        error = {"message": message, "type": kind, "param": None, "code": code}
        return JSONResponse({"error": error}, status, headers=headers)

    def refuse(request):
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return failure(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")

    async def models(request):
        return refuse(request) or JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "course"}]})

    async def chat(request):
        number = next(counter)
        if denied := refuse(request):
            return denied
        await asyncio.sleep(latency)
        fault = faults[number] if number < len(faults) else None
        if fault == "429":
            return failure(429, "Rate limit reached.", "requests", "rate_limit_exceeded", {"retry-after-ms": "20"})
        if fault == "500":
            return failure(500, "The server had an error.", "server_error", None)
        if fault == "quota":
            return failure(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota")
        if fault == "disconnect":
            raise ConnectionResetError("rehearsed disconnect")
        try:
            body = await request.json()
        except ValueError:
            return failure(400, "The body is not valid JSON.", "invalid_request_error", None)
        if body.get("model") != MODEL:
            return failure(404, f"The model {body.get('model')!r} does not exist.", "invalid_request_error", "model_not_found")
        if not body.get("messages"):
            return failure(400, "'messages' is missing or empty.", "invalid_request_error", None)
        wants = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        try:
            content, reason = (judge(body), "stop") if "verdict" in wants or "score" in wants else teach(body)
        except ValueError as error:
            return failure(400, str(error), "invalid_request_error", None)
        return JSONResponse(completion(body, content, reason, number), headers=limits(number))

    v1 = [Route("/models", models), Route("/chat/completions", chat, methods=["POST"])]
    return Starlette(routes=[Mount(f"/{version()}/v1", routes=v1)])


def version() -> str:
    """Changes with the recorded replies and the rule. It is part of the address, so that a journal forgets old answers."""
    files = sorted((utils.DATA / "rehearsal").glob("*.jsonl")) + [utils.ROOT / "rehearsal.py"]
    return utils.fingerprint([utils.file_hash(path) for path in files])


def completion(body: dict, content: str, reason: str, number: int) -> dict:
    """A chat completion object. Token counts are estimates: a third of the UTF-8 bytes."""
    from llm import prompt_tokens

    prompt, answer = prompt_tokens(body["messages"]), len(content.encode()) // 3
    return {
        "id": f"chatcmpl-rehearsal-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, "refusal": None}, "finish_reason": reason, "logprobs": None}
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
    }


def limits(number: int) -> dict:
    return {
        "x-ratelimit-limit-requests": str(REQUESTS_PER_MINUTE),
        "x-ratelimit-remaining-requests": str(max(0, REQUESTS_PER_MINUTE - number - 1)),
        "x-ratelimit-reset-requests": "60s",
        "x-request-id": f"rehearsal-{number}",
    }


def start(latency: float = 0.0, faults: tuple = ()) -> str:
    """Start the endpoint on a free loopback port, in a daemon thread of this process; return its base URL."""
    import socket

    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app(latency, faults), log_level="critical", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True, name="rehearsal").start()
    deadline = time.time() + 30
    while not server.started:
        if time.time() > deadline:
            raise utils.CourseError("The rehearsal endpoint did not start within 30 seconds: restart the kernel and try again.")
        time.sleep(0.01)
    return f"http://127.0.0.1:{listener.getsockname()[1]}/{version()}/v1"
