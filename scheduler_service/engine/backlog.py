"""What this replica last saw of the backlog. Looking costs little, and a fiftieth of one connection's time at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from scheduler_service.store.backlog import BacklogCounts, count_backlog
from scheduler_service.store.connection import Connection

PERIOD = 5.0
"""Seconds from one look to the next, where a look takes no time to speak of."""
_LONGEST_PERIOD = 60.0
_SHARE = 50
_SHOWN_FOR = 120.0


class Backlog:
    """Counts, and when to count again. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: BacklogCounts | None = None
        self._seen_at = 0.0
        self._next_at = clock()

    @property
    def counts(self) -> BacklogCounts | None:
        """What was seen last; None if that was too long ago to act upon."""
        return self._counts if self._clock() - self._seen_at < _SHOWN_FOR else None

    async def step(self, connection: Connection) -> bool:
        """Counts if that is due. Answers whether it was."""
        began = self._clock()
        if began < self._next_at:
            return False
        self._counts = await count_backlog(connection)
        self._seen_at = self._clock()
        # The more it takes, the rarer it is done: an index full of dead entries must not become a load of its own.
        took = self._seen_at - began
        self._next_at = self._seen_at + min(_LONGEST_PERIOD, max(PERIOD, took * _SHARE))
        return True

    def seconds_to_next(self) -> float:
        return max(0.0, self._next_at - self._clock())
