"""The loop that ticks and dispatches.

One loop for both, because both use the one hot connection, and because what a tick leaves pending is what dispatch
hands out next: a second loop would only wait for the first. It sleeps until the earliest schedule, or the earliest
pending run that waits for its time, is due.
"""

from __future__ import annotations

from math import inf
from time import monotonic

from scheduler_service.loops.loop import POLL, Connect, Connection, Loop
from scheduler_service.usecases.dispatch import Dispatcher
from scheduler_service.usecases.tick import Ticked, seconds_to_next, tick
from scheduler_service.usecases.wakeups import Topic, Wakeups

# What is due and was not taken is locked by another replica, which settles it, or dies and lets go of it.
_LOCKED = 0.05


class Ticker(Loop):
    """Makes due schedules into runs, and hands pending runs to the sessions of this replica."""

    def __init__(self, connect: Connect, dispatcher: Dispatcher, wakeups: Wakeups) -> None:
        super().__init__("ticker", wakeups.listen(Topic.SCHEDULES, Topic.PENDING), connect)
        self._dispatcher = dispatcher
        self._wakeups = wakeups
        self._schedules = wakeups.listen(Topic.SCHEDULES)
        self._pending = wakeups.listen(Topic.PENDING)
        # By this process's monotonic clock: when a schedule is due, when to ask for the earliest again, and when to
        # look for pending runs.
        self._tick_at = inf
        self._ask_at = 0.0
        self._look_at = 0.0

    async def step(self, connection: Connection) -> bool:
        if self._pending.take() or monotonic() >= self._look_at:
            self._look_at = monotonic() + POLL
            self._dispatcher.look_again()
        handed = await self._dispatch(connection)
        if self._schedules.take() or monotonic() >= self._ask_at:
            await self._ask(connection)
        ticked = await self._tick(connection) if monotonic() >= self._tick_at else 0
        return handed + ticked > 0

    def seconds_to_next(self) -> float:
        return max(0.0, min(self._tick_at, self._ask_at, self._look_at) - monotonic())

    async def _dispatch(self, connection: Connection) -> int:
        if not self._dispatcher.has_work():
            return 0
        handed = await self._dispatcher.dispatch(connection)
        if not self._dispatcher.has_work():
            seconds = await self._dispatcher.seconds_to_next(connection)
            if seconds is not None:
                self._look_at = min(self._look_at, monotonic() + seconds)
        return handed

    async def _tick(self, connection: Connection) -> int:
        seats = self._dispatcher.seats()
        claims = {}
        try:
            ticked = await tick(connection, seats)
            claims = ticked.made.claimed
        finally:
            self._dispatcher.hand_over(seats, claims)
        self._tell(ticked)
        if ticked.full:
            return ticked.schedules
        await self._ask(connection)
        if self._tick_at <= monotonic() and not ticked.schedules:
            self._tick_at = monotonic() + _LOCKED
        return ticked.schedules

    async def _ask(self, connection: Connection) -> None:
        """When the earliest schedule is due: one statement, where a tick for nothing would be three."""
        seconds = await seconds_to_next(connection)
        self._ask_at = monotonic() + POLL
        self._tick_at = inf if seconds is None else monotonic() + seconds

    def _tell(self, ticked: Ticked) -> None:
        if ticked.pending:
            self._wakeups.wake(Topic.PENDING)
        if ticked.schedules:
            self._wakeups.wake(Topic.RUNS)
