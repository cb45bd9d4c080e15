"""What workers report while attempts run: starts, and how far they are. Written in groups, and fenced: what a session
no longer holds is left alone.

Neither is acknowledged. A start that is lost leaves the deadline that the claim set; of progress only the newest
matters. Who starts what was taken back from it is told to stop. Of a run that somebody has locked, starts are tried
again, progress is dropped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from uuid import UUID

from psycopg.errors import LockNotAvailable

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.engine.lanes import Entry, Lanes, Room
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import is_database_away
from scheduler_service.store.patience import PATIENCE
from scheduler_service.store.progress import Progress, record_progress
from scheduler_service.store.starts import NotNoted, Start, not_noted, record_starts
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups

PROGRESS_SECONDS = 1.0
_MOST_WAITING = 100_000
_LEAST_WAITING = 1_000
_BATCH = 1_000
_LOCKED_SECONDS = 10.0

_Key = tuple[UUID, AttemptRef]
_Made = tuple[int, int, str]
_Begun = tuple[AttemptRef, float]  # the instant of the start, by our own clock


class Reports:
    """What is reported to this replica and not written yet. `wakeup` is set when `step` has work. `room`: whether a
    session may report more."""

    def __init__(self, wakeups: Wakeups, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.wakeup = Wakeup()
        self._wakeups = wakeups
        self._clock = clock
        self.room = Room(_MOST_WAITING, _LEAST_WAITING)
        self._starts: Lanes[_Begun] = Lanes()
        self._begun: list[Entry[_Begun]] = []  # taken from the starts, and not written yet
        self._held_up: dict[AttemptRef, Entry[_Begun]] = {}  # somebody had their runs locked; these use no room
        self._held_up_until = 0.0
        self._passing_over = False  # of what has begun, what is locked
        self._locked_until = 0.0  # somebody may still have something locked: nobody waits for that
        self._progress: dict[_Key, _Made] = {}
        self._progress_cost: Counter[UUID] = Counter()  # what came since the last round began, the outdated too
        self._round: dict[_Key, _Made] = {}
        self._round_cost: Counter[UUID] = Counter()
        self._progress_due_at = 0.0

    def started(self, session: ConnectedSession, starts: Iterable[tuple[AttemptRef, float]]) -> None:
        """Attempts began so many seconds ago."""
        now = self._clock()
        entries = [Entry((ref, now - age), session) for ref, age in starts]
        self._starts.put(session, entries)
        self.room.use(session, len(entries))
        self.wakeup.set()

    def progressed(self, session: ConnectedSession, progress: Iterable[tuple[AttemptRef, _Made]]) -> None:
        """Attempts did so many units, of so many (0 if not known), and say what they do."""
        cost = 0
        for ref, made in progress:
            self._progress[session.session_id, ref] = made
            cost += 1 + len(made[2]) // 1024
        self._progress_cost[session.session_id] += cost
        self.room.use(session, cost)
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
        if self._starts or self._begun or self._round:
            return 0.0
        due = [self._progress_due_at] if self._progress else []
        due += [self._held_up_until] if self._held_up else []
        return max(0.0, min(due) - self._clock()) if due else None

    async def _write_starts(self, connection: Connection, now: datetime | None) -> bool:
        if not self._begun:
            self._take_starts()
        if not self._begun:
            return False
        clock = self._clock()
        starts = [
            Start(ref.run_id, ref.attempt, ref.claim_id, entry.session.session_id, clock - at)
            for entry in self._begun
            for ref, at in (entry.report,)
        ]
        try:
            changed = await record_starts(connection, starts, now=now, pass_over_locked=self._passing_over)
            if len(changed) < len(starts):
                self._leave(await not_noted(connection, starts))
        except LockNotAvailable:
            if self._passing_over:
                raise
            self._locked_until = clock + _LOCKED_SECONDS
            self._passing_over = True
            return False
        except Exception as error:
            if not is_database_away(error):
                self._forget_begun()
            raise
        self._forget_begun()
        return bool(changed)

    def _take_starts(self) -> None:
        now = self._clock()
        if self._held_up and now >= self._held_up_until:
            self._begun = [self._held_up.pop(ref) for ref in list(islice(self._held_up, _BATCH))]
            for entry in self._begun:
                self.room.use(entry.session, 1)
            self._held_up_until = now + PATIENCE
            self._passing_over = True
        else:
            self._begun = self._starts.take(_BATCH)
            self._passing_over = now < self._locked_until

    def _leave(self, left: NotNoted) -> None:
        """What was taken away is to stop, what is held up has its turn again later."""
        for entry in self._begun:
            if entry.report[0] in left.taken_away:
                entry.session.outbound.cancel([entry.report[0]])
            elif entry.report[0] in left.held_up:
                if not self._held_up:
                    self._held_up_until = self._clock() + PATIENCE
                self._held_up.setdefault(entry.report[0], entry)

    def _forget_begun(self) -> None:
        self.room.free(Counter(entry.session.session_id for entry in self._begun))
        self._begun = []

    async def _write_progress(self, connection: Connection, now: datetime | None) -> bool:
        """One batch of a round. What came before the round is written in it, so that no run is written twice in a
        second."""
        if not self._round and not self._begin_round():
            return False
        batch = dict(islice(self._round.items(), _BATCH))
        progress = [
            Progress(ref.run_id, ref.attempt, ref.claim_id, session_id, *made)
            for (session_id, ref), made in batch.items()
        ]
        passing_over = self._clock() < self._locked_until
        try:
            changed = await record_progress(connection, progress, now=now, pass_over_locked=passing_over)
        except LockNotAvailable:
            if passing_over:
                raise
            self._locked_until = self._clock() + _LOCKED_SECONDS
            return False
        except Exception as error:
            if not is_database_away(error):
                self._forget_progress(batch)
            raise
        self._forget_progress(batch)
        return bool(changed)

    def _begin_round(self) -> bool:
        if not self._progress or self._clock() < self._progress_due_at:
            return False
        self._round, self._progress = self._progress, {}
        self._round_cost, self._progress_cost = self._progress_cost, Counter()
        self._progress_due_at = self._clock() + PROGRESS_SECONDS
        return True

    def _forget_progress(self, batch: Iterable[_Key]) -> None:
        for key in batch:
            del self._round[key]
        if not self._round:
            self.room.free(self._round_cost)
            self._round_cost = Counter()
