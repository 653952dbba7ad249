"""Reach an OpenAI-compatible endpoint: one request, with its retries, and a sentence for each
answer that is none.

What it does: send, keep to the limits, tell failures that may pass from those that stay, and those
of one request from those of all. What it does not do: know about money or the journal. Importing it
does not import openai.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Iterator
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
DAY = 86400.0
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


class Failure(Exception):
    """A request without an answer, and why in one sentence.

    Args:
        may_be_billed: the server may have answered, and counted the tokens, all the same.
        wait: seconds that it asks us to wait.
        answer: what the server said; None where nothing arrived.
    """

    def __init__(
        self,
        sentence: str,
        kind: Kind,
        may_be_billed: bool = False,
        wait: float | None = None,
        answer: Answer | None = None,
    ) -> None:
        super().__init__(sentence)
        self.kind, self.may_be_billed, self.wait, self.answer = kind, may_be_billed, wait, answer

    @property
    def status(self) -> int | None:
        """Of the server's answer; None where there was none."""
        return self.answer.status if self.answer else None


class Endpoint:
    """One model at one server.

    Args:
        model: its name there, for messages.
        base_url: None for OpenAI.
        attempts: tries per request for errors that may pass (429, 5xx, lost connections, unreadable
            answers).
        timeout: seconds without a byte after which an answer counts as lost.
    """

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

        response = None
        try:
            # The raw response, because the SDK's own reading raises on what it does not expect and
            # forgets what was billed; and its plain `post`, because `create` copies typed
            # parameters element by element, a tenth of a request's work
            raw = await sdk.post(
                "/chat/completions", cast_to=object, body=body, options={"headers": RAW}
            )
            response = raw.http_response
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIError as error:
            raise self._broken(error) from None
        finally:
            self.limits.learn({} if response is None else response.headers)
        return answers.from_http(response.status_code, response.headers, response.content)

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
            response = error.response
            answer = answers.from_http(response.status_code, response.headers, response.content)
            raise self.failure(answer) from None
        except openai.APIError as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> Failure:
        """What a connection that broke, timed out or never was means."""
        if _never_arrived(error):
            return Failure(self._unreachable(error), Kind.PASSES)
        return Failure(type(error).__name__, Kind.PASSES, may_be_billed=True)

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call `attempt` until it succeeds, fails for good or has been called `attempts` times;
        then its Failure is raised."""
        import tenacity

        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=20)

        def wait(state) -> float:
            failure = state.outcome.exception()
            pause = backoff(state) if failure.wait is None else min(failure.wait, PATIENCE)
            if failure.status == 429:
                # All requests, or each of them would run into the same wall
                self.limits.pause(pause)
            return pause

        def may_pass(error: BaseException) -> bool:
            return isinstance(error, Failure) and error.kind is Kind.PASSES

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(may_pass),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=wait,
            reraise=True,
        )

        async def awaited() -> T:  # tenacity awaits coroutine functions only
            with self.failures():
                return await attempt()

        try:
            return await retrying(awaited)
        except Failure as failure:
            if failure.kind is Kind.PASSES:
                self._give_up(failure)
            raise

    def _give_up(self, failure: Failure) -> None:
        """Say of a failure that it has not passed."""
        if failure.answer is None and not failure.may_be_billed:  # no connection
            failure.kind = Kind.LASTS
        elif failure.status in (None, 200):
            failure.args = (f"no complete answer after {self.attempts} attempts ({failure})",)
        else:
            said = f"server error {failure.status} after {self.attempts} attempts ({failure})"
            failure.args = (said,)

    # --- what an answer without a completion means ------------------------------------------------

    def failure(self, answer: Answer) -> Failure:
        """What an answer without a completion means."""
        status, said = answer.status, answer.problem
        wait = self.limits.asked_to_wait(answer.headers) if answer.headers else None
        wait = None if wait is None else min(wait, 7 * DAY)

        def lasts(sentence: str) -> Failure:
            return Failure(f"{self.name} {sentence}", Kind.LASTS, answer=answer)

        about = f"{answer.code} {said}"
        if "insufficient_quota" in about:
            return lasts(QUOTA)
        if TOO_LONG.search(about) and status in (200, 400, 413, 422, 500):
            return Failure(f"the request is too long ({status}): {said}", Kind.OWN, answer=answer)
        if UNWANTED.search(about) and status in (200, 400, 403, 422):
            return Failure(f"refused by the server ({status}): {said}", Kind.OWN, answer=answer)
        if status in LASTING:
            return lasts(LASTING[status].format(model=self.model, said=said))
        if wait is not None and wait > PATIENCE and status in (429, 503):
            then = time.strftime("%H:%M", time.localtime(time.time() + wait))
            return lasts(
                f"takes no more requests before {then}, in {wait / 60:.0f} minutes "
                f"({status}: {said}): run again then."
            )
        if status in PASSING or status > 505:
            return Failure(said, Kind.PASSES, answer.may_be_billed, wait, answer)
        hint = ""
        if re.search(r"response_format|json_schema|structured", f"{answer.parameter} {said}"):
            hint = " Set REPLY_FORMAT to 'text' for a server that takes no JSON schema."
        return Failure(
            f"{self.name} does not accept the request ({status}): {said}{hint}",
            Kind.REFUSED,
            answer=answer,
        )

    async def _misplaced(self, sdk, answer: Answer) -> Failure | None:
        """The failure where nothing is at this address, or not this model, with what there is; None
        where the answer is about something else."""
        rootless = urlsplit(self.base_url or "/v1").path.strip("/") == ""  # not even /v1
        if answer.status not in (404, 405) and not (answer.status == 200 and rootless):
            return None

        def failure(sentence: str) -> Failure:
            return Failure(f"{self.name} {sentence}", Kind.LASTS, answer=answer)

        served = await self.served(sdk)
        if rootless and await self.served(sdk, "/v1/models"):
            return failure(
                f"has no chat completions ({answer.status}), but {self.name.rstrip('/')}/v1 has: "
                "put /v1 at the end of BASE_URL."
            )
        if answer.status == 200:
            return None
        if answer.status == 404 and self.model not in served:
            nearest = difflib.get_close_matches(self.model, served, LISTED, cutoff=0.0)
            listed = f"it serves {', '.join(nearest)}." if served else f"{answer.problem}."
            hint = models.retirement(self.model) or f"check TEACHER or JUDGE; {listed}"
            if rootless:
                hint += " Does the address lack /v1 at its end (BASE_URL)?"
            return failure(f"has no model {self.model!r} (404): {hint}")
        return failure(
            f"has no chat completions there ({answer.status}: {answer.problem}): check BASE_URL."
        )

    async def served(self, sdk, path: str = "/models") -> list[str]:
        """The models that the server lists, by name; none where it has no such list."""
        import openai

        try:
            request = sdk.get(path, cast_to=object, options={"headers": RAW, "timeout": LOOK})
            listed = answers.json_of((await request).http_response.content)
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
