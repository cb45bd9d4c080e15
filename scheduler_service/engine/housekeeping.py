"""What has to be done now and then, by whichever replica comes first: each is harmless to do twice.

Each is a part of its own: one that fails, such as a chore whose table somebody has locked for hours, keeps no other
from being done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

import structlog

from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import is_read_only
from scheduler_service.store.partitions import create_partitions, drop_partitions
from scheduler_service.store.retention import forget_requests
from scheduler_service.store.statistics import fold_all_statistics, fold_statistics

HOUR = 3_600.0
DAY = 24 * HOUR
AGAIN = 10.0
"""Seconds after which what failed is tried again."""
Chore = Callable[[Connection], Awaitable[object]]

# What, and after how many seconds again. The record's partitions first: without one, no run could end.
CHORES: tuple[tuple[str, Chore, float], ...] = (
    ("create partitions", create_partitions, HOUR),
    ("fold statistics", fold_statistics, 10.0),
    ("fold all statistics", fold_all_statistics, DAY),
    ("forget requests", forget_requests, HOUR),
)
_log = structlog.get_logger()


class Part:
    """Something that is done now and then, and may fail alone. `act` is given seconds of any clock, and answers whether
    it did anything. `failures`: how often it failed."""

    def __init__(self, name: str, act: Callable[[Connection, float], Awaitable[bool]]) -> None:
        self.name = name
        self.failures = 0
        self._act = act
        self._not_before = float("-inf")
        self._fails = False

    async def step(self, connection: Connection, now: float) -> bool:
        """Does what is due at `now`. Answers whether that was anything. Errors: the connection is lost, or leads to a
        server that takes no changes. Any other is told once, and tried again after AGAIN seconds."""
        if now < self._not_before:
            return False
        try:
            found_work = await self._act(connection, now)
        except Exception as error:
            if connection.closed or is_read_only(error):
                raise
            self._failed(error, now)
            return False
        if self._fails and found_work:
            self._fails = False
            _log.info("this part of keeping house is done again", part=self.name)
        return found_work

    def not_before(self, next_at: float) -> float:
        """When it is to be done that is due at `next_at`."""
        return max(next_at, self._not_before)

    def _failed(self, error: Exception, now: float) -> None:
        self.failures += 1
        self._not_before = now + AGAIN
        if not self._fails:
            self._fails = True
            _log.error(
                "a part of keeping house failed and is tried again; the others go on",
                part=self.name,
                error=f"{type(error).__name__}: {error}",
                again_in=AGAIN,
            )


class _Periodic:
    """A chore, and when it is due again."""

    def __init__(self, chore: Chore, period: float) -> None:
        self._chore = chore
        self._period = period
        self.due_at = 0.0

    async def step(self, connection: Connection, now: float) -> bool:
        if now < self.due_at:
            return False
        await self._chore(connection)
        self.due_at = now + self._period
        return True


class Housekeeping:
    """The chores, and when each is due again. `retention`: months that ended longer ago are dropped; None keeps all."""

    def __init__(self, retention: timedelta | None = None, chores: Sequence[tuple[str, Chore, float]] = CHORES) -> None:
        # Each hour, though a month passes seldom: it gives way to whoever reads the records, such as a backup.
        dropping = (("drop partitions", partial(drop_partitions, older_than=retention), HOUR),) if retention else ()
        chores_with_periods = [(name, _Periodic(chore, period)) for name, chore, period in (*chores, *dropping)]
        self._parts = [(Part(name, chore.step), chore) for name, chore in chores_with_periods]

    @property
    def failures(self) -> int:
        """How often a chore failed."""
        return sum(part.failures for part, _ in self._parts)

    async def step(self, connection: Connection, now: float) -> bool:
        """Does the first chore that is due at `now`, seconds of any clock, and can be done. Answers whether one was."""
        for part, _ in self._parts:
            if await part.step(connection, now):
                return True
        return False

    def next_at(self) -> float:
        return min(part.not_before(chore.due_at) for part, chore in self._parts)
