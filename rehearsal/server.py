"""What an OpenAI-compatible server does besides answering: keys, rate limits, faults to rehearse,
files and batches.

What it does: put a function that answers one request on the wire, in OpenAI's formats. Everything
that can go wrong is a knob, so that
tests and benchmarks meet it through the real SDK. What it does not do: make answers (stand_ins.py
does), or keep anything on disk.
"""

from __future__ import annotations

import asyncio
import email
import itertools
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

Answer = Callable[[dict, int], tuple[int, dict]]  # request body and number to status and JSON body
RATED = ("429", "500", "disconnect", "malformed", "slow")  # the faults of `fault_rate`


@dataclass(frozen=True)
class Knobs:
    """How the server behaves. Times are in seconds.

    A fault is "429", "500", "quota", "disconnect" (in the middle of the body), "malformed" (half a
    JSON object), "slow" (the body comes in pieces), "stall" (it never ends), "long" (more than the
    model's context), "refusal" or "cut" (by max_completion_tokens). The fate of a batch is
    "expired", "cancelled" (both after half of its requests), "partial" (half of them fail),
    "failed" (refused as a whole) or "lost" (created, but the connection breaks before the answer).
    """

    latency: float = 0.0  # before each answer
    # the n-th chat request meets the n-th; those past the end are answered
    faults: tuple[str | None, ...] = ()
    # share of the other requests that meet one of RATED, drawn by `seed` and the request's number
    fault_rate: float = 0.0
    seed: int = 0
    slow: float = 1.0  # a slow body's duration
    requests_per_minute: int = 60_000
    tokens_per_minute: int = 1_000_000_000  # of prompt and max_completion_tokens, as OpenAI counts
    window: float = 60.0  # the limits are kept in every window of this length
    serves: tuple[str, ...] = ("rehearsal",)  # model names
    batch_seconds: float = 0.0  # until a batch ends
    fates: tuple[str | None, ...] = ()  # the n-th batch meets the n-th


class Window:
    """A true sliding window: in no `seconds` more than the share of `per_minute` that falls on
    them."""

    def __init__(self, name: str, per_minute: int, seconds: float) -> None:
        self.name, self.per_minute, self.seconds = name, per_minute, seconds
        self._taken: deque[tuple[float, float]] = deque()
        self._total = 0.0

    @property
    def left(self) -> float:
        while self._taken and self._taken[0][0] <= time.monotonic() - self.seconds:
            self._total -= self._taken.popleft()[1]
        return self.per_minute * self.seconds / 60 - self._total

    def take(self, amount: float) -> None:
        self._taken.append((time.monotonic(), amount))
        self._total += amount

    def until(self, amount: float) -> float:
        """Seconds until `amount` fits, at most one window."""
        missing, wait = amount - self.left, 0.0
        for then, taken in self._taken:
            if missing <= 0:
                break
            missing, wait = missing - taken, then + self.seconds - time.monotonic()
        return wait if missing <= 0 else self.seconds

    def headers(self) -> dict:
        reset = (
            self._taken[-1][0] + self.seconds - time.monotonic()
            if self.left < self.per_minute and self._taken
            else 0.0
        )
        return {
            f"x-ratelimit-limit-{self.name}": str(self.per_minute),
            f"x-ratelimit-remaining-{self.name}": str(max(0, int(self.left))),
            f"x-ratelimit-reset-{self.name}": duration(reset),
        }


def duration(seconds: float) -> str:
    """As OpenAI writes it: '120ms', '1.5s', '6m0s'."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    return f"{int(seconds // 60)}m{seconds % 60:.3f}s" if seconds >= 60 else f"{seconds:.3f}s"


def error(
    status: int, message: str, kind: str = "invalid_request_error", code: str | None = None
) -> tuple[int, dict]:
    """Status and body of an error in OpenAI's form."""
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


REFUSED = {  # the faults that are an error in place of an answer
    "quota": error(
        429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"
    ),
    "500": error(500, "The server had an error.", "server_error"),
    "long": error(400, "The maximum context length is exceeded.", code="context_length_exceeded"),
}


def _spoil(choice: dict, fault: str | None) -> None:
    """Make a choice of an answer a refused or a cut one, where the fault is that."""
    message = choice["message"]
    if fault == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
        choice["finish_reason"] = "stop"
    if fault == "cut":
        message["content"] = message["content"][:20]
        choice["finish_reason"] = "length"


def as_json(status: int, body: dict, headers: dict | None = None):
    """An ASGI response."""
    from starlette.responses import JSONResponse

    return JSONResponse(body, status, headers)


async def broken(scope, receive, send) -> None:
    """An ASGI response that dies in the middle of its body."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"id": "chatcmpl', "more_body": True})
    raise ConnectionResetError("rehearsed disconnect")


class Server:
    """The endpoints under /v1, for one answering function and one key. `GET /v1/served` tells what
    it has done so far."""

    def __init__(
        self, answer: Answer, key: str, tokens: Callable[[dict], int], knobs: Knobs
    ) -> None:
        self.answer, self.key, self.tokens, self.knobs = answer, key, tokens, knobs
        self.numbers = itertools.count()
        self.counts: Counter[str] = Counter()
        self.windows = (
            Window("requests", knobs.requests_per_minute, knobs.window),
            Window("tokens", knobs.tokens_per_minute, knobs.window),
        )
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}

    def routes(self) -> list:
        from starlette.routing import Route

        def guarded(handler):
            async def checked(request):
                if request.headers.get("authorization") != f"Bearer {self.key}":
                    wrong = "Incorrect API key provided."
                    return as_json(*error(401, wrong, code="invalid_api_key"))
                return await handler(request)

            return checked

        async def served(request):  # without a key: it is for the tests
            return as_json(200, dict(self.counts) | {"batches": len(self.batches)})

        return [
            Route("/models", guarded(self._models)),
            Route("/chat/completions", guarded(self._chat), methods=["POST"]),
            Route("/files", guarded(self._upload), methods=["POST"]),
            Route("/files/{id}/content", guarded(self._content)),
            Route("/batches", guarded(self._create), methods=["POST"]),
            Route("/batches", guarded(self._list)),
            Route("/batches/{id}", guarded(self._retrieve)),
            Route("/batches/{id}/cancel", guarded(self._cancel), methods=["POST"]),
            Route("/served", served),
        ]

    async def _models(self, request):
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "course"}
            for name in self.knobs.serves
        ]
        return as_json(200, {"object": "list", "data": data})

    # --- chat -------------------------------------------------------------------------------------

    async def _chat(self, request):
        """Limits first, then the fault that this request meets, then the answer."""
        number = next(self.numbers)
        try:
            body = await request.json()
            tokens = self.tokens(body)
        except (ValueError, KeyError, TypeError, AttributeError):
            body, tokens = None, 0
        self.counts["asked"] += 1
        for window, amount in zip(self.windows, (1, tokens), strict=True):
            if (wait := window.until(amount)) > 0:
                message = f"Rate limit reached for {window.name} per min."
                return self._limited(number, message, wait, window.name)
        for window, amount in zip(self.windows, (1, tokens), strict=True):
            window.take(amount)
        await asyncio.sleep(self.knobs.latency)
        fault = self._fault(number)
        if fault:
            self.counts[f"fault {fault}"] += 1
        if fault == "429":
            return self._limited(number, "Rate limit reached.", 0.02, "requests")
        if fault == "disconnect":
            return broken
        if fault in REFUSED:
            return self._reply(number, *REFUSED[fault])
        if body is None:
            return self._reply(number, *error(400, "The body is not valid JSON."))
        return self._answered(number, *self.answer(body, number), fault)

    def _headers(self, number: int) -> dict[str, str]:
        requests, tokens = self.windows
        return {"x-request-id": f"rehearsal-{number}"} | requests.headers() | tokens.headers()

    def _reply(self, number: int, status: int, body: dict, headers: dict | None = None):
        return as_json(status, body, self._headers(number) | (headers or {}))

    def _limited(self, number: int, message: str, wait: float, kind: str):
        """Too many requests or tokens; `wait` is in seconds."""
        self.counts["rate_limited"] += 1
        status, body = error(429, message, kind, "rate_limit_exceeded")
        return self._reply(number, status, body, {"retry-after-ms": str(round(wait * 1000) + 1)})

    def _answered(self, number: int, status: int, body: dict, fault: str | None):
        """The answer on the wire, with those faults that come with an answer."""
        from starlette.responses import Response, StreamingResponse

        if status == 200:
            _spoil(body["choices"][0], fault)
        content = json.dumps(body, ensure_ascii=False).encode()
        headers, kind = self._headers(number), "application/json"
        if fault == "malformed":
            return Response(content[: len(content) // 2], 200, headers, kind)
        if status == 200:
            self.counts["served"] += 1
        if fault in ("slow", "stall"):
            return StreamingResponse(self._pieces(content, fault), status, headers, kind)
        return Response(content, status, headers, kind)

    def _fault(self, number: int) -> str | None:
        if number < len(self.knobs.faults):
            return self.knobs.faults[number]
        rng = random.Random(f"{self.knobs.seed} {number}")
        return rng.choice(RATED) if rng.random() < self.knobs.fault_rate else None

    async def _pieces(self, content: bytes, fault: str):
        step = len(content) // 10 + 1
        for start in range(0, len(content), step):
            yield content[start : start + step]
            await asyncio.sleep(3600 if fault == "stall" else self.knobs.slow / 10)

    # --- files and batches ------------------------------------------------------------------------

    async def _upload(self, request):
        # A multipart form is a MIME message, so the standard library reads it
        raw = (
            b"Content-Type: "
            + request.headers["content-type"].encode()
            + b"\r\n\r\n"
            + await request.body()
        )
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in email.message_from_bytes(raw).walk()
        }
        id = self._store(parts["file"].get_payload(decode=True))
        size, name = len(self.files[id]), parts["file"].get_filename()
        file = {
            "id": id,
            "object": "file",
            "bytes": size,
            "created_at": int(time.time()),
            "filename": name,
            "purpose": "batch",
            "status": "processed",
        }
        return as_json(200, file)

    def _store(self, content: bytes) -> str:
        id = f"file-rehearsal-{len(self.files)}"
        self.files[id] = content
        return id

    async def _content(self, request):
        from starlette.responses import Response

        content = self.files.get(request.path_params["id"])
        if content is None:
            return as_json(*error(404, "No such file."))
        return Response(content, media_type="application/octet-stream")

    async def _create(self, request):
        asked = await request.json()
        if asked.get("input_file_id") not in self.files:
            return as_json(*error(400, "No such input file."))
        number = len(self.batches)
        fate = self.knobs.fates[number] if number < len(self.knobs.fates) else None
        id, total = f"batch_rehearsal_{number}", self.files[asked["input_file_id"]].count(b"\n")
        self.batches[id] = {
            "id": id,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "completion_window": asked["completion_window"],
            "input_file_id": asked["input_file_id"],
            "metadata": asked.get("metadata"),
            "status": "in_progress",
            "created_at": int(time.time()),
            "request_counts": {"total": total, "completed": 0, "failed": 0},
            "fate": fate,
            "ends": time.monotonic() + self.knobs.batch_seconds,
        }
        return broken if fate == "lost" else as_json(200, self._shown(self.batches[id]))

    async def _list(self, request):
        newest = list(self.batches.values())[::-1]
        if after := request.query_params.get("after"):
            newest = newest[[batch["id"] for batch in newest].index(after) + 1 :]
        page = newest[: int(request.query_params.get("limit", 20))]
        listed = [self._shown(batch) for batch in page]
        return as_json(200, {"object": "list", "data": listed, "has_more": len(page) < len(newest)})

    async def _retrieve(self, request, cancel: bool = False):
        batch = self.batches.get(request.path_params["id"])
        if batch is None:
            return as_json(*error(404, "No such batch."))
        if batch["status"] == "in_progress" and (cancel or time.monotonic() >= batch["ends"]):
            self._end(batch, "cancelled" if cancel else batch["fate"])
        return as_json(200, self._shown(batch))

    async def _cancel(self, request):
        return await self._retrieve(request, cancel=True)

    def _shown(self, batch: dict) -> dict:
        return {key: value for key, value in batch.items() if key not in ("fate", "ends")}

    def _end(self, batch: dict, fate: str | None) -> None:
        """Answer what is to be answered, in another order than it was asked, and write the output
        and error files."""
        if fate == "failed":
            data = [
                {
                    "code": "invalid_json_line",
                    "line": 1,
                    "message": "This line is not parseable as valid JSON.",
                    "param": None,
                }
            ]
            batch |= {"status": "failed", "errors": {"object": "list", "data": data}}
            return
        asked = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        random.Random(self.knobs.seed).shuffle(asked)
        whole = len(asked) // 2 if fate in ("expired", "cancelled", "partial") else len(asked)
        output: list[dict] = []
        errors: list[dict] = []
        for place, line in enumerate(asked):
            record = {
                "id": f"batch_req_{place}",
                "custom_id": line["custom_id"],
                "response": None,
                "error": None,
            }
            if place < whole or fate == "partial":
                status, body = (
                    self.answer(line["body"], place)
                    if place < whole
                    else error(500, "The server had an error.", "server_error")
                )
                record["response"] = {
                    "status_code": status,
                    "request_id": f"batch-{place}",
                    "body": body,
                }
                (output if status == 200 else errors).append(record)
            elif fate == "expired":
                said = "This request could not be executed before the completion window expired."
                errors.append(record | {"error": {"code": "batch_expired", "message": said}})
        self.counts["batch_served"] += len(output)
        batch["status"] = fate if fate in ("expired", "cancelled") else "completed"
        batch["request_counts"] |= {"completed": len(output), "failed": len(asked) - len(output)}
        for name, records in (("output_file_id", output), ("error_file_id", errors)):
            if records:
                batch[name] = self._store(
                    "".join(
                        json.dumps(record, ensure_ascii=False) + "\n" for record in records
                    ).encode()
                )
