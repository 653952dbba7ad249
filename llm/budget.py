"""A hard budget in dollars: the worst case is reserved before anything is sent, and what it really
cost is booked afterwards.

What it does: keep the sum of spent, reserved and possibly spent money under a limit. What it does
not do: know prices. It needs the standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from utils import CourseError

NOTHING = 1e-12  # dollars; sums of floats are not exact


class BudgetExceeded(CourseError):
    """The next request could have gone over the budget, so it was not sent."""


class Budget:
    """Money of one client.

    Args:
        limit_usd: None for no limit.
        spent_usd: what was paid before.
        held_usd: called for what batches that are not collected yet may cost.
    """

    def __init__(
        self, limit_usd: float | None, spent_usd: float, held_usd: Callable[[], float]
    ) -> None:
        self.limit_usd, self.spent_usd, self._held_usd = limit_usd, spent_usd, held_usd
        self.lost_usd = 0.0  # at worst, of answers that never arrived: they may have been billed
        self._reserved = 0.0
        self._waiting: list[asyncio.Future] = []

    @contextlib.asynccontextmanager
    async def reserve(self, worst_usd: float, what: str) -> AsyncIterator[None]:
        """Reserve the worst case while the block runs; wait first while requests under way may
        still turn out cheaper.

        Raises:
            BudgetExceeded: nothing is under way, and there is not enough left.
        """
        while self.limit_usd is not None:
            unsure = self.lost_usd + self._held_usd()
            if self.spent_usd + unsure + self._reserved + worst_usd <= self.limit_usd + NOTHING:
                break
            if self._reserved <= NOTHING:
                raise BudgetExceeded(
                    f"{what} may cost ${worst_usd:.4f}, and ${self.spent_usd:.4f} of the budget "
                    f"of ${self.limit_usd:.2f} is spent"
                    + (
                        f" (and up to ${unsure:.4f} for answers that were lost or wait in a batch)"
                        if unsure > NOTHING
                        else ""
                    )
                    + ": raise BUDGET_USD or ask for less."
                )
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
