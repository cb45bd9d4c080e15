"""What sessions will not finish: the reaper's step. Any number of replicas take it; there is no leader.

In charge: the database's clock. A replica that sees it jump (its own monotonic clock says that another time passed)
does nothing that depends on it for one lease, so that a corrected clock does not end every session at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.returns import (
    Charged,
    Ended,
    Freed,
    HeldRun,
    Return,
    after_grace,
    after_loss,
    after_timeout,
)
from scheduler_service.domain.run import RunState
from scheduler_service.store import reap, turns
from scheduler_service.store.sessions import Connection, database_now, end_expired_sessions
from scheduler_service.usecases.leases import Leases
from scheduler_service.usecases.sessions import Sessions
from scheduler_service.usecases.wakeups import Topic, Wakeups

log = structlog.get_logger()

TIMEOUT_MARGIN = timedelta(seconds=10)
"""How long after a deadline the scheduler waits for the worker itself to say so."""
OVERDUE_SECONDS = 5.0
"""How often claimed runs are looked through for overdue ones: the one look that reads them all."""
CLOCK_TOLERANCE = 2.0
_LIMIT = 500

Decided = tuple[HeldRun, Return]


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one step did: sessions that it ended, and runs that it freed, charged with an attempt, and ended.
    `released`: runs that got their turn although nobody had left it to them, which should not happen."""

    sessions: int = 0
    freed: int = 0
    charged: int = 0
    failed: int = 0
    cancelled: int = 0
    released: int = 0

    def __bool__(self) -> bool:
        return any(astuple(self))

    def __add__(self, other: Reaped) -> Reaped:
        return Reaped(
            self.sessions + other.sessions,
            self.freed + other.freed,
            self.charged + other.charged,
            self.failed + other.failed,
            self.cancelled + other.cancelled,
            self.released + other.released,
        )


@dataclass(slots=True)
class ClockWatch:
    """Compares the passing of time by two clocks. After they disagreed by over 2 s it trusts neither for `lease`
    seconds."""

    lease: float
    _last: tuple[datetime, float] | None = None
    _suspended_until: float = field(default=float("-inf"))

    def trusts(self, now: datetime, monotonic: float) -> bool:
        if self._last is not None:
            passed, ticked = (now - self._last[0]).total_seconds(), monotonic - self._last[1]
            if abs(passed - ticked) > CLOCK_TOLERANCE:
                self._suspended_until = monotonic + self.lease
                log.warning("clocks disagree; reaping is suspended", database=passed, here=ticked, seconds=self.lease)
        self._last = (now, monotonic)
        return monotonic >= self._suspended_until


class Reaper:
    """Ends lost sessions and returns their runs; ends what is over its deadline or its grace."""

    def __init__(
        self,
        sessions: Sessions,
        leases: Leases,
        wakeups: Wakeups,
        *,
        lease: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._leases = leases
        self._wakeups = wakeups
        self._clock = clock
        self._watch = ClockWatch(lease)
        self._look_through_at = float("-inf")
        self._looked_for_turns_until = 0

    async def step(self, connection: Connection, *, now: datetime | None = None) -> Reaped:
        """Looks once for everything that is to be reaped, and does it. `now` steps the database's clock in tests."""
        now = now or await database_now(connection)
        if not self._watch.trusts(now, self._clock()):
            return Reaped()
        reaped = await self._reap_lost(connection, now) + await self._reap_overdue(connection, now)
        reaped += await self._release_stranded(connection)
        if reaped:
            self._wakeups.wake(Topic.PENDING)
            self._wakeups.wake(Topic.RUNS)
        return reaped

    async def _reap_lost(self, connection: Connection, now: datetime) -> Reaped:
        async with connection.transaction():
            workers = await end_expired_sessions(connection, now=now)
            runs = await reap.held_by(connection, list(workers)) if workers else []
            decided = [(run, after_loss(run, now)) for run in runs]
            await reap.carry_out(connection, decided, now, ended_sessions=workers)
        self._leases.lost(workers)
        for session_id, worker in workers.items():
            log.warning("session lost", session=str(session_id), worker=worker)
        _log("run of a lost session", decided)
        return _counted(decided, sessions=len(workers))

    async def _reap_overdue(self, connection: Connection, now: datetime) -> Reaped:
        async with connection.transaction():
            cancelled = await reap.past_cancel_grace(connection, now, limit=_LIMIT)
            decided: list[Decided] = [(run, after_grace(run)) for run in cancelled]
            late = await reap.overdue_while_waiting(connection, now, limit=_LIMIT)
            late += await self._overdue(connection, now)
            seen = {run.run_id for run in cancelled}
            decided += [(run, after_timeout(run, now)) for run in late if run.run_id not in seen]
            await reap.carry_out(connection, decided, now)
        _log("run over its time", decided)
        self._stop([run for run, _ in decided])
        return _counted(decided)

    async def _release_stranded(self, connection: Connection) -> Reaped:
        """Looks at some of the schedules with blocked runs, at the next ones each time."""
        stranded, self._looked_for_turns_until = await turns.find_stranded(
            connection, self._looked_for_turns_until, _LIMIT
        )
        if not stranded:
            return Reaped()
        released = await turns.release_stranded(connection, stranded)
        log.warning("runs waited for a turn that nobody had; they have it now", schedules=stranded, runs=released)
        return Reaped(released=released)

    async def _overdue(self, connection: Connection, now: datetime) -> list[HeldRun]:
        if self._clock() < self._look_through_at:
            return []
        runs = await reap.overdue(connection, now, margin=TIMEOUT_MARGIN, limit=_LIMIT)
        if len(runs) < _LIMIT:
            self._look_through_at = self._clock() + OVERDUE_SECONDS
        return runs

    def _stop(self, runs: Sequence[HeldRun]) -> None:
        """Tells workers that are connected here to stop what no longer counts."""
        for run in runs:
            session = self._sessions.get(run.session_id) if run.session_id is not None else None
            if session is not None and run.claim_id is not None:
                session.outbound.cancel([AttemptRef(run.run_id, run.attempt, run.claim_id)])


class Cancels:
    """Tells workers that are connected here which of their runs to stop, once for each stream."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._told: set[tuple[UUID, int, AttemptRef]] = set()

    async def step(self, connection: Connection) -> bool:
        """Answers whether there was anybody to tell."""
        connected = [session.session_id for session in self._sessions]
        to_stop = await reap.asked_to_stop(connection, connected) if connected else []
        told: set[tuple[UUID, int, AttemptRef]] = set()
        news = False
        for one in to_stop:
            if (session := self._sessions.get(one.session_id)) is None:
                continue
            ref = AttemptRef(one.run_id, one.attempt, one.claim_id)
            key = (one.session_id, session.stream, ref)
            told.add(key)
            if key not in self._told:
                session.outbound.cancel([ref])
                news = True
        self._told = told
        return news


def _counted(decided: Sequence[Decided], sessions: int = 0) -> Reaped:
    kinds = [type(what) for _, what in decided]
    states = [what.state for _, what in decided if isinstance(what, Ended)]
    return Reaped(
        sessions=sessions,
        freed=kinds.count(Freed),
        charged=kinds.count(Charged),
        failed=states.count(RunState.FAILED),
        cancelled=states.count(RunState.CANCELLED),
    )


def _log(event: str, decided: Sequence[Decided]) -> None:
    for run, what in decided:
        became = what.state.value if isinstance(what, Ended) else type(what).__name__.lower()
        log.warning(event, run=str(run.run_id), attempt=run.attempt, became=became)
