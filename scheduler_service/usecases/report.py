"""What workers report while attempts run: starts, and how far they are. Written in groups, and fenced: what a session
no longer holds is left alone.

Neither is acknowledged. A start that is lost leaves the deadline that the claim set; of progress only the newest
matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import UUID

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.store.errors import is_database_away
from scheduler_service.store.progress import Progress, record_progress
from scheduler_service.store.sessions import Connection
from scheduler_service.store.starts import Start, record_starts
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups

PROGRESS_SECONDS = 1.0
_MOST = 100_000  # of each kind that wait while the database is away
_BATCH = 1_000

_Key = tuple[UUID, AttemptRef]


class Reports:
    """What is reported to this replica and not written yet. `wakeup` is set when `step` has work."""

    def __init__(self, wakeups: Wakeups, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.wakeup = Wakeup()
        self._wakeups = wakeups
        self._clock = clock
        self._starts: dict[_Key, float] = {}  # the instant of the start, by our own clock
        self._progress: dict[_Key, tuple[int, int, str]] = {}
        self._progress_due_at = 0.0

    def started(self, session_id: UUID, starts: Iterable[tuple[AttemptRef, float]]) -> None:
        """Attempts began so many seconds ago."""
        now = self._clock()
        if len(self._starts) < _MOST:
            self._starts.update({(session_id, ref): now - age for ref, age in starts})
            self.wakeup.set()

    def progressed(self, session_id: UUID, progress: Iterable[tuple[AttemptRef, tuple[int, int, str]]]) -> None:
        """Attempts did so many units, of so many (0 if not known), and say what they do."""
        if len(self._progress) < _MOST:
            self._progress.update({(session_id, ref): made for ref, made in progress})
            self.wakeup.set()

    async def step(self, connection: Connection, *, now: datetime | None = None) -> bool:
        """Writes what waits, progress at most once a second. Answers whether runs changed."""
        started = await self._write_starts(connection, now)
        progressed = await self._write_progress(connection, now)
        if started or progressed:
            self._wakeups.wake(Topic.RUNS)
        return started or progressed

    @property
    def seconds_to_next(self) -> float | None:
        """When `step` has work again, as far as is known; None if nothing waits."""
        if self._starts:
            return 0.0
        return max(0.0, self._progress_due_at - self._clock()) if self._progress else None

    async def _write_starts(self, connection: Connection, now: datetime | None) -> bool:
        batch = _take(self._starts)
        if not batch:
            return False
        clock = self._clock()
        starts = [
            Start(ref.run_id, ref.attempt, ref.claim_id, session_id, clock - at)
            for (session_id, ref), at in batch.items()
        ]
        try:
            return bool(await record_starts(connection, starts, now=now))
        except Exception as error:
            if is_database_away(error):
                self._starts = batch | self._starts
            raise

    async def _write_progress(self, connection: Connection, now: datetime | None) -> bool:
        if not self._progress or self._clock() < self._progress_due_at:
            return False
        # All that waits goes at once, so that no run is written twice in a second.
        batch, self._progress = self._progress, {}
        self._progress_due_at = self._clock() + PROGRESS_SECONDS
        progress = [
            Progress(ref.run_id, ref.attempt, ref.claim_id, session_id, *made)
            for (session_id, ref), made in batch.items()
        ]
        try:
            return bool(await record_progress(connection, progress, now=now))
        except Exception as error:
            if is_database_away(error):
                self._progress = batch | self._progress
            raise


def _take(waiting: dict[_Key, float]) -> dict[_Key, float]:
    """Takes the oldest of what waits out, up to one batch."""
    if len(waiting) <= _BATCH:
        taken = dict(waiting)
        waiting.clear()
        return taken
    return {key: waiting.pop(key) for key in list(waiting)[:_BATCH]}
