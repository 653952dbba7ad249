"""Reach an OpenAI-compatible endpoint: one request, with its retries, and a sentence for each error
that no retry mends.

What it does: send, keep to the limits, tell errors that may pass from those that stay. What it does
not do: know about money or the journal. Importing it does not import openai.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from llm import models
from llm.limits import Limits

T = TypeVar("T")
# Error codes that concern one request only: the others may well be answered
OWN_FAULT = (
    "context_length_exceeded",
    "content_filter",
    "content_policy_violation",
    "string_above_max_length",
)

CONNECT = 15.0  # seconds to reach a server
RAW = {"X-Stainless-Raw-Response": "true"}  # what the SDK's `with_raw_response` sets


class Unreadable(Exception):
    """A server said that all is well (status 200), but what it sent cannot be read. It may have
    been billed."""


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
        self.model, self.base_url, self.limits, self.attempts, self.timeout = (
            model,
            base_url,
            limits,
            attempts,
            timeout,
        )
        self._api_key = api_key
        self.name = base_url or "api.openai.com"

    def open(self):
        """The SDK's client, to be used with `async with` (its connections belong to one event
        loop)."""
        import openai

        try:
            http = (
                openai.DefaultAioHttpClient()
            )  # half the work per request, where openai[aiohttp] is installed
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

    async def send(self, sdk, body: dict):
        """One chat completion, asked once.

        Raises:
            openai.APIError: what the server or the connection said.
            Unreadable: malformed JSON or no completion in it; the SDK itself lets both through
                (`response.parse`).
        """
        import openai
        from openai.types.chat import ChatCompletion

        headers: Mapping[str, str] = {}
        try:
            # The raw response, because `chat.completions.parse` raises on a schema mismatch and
            # forgets what was billed; and the SDK's plain `post`, because `create` copies typed
            # parameters element by element, a tenth of a request's work
            response = await sdk.post(
                "/chat/completions", cast_to=ChatCompletion, body=body, options={"headers": RAW}
            )
            headers = response.headers
        except openai.APIStatusError as error:
            headers = error.response.headers
            raise
        finally:
            self.limits.learn(headers)
        try:
            completion = ChatCompletion.model_validate_json(response.content)
        # malformed, or a server that leaves fields out: the SDK's own reading is slower and asks
        # for less
        except ValueError:
            try:
                completion = response.parse()
            except ValueError as error:
                raise Unreadable(f"malformed JSON ({error})") from None
        if (
            not isinstance(completion, ChatCompletion)
            or not completion.choices
            or completion.choices[0].message is None
        ):
            raise Unreadable("no chat completion in it")
        return completion

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call `attempt` until it succeeds, fails for good or has been called `attempts` times;
        then its error is raised."""
        import openai
        import tenacity

        passing = (
            openai.APIConnectionError,  # timeouts too
            openai.RateLimitError,
            openai.InternalServerError,
            openai.ConflictError,
            Unreadable,
        )
        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=20)

        def wait(state) -> float:
            error = state.outcome.exception()
            asked = (
                self.limits.asked_to_wait(error.response.headers)
                if isinstance(error, openai.APIStatusError)
                else None
            )
            pause = backoff(state) if asked is None else asked
            if isinstance(error, openai.RateLimitError):
                self.limits.pause(
                    pause
                )  # all requests, or each of them would run into the same wall
            return pause

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, passing) and not self._refused(error)
            ),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=wait,
            reraise=True,
        )

        async def awaited() -> (
            T
        ):  # tenacity awaits coroutine functions only, and no lambda that returns a coroutine
            return await attempt()

        return await retrying(awaited)

    def fatal(self, error: Exception) -> str | None:
        """The sentence for an error after which no other request can succeed either, else None."""
        if _never_arrived(error):
            return (
                f"{self.name} cannot be reached ({type(error).__name__}): is it running, and "
                "is the address right?"
            )
        return self._refused(error)

    def _refused(self, error: Exception) -> str | None:
        import openai

        code = getattr(error, "code", None)
        if isinstance(error, openai.AuthenticationError):
            return f"{self.name} rejects the API key (401): check OPENAI_API_KEY."
        if isinstance(error, openai.PermissionDeniedError):
            return (
                f"{self.name} denies this key access to {self.model} (403): use another model "
                "or another key."
            )
        if isinstance(error, openai.NotFoundError):
            hint = models.retirement(self.model) or "check TEACHER or JUDGE."
            return f"{self.name} has no model {self.model!r} (404): {hint}"
        if isinstance(error, openai.RateLimitError) and code == "insufficient_quota":
            return (
                f"{self.name} says that the quota of this key is used up (insufficient_quota): "
                "top it up, then run again."
            )
        if (
            isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
            and code not in OWN_FAULT
        ):
            return (
                f"{self.name} does not accept the request ({error.status_code}): "
                f"{str(error.message)[:200]}"
            )
        return None

    def failure(self, error: Exception) -> str:
        """Why one request has no answer, where others may have one."""
        if code := getattr(error, "status_code", None):
            detail = getattr(error, "code", None)
            return (
                f"{detail} ({code})"
                if detail in OWN_FAULT
                else f"server error {code} after {self.attempts} attempts"
            )
        return (
            f"no complete answer after {self.attempts} attempts "
            f"({error if isinstance(error, Unreadable) else type(error).__name__})"
        )


def may_be_billed(error: BaseException) -> bool:
    """True if the server may have answered, and counted the tokens, although no answer arrived
    here."""
    import openai

    return not isinstance(error, openai.APIStatusError) and not _never_arrived(error)


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


def is_loopback(url: str | None) -> bool:
    host = urlsplit(url).hostname if url else None
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))
