"""Keep to a server's limits on requests and tokens a minute, those it was given and those that the
server announces.

What it does: let requests through one after another, as evenly as the limits ask for, and hold all
of them back when the server says so. What it does not do: send or retry anything.

Why evenly: a bucket that starts full lets a whole minute's worth through at once and as much again
while it refills, up to twice the limit in the first minute, and servers also enforce a minute's
limit by the second. Why our own: a limit is learned, and may change, while requests wait
(aiolimiter's rate is fixed), and one request may be a large part of a minute's tokens.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from utils import CourseError

SHARE = 0.98  # of a limit that is used, since requests do not arrive as evenly as they are sent ...
MINUTE = 61.0  # ... and seconds in which no more than the limit is sent, for the same reason
LATE = 0.02  # seconds a request may be late without delaying all after it: timers are not exact
LONGEST = 120.0  # seconds that a server's own count of what is left may hold us back


class Limit:
    """One limit, of requests or tokens a minute: the lower of the given and the learned one;
    infinite while neither is known."""

    def __init__(self, given: float | None) -> None:
        self.given, self.learned = given or math.inf, math.inf
        self._sent: deque[tuple[float, float]] = deque()  # time and amount, of the last minute ...
        self._total = 0.0  # ... and their sum
        self._next = 0.0  # when the next may go, were it only for evenness
        # The server's own count, and when it was read ...
        self._left, self._seen = math.inf, 0.0
        # ... seconds until it is full again, as the server says, and as we wait for it
        self._until_full = self._reset = 0.0

    @property
    def per_minute(self) -> float:
        return min(self.given, self.learned)

    def learn(
        self, limit: str | None, remaining: str | None, reset: str | None, now: float
    ) -> None:
        """Take note of one answer's x-ratelimit-* headers; what is absent or unreadable is left as
        it was."""
        if (value := _number(limit)) and value > 0:
            # Those sent before the limit was known count as if sent evenly
            if math.isinf(self.per_minute) and self._sent:
                self._next = self._sent[0][0] + self._total * 60 / (SHARE * value)
            self.learned = value
        if (left := _number(remaining)) is not None and (wait := seconds(reset)) is not None:
            self._left, self._until_full, self._seen = left, wait, now
            self._reset = min(wait, LONGEST)

    @property
    def until_full(self) -> float:
        """Seconds until a limit that the server calls exhausted is full again; 0 if it is not
        exhausted."""
        return self._until_full if self._left < 1 else 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be sent; not positive if it may be now."""
        if math.isinf(self.per_minute):
            return 0.0
        when = self._next
        while self._sent and self._sent[0][0] <= now - MINUTE:
            self._total -= self._sent.popleft()[1]
        excess = self._total + amount - self.per_minute
        for then, sent in self._sent:
            if excess <= 0:
                break
            when, excess = max(when, then + MINUTE), excess - sent
        if self._left < amount and self._left < self.learned < math.inf:
            # Somebody else uses the same key. Servers mostly refill steadily; where one does not,
            # its 429 says how long to wait
            share = min(1.0, (amount - self._left) / (self.learned - self._left))
            when = max(when, self._seen + self._reset * share)
        return when - now

    def take(self, amount: float, now: float) -> None:
        self._sent.append((now, amount))
        self._total += amount
        self._left -= amount
        if not math.isinf(self.per_minute):
            self._next = max(self._next, now - LATE) + amount * 60 / (SHARE * self.per_minute)


class Limits:
    """Requests and tokens a minute of one endpoint, for all requests of one client.

    Args:
        requests_per_minute, tokens_per_minute: limits to stay under; None for what the server
            announces.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self.requests, self.tokens = Limit(requests_per_minute), Limit(tokens_per_minute)
        self._resume = 0.0  # when the server wants to hear from us again
        self._loop: asyncio.AbstractEventLoop | None = None

    def refuse_oversize(self, tokens: int) -> None:
        """CourseError for a request that could never be sent."""
        if tokens > self.tokens.per_minute:
            raise CourseError(
                f"A request may need {tokens:,} tokens, over the limit of "
                f"{self.tokens.per_minute:,.0f} a minute: shorten the prompt "
                "or max_completion_tokens, or raise tokens_per_minute where the server allows it."
            )

    async def acquire(self, tokens: int) -> None:
        """Wait for the turn of one request of at most `tokens`. Requests go in the order in which
        they came."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # locks belong to one event loop; scripts may start several
            self._loop, self._turn = loop, asyncio.Lock()
        async with self._turn:
            self.refuse_oversize(tokens)
            while (wait := self._wait(tokens)) > 0:
                await asyncio.sleep(wait)
            now = time.monotonic()
            self.requests.take(1, now)
            self.tokens.take(tokens, now)

    def _wait(self, tokens: int) -> float:
        now = time.monotonic()
        return max(self._resume - now, self.requests.wait(1, now), self.tokens.wait(tokens, now))

    def learn(self, headers: Mapping[str, str]) -> None:
        """Read what an answer says about the limits."""
        now = time.monotonic()
        for limit, name in ((self.requests, "requests"), (self.tokens, "tokens")):
            limit.learn(
                headers.get(f"x-ratelimit-limit-{name}"),
                headers.get(f"x-ratelimit-remaining-{name}"),
                headers.get(f"x-ratelimit-reset-{name}"),
                now,
            )

    def pause(self, wait: float) -> None:
        """Hold all requests back for so many seconds."""
        self._resume = max(self._resume, time.monotonic() + wait)

    def asked_to_wait(self, headers: Mapping[str, str]) -> float | None:
        """Seconds that an answer asks us to wait: its retry-after, else the reset of the limit that
        is used up."""
        if (value := _number(headers.get("retry-after-ms"))) is not None:
            return value / 1000
        if (value := seconds(headers.get("retry-after"))) is not None:
            return value
        try:
            date = parsedate_to_datetime(headers["retry-after"])
            return max(date.timestamp() - time.time(), 0.0)
        except (KeyError, ValueError):
            return max(self.requests.until_full, self.tokens.until_full) or None


def seconds(duration: str | None) -> float | None:
    """Seconds of OpenAI's durations such as '1s', '6m0s', '120ms' or '23h47m36.6s', or of a plain
    number; None for others."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)", duration or "")
    if not parts or "".join(map("".join, parts)) != duration:
        return _number(duration)
    unit = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
    return sum(float(value) * unit[name] for value, name in parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
