"""Reach an OpenAI-compatible endpoint: one request, with its retries, and a sentence for each
answer that is none.

What it does: send, keep to the limits, tell failures that may pass from those that stay, and those
of one request from those of all. What it does not do: know about money or the journal. Importing it
does not import openai.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import ipaddress
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar
from urllib.parse import urlsplit

import utils
from llm import answers, models
from llm.answers import Answer
from llm.limits import Limits
from utils import CourseError

T = TypeVar("T")
CONNECT = 15.0  # seconds to reach a server
LOOK = 3.0  # seconds for a look at the list of its models
WEEK = 7 * 86400.0
BACKOFF, LONGEST = 0.5, 20.0  # seconds: at random up to the first, twice that, ..., the second
LISTED = 8  # of them in a sentence
PATIENCE = 300.0  # seconds that a server may ask us to wait; a longer wait is for another day
RAW = {"X-Stainless-Raw-Response": "true"}  # what the SDK's `with_raw_response` sets

# What a request may be sent without, where a server refuses it: None, or by which name instead
OPTIONAL = {
    "temperature": None,
    "top_p": None,
    "seed": None,
    "reasoning_effort": None,
    "max_completion_tokens": "max_tokens",
}
# Statuses that may pass, and what to say of those after which no other request can succeed
PASSING = (200, 408, 409, 425, 429, 500, 502, 503, 504)
QUOTA = (
    "says that the quota of this key is used up (insufficient_quota): top it up, then run again."
)
LASTING = {
    401: "rejects the API key (401): check OPENAI_API_KEY.",
    402: "wants to be paid first (402): {said}",
    403: "denies this key access to {model} (403): use another model or another key ({said}).",
}
UNKNOWN = (
    r"unsupported|not support|unrecogni|unknown|extra|not permitted|not allowed|does not accept"
)
# Errors that concern one request only: the others may well be answered
TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|string_above_max_length"
    r"|context (length|size|window)|(prompt|input|request)[^.]* too (long|large)"
    r"|exceeds?[^.]* tokens|maximum[^.]* tokens",
    re.I,
)
UNWANTED = re.compile(r"content.?filter|content.?policy|moderation|flagged|invalid_prompt", re.I)


class Kind(Enum):
    """What a failure means for the other requests."""

    PASSES = "it may pass: ask again"
    OWN = "this request's own: the others may be answered"
    REFUSED = "this request is refused, and perhaps all are"
    LASTS = "no other request can be answered either"


@dataclass(eq=False)
class Failure(Exception):
    """A request without an answer, and why in one sentence."""

    sentence: str
    kind: Kind
    may_be_billed: bool = False  # the server may have counted the tokens all the same
    wait: float | None = None  # seconds that it asks us to wait
    status: int | None = None  # of the server's answer; None where there was none

    def __str__(self) -> str:
        return self.sentence


class Endpoint:
    """One model at one server; the arguments are those of `client.Client`."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        api_key: str,
        limits: Limits,
        attempts: int,
        timeout: float,
    ) -> None:
        self.model, self.base_url, self.limits = model, base_url, limits
        self.attempts, self.timeout = attempts, timeout
        self._api_key = api_key
        self.name = base_url or "api.openai.com"
        self._refused: set[str] = set()  # parameters that the server does not take

    def open(self):
        """The SDK's client, to be used with `async with` (its connections belong to one event
        loop)."""
        import openai

        try:
            # Half the work per request, where openai[aiohttp] is installed
            http = openai.DefaultAioHttpClient()
        except RuntimeError:
            http = None
        # Our own retries, because the SDK also retries an exhausted quota and holds back one
        # request only
        wait = openai.Timeout(self.timeout, connect=min(self.timeout, CONNECT))
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key,
            max_retries=0,
            timeout=wait,
            http_client=http,
        )

    async def send(self, sdk, body: dict) -> Answer:
        """One chat completion, asked once; once more for each parameter that the server refuses.

        Raises:
            Failure: there is no completion.
        """
        while True:
            sent = self._accepted(body)
            answer = await self._post(sdk, sent)
            if answer.completion:
                return answer
            refused = self._refused_parameter(answer, sent)
            if refused is None:
                raise await self._misplaced(sdk, answer) or self.failure(answer)
            self._refused.add(refused)

    async def _post(self, sdk, body: dict) -> Answer:
        import openai

        try:
            # The raw response, because the SDK's own reading raises on what it does not expect and
            # forgets what was billed; and its plain `post`, because `create` copies typed
            # parameters element by element, a tenth of a request's work
            raw = await sdk.post(
                "/chat/completions", cast_to=object, body=body, options={"headers": RAW}
            )
            answer = _answer(raw.http_response)
        except openai.APIStatusError as error:
            answer = _answer(error.response)
        self.limits.learn(answer.headers)
        return answer

    def _accepted(self, body: dict) -> dict:
        """The body without what this server refuses."""
        sent = dict(body)
        for name in self._refused & body.keys():
            value = sent.pop(name)
            if instead := OPTIONAL[name]:
                sent[instead] = value
        return sent

    def _refused_parameter(self, answer: Answer, sent: dict) -> str | None:
        """The optional parameter that an error is about, None where it is about another thing."""
        if answer.status not in (400, 422):
            return None
        for name in OPTIONAL.keys() & sent.keys():
            said = rf"\b{name}\b.*({UNKNOWN})|({UNKNOWN}).*\b{name}\b"
            if answer.parameter == name or re.search(said, answer.problem, re.I | re.S):
                return name
        return None

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what the SDK raises into a Failure."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self.failure(_answer(error.response)) from None
        except openai.APIError as error:  # the connection broke, timed out or never was
            if _never_arrived(error):
                raise Failure(self._unreachable(error), Kind.PASSES) from None
            raise Failure(type(error).__name__, Kind.PASSES, may_be_billed=True) from None

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call `attempt` until it succeeds, fails for good or has been called `attempts` times;
        then its Failure is raised."""
        for number in range(1, self.attempts + 1):
            try:
                with self.failures():
                    return await attempt()
            except Failure as failure:
                if failure.kind is not Kind.PASSES:
                    raise
                if number == self.attempts:
                    raise self._lasting(failure) from None
                wait = random.uniform(0, min(BACKOFF * 2 ** (number - 1), LONGEST))
                if failure.wait is not None:
                    wait = min(failure.wait, PATIENCE)
                if failure.status == 429:
                    # All requests, or each of them would run into the same wall
                    self.limits.pause(wait)
            await asyncio.sleep(wait)
        raise AssertionError("attempts are 1 or more")

    def _lasting(self, failure: Failure) -> Failure:
        """A failure that has not passed."""
        said = f"after {self.attempts} attempts ({failure})"
        if failure.status is None and not failure.may_be_billed:  # no connection
            return replace(failure, kind=Kind.LASTS)
        if failure.status in (None, 200):
            return replace(failure, sentence=f"no complete answer {said}")
        return replace(failure, sentence=f"server error {failure.status} {said}")

    # --- what an answer without a completion means ------------------------------------------------

    def failure(self, answer: Answer) -> Failure:
        """What an answer without a completion means."""
        status, said = answer.status, answer.problem
        about = f"{answer.code} {said}"
        wait = self.limits.asked_to_wait(answer.headers) if answer.headers else None
        if "insufficient_quota" in about:
            kind, sentence = Kind.LASTS, QUOTA
        elif TOO_LONG.search(about) and status in (200, 400, 413, 422, 500):
            kind, sentence = Kind.OWN, f"the request is too long ({status}): {said}"
        elif UNWANTED.search(about) and status in (200, 400, 403, 422):
            kind, sentence = Kind.OWN, f"refused by the server ({status}): {said}"
        elif status in LASTING:
            kind, sentence = Kind.LASTS, LASTING[status].format(model=self.model, said=said)
        elif wait is not None and wait > PATIENCE and status in (429, 503):
            then = time.strftime("%H:%M", time.localtime(time.time() + min(wait, WEEK)))
            kind = Kind.LASTS
            sentence = (
                f"takes no more requests before {then}, in {wait / 60:.0f} minutes "
                f"({status}: {said}): run again then."
            )
        elif status in PASSING or status > 505:
            kind, sentence = Kind.PASSES, said
        else:
            kind, sentence = Kind.REFUSED, f"does not accept the request ({status}): {said}"
            if re.search(r"response_format|json_schema|structured", answer.parameter + said):
                sentence += " Set REPLY_FORMAT to 'text' for a server that takes no JSON schema."
        if kind in (Kind.LASTS, Kind.REFUSED):
            sentence = f"{self.name} {sentence}"
        return Failure(sentence, kind, answer.may_be_billed, wait, status)

    async def _misplaced(self, sdk, answer: Answer) -> Failure | None:
        """The failure where nothing is at this address, or not this model, with what there is; None
        where the answer is about something else."""
        status = answer.status
        rootless = urlsplit(self.base_url or "/v1").path.strip("/") == ""  # not even /v1
        if status not in (404, 405) and not (status == 200 and rootless):
            return None
        sentence = f"has no chat completions there ({status}: {answer.problem}): check BASE_URL."
        served = await self.served(sdk)
        if rootless and await self.served(sdk, "/v1/models"):
            sentence = (
                f"has no chat completions ({status}), but {self.name.rstrip('/')}/v1 has: "
                "put /v1 at the end of BASE_URL."
            )
        elif status == 200:
            return None
        elif status == 404 and self.model not in served:
            nearest = difflib.get_close_matches(self.model, served, LISTED, cutoff=0.0)
            listed = f"it serves {', '.join(nearest)}." if served else f"{answer.problem}."
            hint = models.retirement(self.model) or f"check TEACHER or JUDGE; {listed}"
            if rootless:
                hint += " Does the address lack /v1 at its end (BASE_URL)?"
            sentence = f"has no model {self.model!r} (404): {hint}"
        return Failure(f"{self.name} {sentence}", Kind.LASTS, status=status)

    async def served(self, sdk, path: str = "/models") -> list[str]:
        """The models that the server lists, by name; none where it has no such list."""
        import openai

        try:
            request = sdk.get(path, cast_to=object, options={"headers": RAW, "timeout": LOOK})
            listed, _ = answers.json_value((await request).http_response.text)
        except (openai.APIError, ValueError):
            return []
        data = listed.get("data") if isinstance(listed, dict) else None
        names = [one.get("id") for one in data or [] if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str)]

    def _unreachable(self, error: Exception) -> str:
        host = urlsplit(self.base_url or "").hostname or ""
        hint = "is it running, and is the address right?"
        if is_local(self.base_url) and utils.where() == "colab":
            hint = f"{host} is an address of your own network, which Colab does not see."
        elif is_local(self.base_url) and not is_loopback(self.base_url):
            hint = "is it running, and does it listen for other machines too (--host 0.0.0.0)?"
        return f"{self.name} cannot be reached ({type(error).__name__}): {hint}"


def _answer(response) -> Answer:
    """The SDK's response as an answer; its HTTP library may be httpx, httpx2 or aiohttp."""
    return answers.from_http(response.status_code, response.headers, response.content)


def _never_arrived(error: BaseException) -> bool:
    """True if there was no connection. Told by names, because the SDK's HTTP library may be httpx,
    httpx2 or aiohttp."""
    names = set()
    cause: BaseException | None = error
    while cause is not None:
        names.add(type(cause).__name__)
        cause = cause.__cause__
    # The SDK calls aiohttp's broken connections connect timeouts too
    return not names.isdisjoint(("ConnectError", "ConnectTimeout")) and names.isdisjoint(
        ("ServerDisconnectedError", "ClientOSError")
    )


# --- addresses ------------------------------------------------------------------------------------


def check_address(url: str | None) -> None:
    """CourseError for an address that cannot be one, with what it should be."""
    if url is None:
        return
    if not re.match(r"https?://[^/]", url):
        bare = url.split("://")[-1].lstrip("/")
        scheme = "http" if is_local(f"http://{bare}") else "https"
        raise CourseError(
            f"BASE_URL is {url!r}, which names no server: write {scheme}://{bare} "
            "(such as http://localhost:8000/v1)."
        )
    if url.rstrip("/").endswith(("/chat/completions", "/completions")):
        short = re.sub(r"(/chat)?/completions/?$", "", url)
        raise CourseError(f"BASE_URL is {url!r}: leave out what follows /v1, that is, {short}.")


def is_loopback(url: str | None) -> bool:
    """True for a server on this machine."""
    host = urlsplit(url).hostname if url else None
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


def is_local(url: str | None) -> bool:
    """True for a server on this machine or in its own network: an address that the world has not,
    or a name without a dot."""
    host = (urlsplit(url).hostname or "") if url else ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return bool(host) and ("." not in host or host.endswith((".local", ".internal", ".lan")))
