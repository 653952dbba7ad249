"""One client for every chat model in this course: OpenAI, any OpenAI-compatible server, or the rehearsal endpoint.

What it does: send many requests at once, retry what is worth retrying, keep a hard budget in dollars, and write every answered
request to an append-only journal, so that nothing is paid for twice, whatever happens to the process. What it does not do: know
anything about prompts or data. Importing it imports neither openai nor torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import utils
from utils import CourseError

if TYPE_CHECKING:
    from pydantic import BaseModel

# Dollars per million tokens: input, cached input, output. OpenAI's price page as of 2026-11; change them when it changes.
PRICES = {
    "gpt-4o": (2.50, 1.25, 10.00),
    "gpt-4o-mini": (0.15, 0.075, 0.60),
    "gpt-6-luna": (0.10, 0.01, 0.50),
}
FREE = (0.0, 0.0, 0.0)
DEFAULT_TOKENS = 4096  # an answer's limit where the request sets none


class BudgetExceeded(CourseError):
    """The next request could have gone over the budget, so it was not sent."""


@dataclass
class Reply:
    """The answer to one request, in the order asked."""

    text: str = ""
    parsed: BaseModel | None = None  # an instance of the schema; None without a schema or with an error
    error: str | None = None  # why there is no usable answer: refusal, truncation, schema mismatch, server failure
    finish_reason: str | None = None
    usage: dict = field(default_factory=dict)
    cost_usd: float = 0.0
    cached: bool = False  # came from the journal and cost nothing now
    key: str = ""  # content hash of the request; its name in the journal


@dataclass
class Usage:
    """What this client has asked and paid since it was made. Journal hits are counted in `cached` only."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class Client:
    """A chat client with a journal and a budget.

    Args:
        model: the model's name at the endpoint.
        base_url: an OpenAI-compatible endpoint, None for OpenAI.
        api_key: defaults to the secret OPENAI_API_KEY; local servers take any.
        journal: path of the append-only JSON Lines journal; None keeps nothing.
        budget_usd: hard limit over everything in the journal, this session and earlier ones; None for no limit.
        requests_per_minute, tokens_per_minute: limits to stay under, None for none.
        max_concurrency: requests in flight at once.
        prices: (input, cached input, output) in dollars per million tokens, for models that `PRICES` does not know.
        attempts: tries per request for errors that may pass (429, 5xx, lost connections).

    Raises:
        CourseError: no key, a budget but no known price, a malformed journal.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        journal: str | Path | None = None,
        budget_usd: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_concurrency: int = 8,
        prices: tuple[float, float, float] | None = None,
        attempts: int = 5,
    ) -> None:
        self.model, self.base_url, self.max_concurrency, self.attempts = model, base_url, max_concurrency, attempts
        local = _is_loopback(base_url)
        self._api_key = api_key or utils.secret("OPENAI_API_KEY") or ("local" if local else None)
        if not self._api_key:
            raise CourseError(f"{model} needs an API key: set OPENAI_API_KEY in the environment, in Colab's key panel or in .env.")
        self.prices = prices or (FREE if local else PRICES.get(model))
        if self.prices is None and budget_usd is not None:
            raise CourseError(
                f"The price of {model} is unknown, so its budget cannot be kept: set PRICES to 'input, cached, output' in dollars "
                "per million tokens, or add it to PRICES in llm.py."
            )
        self.budget_usd, self.usage = budget_usd, Usage()
        self._limits = (requests_per_minute, tokens_per_minute)
        self._journal = Journal(journal) if journal else None
        self._spent = sum(entry["cost_usd"] for entry in self._journal.entries.values()) if self._journal else 0.0
        self._reserved = 0.0

    @property
    def spent_usd(self) -> float:
        """Dollars paid for everything in the journal, this session included."""
        return self._spent

    def estimate(self, requests: list[dict], schema: type[BaseModel] | None = None) -> float:
        """Worst-case dollars for `requests` that are not in the journal yet: every answer as long as it may be."""
        return sum(self._worst_case(r) for r in requests if self._lookup(self._key(r, schema)) is None)

    async def complete(self, requests: list[dict], schema: type[BaseModel] | None = None) -> list[Reply]:
        """Answer all requests, in the order asked.

        Args:
            requests: keyword arguments of `chat.completions.create` without the model: `messages`, `temperature`,
                `max_completion_tokens` and so on. Two equal requests are one request: give `seed` to sample again.
            schema: a pydantic model with `extra="forbid"` and no defaults; sent as a strict JSON schema.

        Raises:
            BudgetExceeded: the next request might exceed the budget.
            CourseError: a wrong key, no such model, no quota left, an unreachable endpoint.
        In both cases the requests under way are finished and kept in the journal first: run again to go on.
        """
        from openai import AsyncOpenAI

        per_minute = self._limits[1] or math.inf
        if (most := max(map(_most_tokens, requests), default=0)) > per_minute:
            raise CourseError(
                f"A request may need {most:,} tokens, over the limit of {per_minute:,.0f} a minute: shorten the prompt or "
                "max_completion_tokens, or raise tokens_per_minute."
            )
        self._stop: CourseError | None = None
        self._changed = asyncio.Condition()
        slots = asyncio.Semaphore(self.max_concurrency)
        unique = {self._key(request, schema): request for request in requests}
        # Our own retries, because the SDK also retries an exhausted quota
        async with AsyncOpenAI(base_url=self.base_url, api_key=self._api_key, max_retries=0, timeout=300) as sdk:
            with utils.progress(len(unique), self.model) as bar:

                async def one(key: str, request: dict) -> Reply | None:
                    async with slots:
                        reply = self._from_journal(key, schema)
                        if reply is None and self._stop is None:
                            reply = await self._ask(sdk, key, request, schema)
                        bar.update()
                        return reply

                replies = await asyncio.gather(*(one(key, request) for key, request in unique.items()))
        if self._stop is not None:
            raise self._stop
        answered = dict(zip(unique, replies, strict=True))
        return [answered[self._key(request, schema)] for request in requests]

    # --- one request ---------------------------------------------------------------------------------------------

    async def _ask(self, sdk, key: str, request: dict, schema) -> Reply | None:
        """Send one request; None if it, or another one, stopped the work."""
        import openai

        # Without a limit the worst case would have none either
        body = {"model": self.model, "max_completion_tokens": DEFAULT_TOKENS} | request
        if schema is not None:
            body["response_format"] = response_format(schema)
        worst = self._worst_case(request)
        if not await self._reserve(worst):
            return None
        started = time.time()
        try:
            completion = await self._send(sdk, body)
            return _read(self._book(key, body, completion, time.time() - started), schema)
        except openai.APIConnectionError as error:  # timeouts too
            self._fail(f"{self._where()} cannot be reached ({type(error).__name__}): is it running, and is the address right?")
            return None
        except openai.APIStatusError as error:
            if sentence := self._fatal(error):
                self._fail(sentence)
                return None
            return Reply(error=f"server error {error.status_code} after {self.attempts} attempts", key=key)
        except CourseError as error:  # the journal could not be written: stop, but let the others finish
            self._stop = self._stop or error
            return None
        finally:  # after the booking, so that the money is never neither reserved nor spent
            await self._release(worst)

    async def _send(self, sdk, body: dict):
        import openai
        import tenacity

        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, passing) and not self._fatal(error)),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=_wait,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                await self._throttle(body)
                # The raw response, because `parse` raises on a schema mismatch and forgets what was billed
                response = await sdk.chat.completions.with_raw_response.create(**body)
                return response.parse()

    async def _throttle(self, body: dict) -> None:
        from aiolimiter import AsyncLimiter

        loop = asyncio.get_running_loop()
        if getattr(self, "_loop", None) is not loop:  # limiters belong to one event loop; scripts may start several
            self._loop = loop
            self._limiters = [AsyncLimiter(limit, 60) if limit else None for limit in self._limits]
        requests, tokens = self._limiters
        if requests:
            await requests.acquire()
        if tokens:
            await tokens.acquire(_most_tokens(body))

    def _fatal(self, error: Exception) -> str | None:
        """The sentence for an error that no retry mends, else None."""
        import openai

        code = getattr(error, "code", None)
        if isinstance(error, openai.AuthenticationError):
            return f"{self._where()} rejects the API key (401): check OPENAI_API_KEY."
        if isinstance(error, openai.PermissionDeniedError):
            return f"{self._where()} denies this key access to {self.model} (403): use another model or another key."
        if isinstance(error, openai.NotFoundError):
            return f"{self._where()} has no model {self.model!r} (404): check TEACHER or JUDGE."
        if isinstance(error, openai.RateLimitError) and code == "insufficient_quota":
            return f"{self._where()} says that the quota of this key is used up (insufficient_quota): top it up, then run again."
        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return f"{self._where()} does not accept the request ({error.status_code}): {str(error.message)[:200]}"
        return None

    def _fail(self, sentence: str) -> None:
        if self._stop is None:
            self._stop = CourseError(sentence + self._kept())

    def _kept(self) -> str:
        if self._journal is None:
            return ""
        return f" What was answered is kept in {self._journal.path.name}; run again to go on from there."

    def _where(self) -> str:
        return self.base_url or "api.openai.com"

    # --- money ---------------------------------------------------------------------------------------------------

    def _worst_case(self, request: dict) -> float:
        if self.prices is None:
            return 0.0
        tokens = prompt_tokens(request["messages"])
        return (tokens * self.prices[0] + (_most_tokens(request) - tokens) * self.prices[2]) / 1e6

    async def _reserve(self, worst: float) -> bool:
        """Reserve the worst case; wait while requests under way may still turn out cheaper; False when the budget is gone."""
        async with self._changed:
            while self.budget_usd is not None and self._spent + self._reserved + worst > self.budget_usd + 1e-12:
                if self._stop is None and self._reserved == 0:
                    self._stop = BudgetExceeded(
                        f"The next request may cost ${worst:.4f}, and ${self._spent:.4f} of the budget of ${self.budget_usd:.2f} is "
                        f"spent: raise BUDGET_USD or ask for less.{self._kept()}"
                    )
                if self._stop is not None:
                    return False
                await self._changed.wait()
            if self._stop is not None:
                return False
            self._reserved += worst
            return True

    async def _release(self, worst: float) -> None:
        async with self._changed:
            self._reserved = max(0.0, self._reserved - worst)
            self._changed.notify_all()

    def _book(self, key: str, body: dict, completion, seconds: float) -> dict:
        """Count what was billed and write the journal, before anything else can go wrong with the answer."""
        choice, usage = completion.choices[0], completion.usage
        prompt, output = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None) or 0
        rates = self.prices or FREE
        cost = ((prompt - cached) * rates[0] + cached * rates[1] + output * rates[2]) / 1e6
        entry = {
            "key": key,
            "model": completion.model,
            "system_fingerprint": completion.system_fingerprint,  # where a stand-in says that it is one
            "request": body,
            "reply": {
                "content": choice.message.content or "",
                "refusal": choice.message.refusal,
                "finish_reason": choice.finish_reason,
            },
            "usage": {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": output},
            "cost_usd": cost,
            "seconds": round(seconds, 3),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._spent += cost
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += output
        self.usage.cost_usd += cost
        if self._journal:
            self._journal.append(entry)
        return entry

    # --- journal -------------------------------------------------------------------------------------------------

    def _key(self, request: dict, schema) -> str:
        """Hash of everything the answer depends on. A server on this machine is known by its path: its port changes."""
        url = urlsplit(self.base_url or "https://api.openai.com/v1")
        endpoint = url.path if _is_loopback(self.base_url) else f"{url.netloc}{url.path}"
        parts = [endpoint, self.model, request, schema.model_json_schema() if schema else None]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    def _lookup(self, key: str) -> dict | None:
        return self._journal.entries.get(key) if self._journal else None

    def _from_journal(self, key: str, schema) -> Reply | None:
        entry = self._lookup(key)
        if entry is None:
            return None
        self.usage.cached += 1
        reply = _read(entry, schema)
        reply.cached = True
        return reply


class Journal:
    """Append-only JSON Lines of answered requests, one `write` and one `fsync` each.

    A process killed while writing leaves at most one torn last line, which is cut off when the journal is opened again; its
    request counts as unanswered. A malformed line anywhere else is damage, and a CourseError names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(self.path, len(whole))
        records = utils.read_jsonl(self.path, ("key", "reply", "cost_usd", "usage")) if self.path.exists() else []
        self.entries = {record["key"]: record for record in records}

    def append(self, entry: dict) -> None:
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        with utils.disk_errors(self.path), open(self.path, "ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
        self.entries[entry["key"]] = entry


def _read(entry: dict, schema: type[BaseModel] | None) -> Reply:
    """A journal entry as a Reply, with the schema checked now, so that a stored bad answer stays a bad answer."""
    from pydantic import ValidationError

    stored = entry["reply"]
    reply = Reply(
        text=stored["content"],
        finish_reason=stored["finish_reason"],
        usage=entry["usage"],
        cost_usd=entry["cost_usd"],
        key=entry["key"],
    )
    if stored.get("refusal"):
        reply.error = f"refused: {stored['refusal'][:100]}"
    elif schema is not None:
        try:
            reply.parsed = schema.model_validate_json(reply.text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            cut = "cut off by max_completion_tokens, " if reply.finish_reason == "length" else ""
            reply.error = f"{cut}does not match the schema{' at ' + where if where else ''}: {problem['msg'][:100]}"
    elif reply.finish_reason == "length":
        reply.error = "cut off by max_completion_tokens"
    return reply


def response_format(schema: type[BaseModel]) -> dict:
    """The `response_format` that asks an OpenAI-compatible server to follow a pydantic model strictly."""
    return {
        "type": "json_schema",
        "json_schema": {"name": schema.__name__, "strict": True, "schema": schema.model_json_schema()},
    }


def prompt_tokens(messages: list[dict]) -> int:
    """An upper estimate of prompt tokens without a tokenizer: a third of the UTF-8 bytes, for Hangul (3 bytes, about one token
    a syllable) as for English (about four bytes a token), and a little for each message's frame."""
    return sum(math.ceil(len(message["content"].encode()) / 3) + 8 for message in messages)


def _most_tokens(request: dict) -> int:
    return prompt_tokens(request["messages"]) + request.get("max_completion_tokens", DEFAULT_TOKENS)


def _is_loopback(url: str | None) -> bool:
    host = urlsplit(url).hostname if url else None
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


def _wait(state) -> float:
    """Seconds before the next attempt: what the server asks for, else exponential with jitter."""
    import tenacity

    response = getattr(state.outcome.exception(), "response", None)
    headers = getattr(response, "headers", {})
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(float(headers[name]) * scale, 120.0)
        except (KeyError, ValueError):
            continue
    return tenacity.wait_random_exponential(multiplier=0.5, max=20)(state)
