"""What has to be done now and then, by whichever replica comes first: each is harmless to do twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg

from scheduler_service.store.partitions import create_partitions, drop_partitions
from scheduler_service.store.retention import forget_requests
from scheduler_service.store.statistics import fold_all_statistics, fold_statistics

Connection = psycopg.AsyncConnection[Any]
HOUR = 3_600.0
DAY = 24 * HOUR
Chore = Callable[[Connection], Awaitable[object]]

# What, and after how many seconds again. The record's partitions first: without one, no run could end.
CHORES: tuple[tuple[Chore, float], ...] = (
    (create_partitions, HOUR),
    (fold_statistics, 10.0),
    (fold_all_statistics, DAY),
    (forget_requests, HOUR),
)


class Housekeeping:
    """The chores, and when each is due again. `retention`: months that ended longer ago are dropped; None keeps all."""

    def __init__(self, retention: timedelta | None = None) -> None:
        # Each hour, though a month passes seldom: it gives way to whoever reads the records, such as a backup.
        dropping = ((partial(drop_partitions, older_than=retention), HOUR),) if retention else ()
        self._chores = (*CHORES, *dropping)
        self._due_at = [0.0] * len(self._chores)

    async def step(self, connection: Connection, now: float) -> bool:
        """Does the first chore that is due at `now`, seconds of any clock. Answers whether one was."""
        for place, (chore, period) in enumerate(self._chores):
            if self._due_at[place] <= now:
                await chore(connection)
                self._due_at[place] = now + period
                return True
        return False

    def next_at(self) -> float:
        return min(self._due_at)
