"""A hard budget in dollars: the worst case is reserved before anything is sent, and what it really
cost is booked afterwards.

What it does: keep the sum of spent, reserved and possibly spent money under a limit, also where a
server writes more than it was allowed to. What it does not do: know prices. It needs the standard
library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable

from utils import CourseError

NOTHING = 1e-12  # dollars; sums of floats are not exact
MARGIN = 1.5  # over the worst excess seen so far, for what follows


class BudgetExceeded(CourseError):
    """The next request could have gone over the budget, so it was not sent."""


class Budget:
    """Money of one client.

    Args:
        limit_usd: None for no limit.
        held_usd: called for what batches that are not collected yet may cost.
    """

    def __init__(self, limit_usd: float | None, held_usd: Callable[[], float]) -> None:
        if limit_usd is not None and not (math.isfinite(limit_usd) and limit_usd >= 0):
            raise CourseError(
                f"The budget is {limit_usd!r}; give BUDGET_USD in dollars, 0 or more."
            )
        self.limit_usd, self._held_usd = limit_usd, held_usd
        self.spent_usd = 0.0
        self.lost_usd = 0.0  # at worst, of answers that never arrived: they may have been billed
        self.scale = 1.0  # of the worst case, since a reply was dearer than it
        self._unbounded = False  # true once a reply was dearer even than the scale allows
        self._reserved = 0.0  # worst cases, without the scale
        self._waiting: list[asyncio.Future] = []

    def remember(self, paid: list[tuple[float, float]]) -> None:
        """Learn the scale from earlier replies: `(cost, worst case)` of each."""
        ratios = [cost / worst for cost, worst in paid if worst > 0]
        most = max(ratios, default=0.0)
        self.scale = most * MARGIN if most > 1 + NOTHING else 1.0

    def learn(self, cost_usd: float, worst_usd: float) -> None:
        """Take note of what a reply cost: where it was dearer than it could be, all that follows is
        reserved at the rate seen; where that did not hold either, nothing follows."""
        if worst_usd <= 0 or cost_usd <= worst_usd * self.scale + NOTHING:
            return
        self._unbounded = self.scale > 1
        self.scale = cost_usd / worst_usd * MARGIN

    @contextlib.asynccontextmanager
    async def reserve(self, worst_usd: float, what: str) -> AsyncIterator[None]:
        """Reserve the worst case while the block runs; wait first while requests under way may
        still turn out cheaper.

        Raises:
            BudgetExceeded: nothing is under way, and there is not enough left.
        """
        while self.limit_usd is not None:
            if self._unbounded:
                raise BudgetExceeded(
                    "The server does not keep to max_completion_tokens: a reply cost "
                    f"{self.scale / MARGIN:.1f} times its worst case, more than any before, so no "
                    "budget can be kept. Limit the answers at the server, or ask another."
                )
            unsure = self.lost_usd + self._held_usd()
            wanted = (self._reserved + worst_usd) * self.scale
            if self.spent_usd + unsure + wanted <= self.limit_usd + NOTHING:
                break
            if self._reserved <= NOTHING:
                raise BudgetExceeded(self._sentence(what, worst_usd, unsure))
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self._reserved += worst_usd
        try:
            yield
        finally:  # after the booking, so that the money is never neither reserved nor spent
            self._reserved -= worst_usd
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _sentence(self, what: str, worst_usd: float, unsure: float) -> str:
        more, lost = "", ""
        if self.scale > 1:
            more = (
                f" ({self.scale:.1f} times its worst case, because the server wrote more than "
                "max_completion_tokens allows)"
            )
        if unsure > NOTHING:
            lost = f" (and up to ${unsure:.4f} for answers that were lost or wait in a batch)"
        return (
            f"{what} may cost ${worst_usd * self.scale:.4f}{more}, and ${self.spent_usd:.4f} of "
            f"the budget of ${self.limit_usd:.2f} is spent{lost}: raise BUDGET_USD or ask for less."
        )
