"""What sessions will not finish: the reaper's step. Any number of replicas take it; there is no leader.

In charge: the database's clock. A replica that sees it jump (its own monotonic clock says that another time passed)
does nothing that depends on it for one lease, nor in its first seconds: see engine/clock_watch.py.

What is stuck is found, locked, decided about and changed in small transactions that wait for nobody for long: replicas
share the work, and a row that cannot be mended keeps no other waiting (engine/mending.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.repairs import SHOWN, Repair, Repaired
from scheduler_service.domain.returns import HeldRun, Return, after_grace, after_loss, after_timeout
from scheduler_service.domain.run import run_name
from scheduler_service.engine.deciding import decided
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.mending import TRIES, Look, Mender, Reaped, patiently
from scheduler_service.engine.sessions import Sessions
from scheduler_service.engine.set_aside import SetAside
from scheduler_service.store import reap, stuck, turns
from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import IN_THE_WAY, OF_SOME_ROWS
from scheduler_service.store.schedule_names import names_of
from scheduler_service.store.sessions import database_now, end_expired_sessions
from scheduler_service.usecases.wakeups import Topic, Wakeups

__all__ = ["Cancels", "Reaped", "Reaper"]

log = structlog.get_logger()

TIMEOUT_MARGIN = timedelta(seconds=10)
"""How long after a deadline the scheduler waits for the worker itself to say so."""
LOOK_THROUGH_SECONDS = 5.0
"""How often claimed runs are looked through for overdue ones, and for those whose session is gone."""
LIMIT = 500
"""Runs of one transaction."""
SESSIONS = 100
"""Sessions of one transaction. One with more runs than LIMIT ends too; what it held is taken back by later ones."""
_REMEMBERED = 10_000


def _grace_over(run: HeldRun, _now: datetime) -> Return:
    return after_grace(run)


def _kind_of_stop(run: HeldRun) -> Repair:
    return Repair.STOP_FORGOTTEN if run.session_id is None else Repair.CANCEL_GRACE


_GRACE_OVER = Look(stuck.GRACE_OVER, _grace_over, _kind_of_stop)
_RUN_OVERDUE = Look(stuck.RUN_OVERDUE, after_timeout, lambda _: Repair.RUN_TIMEOUT)
_OVERDUE = Look(stuck.OVERDUE, after_timeout, lambda _: Repair.ATTEMPT_OVERDUE)


class Reaper:
    """Ends lost sessions and returns their runs; ends what is over its deadline or its grace; mends what should not
    be. `replica` signs what it tells the audit trail. `clock` is the one that `leases` go by."""

    def __init__(
        self,
        sessions: Sessions,
        leases: Leases,
        wakeups: Wakeups,
        *,
        replica: str = "-",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._leases = leases
        self._wakeups = wakeups
        self._clock = clock
        self._watch = leases.watch
        self._mender = Mender(replica, clock, self._stop)
        self._overdue_at = self._gone_at = float("-inf")
        # The sessions that were ended last, and their workers' names.
        self._ended: dict[UUID, str] = {}
        self._looked_for_turns_until = 0
        self._looked_for_records_until = UUID(int=0)
        self._sessions_aside: SetAside[None] = SetAside()

    @property
    def repairs(self) -> Counter[Repair]:
        """What it mended, and what this replica's leases took back, by kind."""
        return self._mender.repairs.counts + self._leases.repairs

    @property
    def set_aside(self) -> int:
        """How much it cannot mend, or this replica's leases cannot take back, and goes on without."""
        return self._mender.set_aside + self._leases.set_aside

    async def step(self, connection: Connection, *, now: datetime | None = None) -> Reaped:
        """Looks once for everything that is to be reaped, and does it. `now` steps the database's clock in tests."""
        now = now or await database_now(connection)
        if not self._watch.trusts(now, self._clock()):
            return Reaped()
        reaped = await self._reap_lost(connection, now)
        reaped += await self._mender.mend(connection, _GRACE_OVER, now, limit=LIMIT)
        reaped += await self._mender.mend(connection, _RUN_OVERDUE, now, limit=LIMIT)
        reaped += await self._end_overdue(connection, now)
        reaped += await self._take_back_gone(connection, now)
        reaped += await self._remove_recorded(connection)
        reaped += await self._release_stranded(connection)
        self._mender.tell_hopeless()
        if reaped:
            self._wakeups.wake(Topic.PENDING)
            self._wakeups.wake(Topic.RUNS)
        return reaped

    async def _reap_lost(self, connection: Connection, now: datetime) -> Reaped:
        try:
            return await patiently(lambda: self._end_sessions(connection, now, with_runs=True))
        except OF_SOME_ROWS:
            # Their sessions end nevertheless; then each run is as one whose session is gone.
            ended = await self._end_sessions_alone(connection, now)
            return ended + await self._mend_gone(connection, now)

    async def _end_sessions_alone(self, connection: Connection, now: datetime) -> Reaped:
        try:
            return await self._end_sessions(connection, now, with_runs=False)
        except IN_THE_WAY:
            if self._sessions_aside.put_off(None, self._clock()):
                return Reaped()
            raise

    async def _end_sessions(self, connection: Connection, now: datetime, *, with_runs: bool) -> Reaped:
        async with connection.transaction():
            await stuck.be_patient_briefly(connection)
            workers = await end_expired_sessions(connection, sessions=SESSIONS, runs=LIMIT, now=now)
            if not workers:
                return Reaped()
            ended = _ended(workers)
            await self._mender.repairs.record(connection, [ended])
            runs = await reap.held_by(connection, workers, limit=LIMIT, wait_for_locks=False) if with_runs else []
            returns = await decided(runs, partial(after_loss, now=now))
            reaped, repaired = await self._mender.carry_out(connection, returns, now, lambda _: Repair.WORKER_LOST)
        self._mender.repairs.tell([ended, *repaired])
        self._leases.lost(workers)
        # There may be more of theirs, or somebody may have locked one just then.
        self._gone_at = float("-inf")
        self._remember(workers)
        return reaped + Reaped(sessions=len(workers))

    def _remember(self, workers: Mapping[UUID, str]) -> None:
        self._ended |= workers
        for session_id in list(self._ended)[:-_REMEMBERED]:
            del self._ended[session_id]

    async def _end_overdue(self, connection: Connection, now: datetime) -> Reaped:
        """Needs a look at all claimed runs."""
        if self._clock() < self._overdue_at:
            return Reaped()
        self._mender.left_some = False
        reaped = await self._mender.mend(connection, _OVERDUE, now, limit=LIMIT, stuck_at=now - TIMEOUT_MARGIN)
        self._overdue_at = self._look_again_at(reaped)
        return reaped

    async def _take_back_gone(self, connection: Connection, now: datetime) -> Reaped:
        """Needs a look at all sessions that hold some."""
        if self._clock() < self._gone_at:
            return Reaped()
        self._mender.left_some = False
        reaped = await self._mend_gone(connection, now)
        await self._mender.forget_the_gone(connection)
        await self._leases.forget_the_gone(connection)
        self._gone_at = self._look_again_at(reaped)
        return reaped

    def _look_again_at(self, reaped: Reaped) -> float:
        """At once where there may be more."""
        more = bool(reaped) or self._mender.left_some
        return float("-inf") if more else self._clock() + LOOK_THROUGH_SECONDS

    async def _mend_gone(self, connection: Connection, now: datetime) -> Reaped:
        gone = Look(stuck.SESSION_GONE, after_loss, self._kind_of_loss)
        return await self._mender.mend(connection, gone, now, limit=LIMIT, workers=self._ended)

    def _kind_of_loss(self, run: HeldRun) -> Repair:
        return Repair.WORKER_LOST if run.session_id in self._ended else Repair.SESSION_GONE

    async def _remove_recorded(self, connection: Connection) -> Reaped:
        """Looks at some of the live runs, at the next ones each time."""
        found, self._looked_for_records_until = await stuck.find_recorded(
            connection, self._looked_for_records_until, LIMIT
        )
        if not found:
            return Reaped()
        try:
            return await patiently(lambda: self._remove(connection, found))
        except IN_THE_WAY:
            return Reaped()  # they are found again at the next way through

    async def _remove(self, connection: Connection, found: Sequence[UUID]) -> Reaped:
        async with connection.transaction():
            await stuck.be_patient_briefly(connection)
            removed = await stuck.remove_recorded(connection, found)
            names, tenants = [run_name(each.run_id) for each in removed], frozenset(each.tenant for each in removed)
            repaired = [Repaired(Repair.RECORDED_ALREADY, names, tenants)] if removed else []
            await self._mender.repairs.record(connection, repaired)
        self._mender.repairs.tell(repaired)
        self._stop(removed)
        return Reaped(removed=len(removed))

    async def _release_stranded(self, connection: Connection) -> Reaped:
        """Looks at some of the schedules with blocked runs, at the next ones each time."""
        found, self._looked_for_turns_until = await turns.find_stranded(connection, self._looked_for_turns_until, LIMIT)
        resting = set(self._mender.turns_aside.resting(self._clock()))
        stranded = [schedule_id for schedule_id in found if schedule_id not in resting]
        return await self._release(connection, stranded) if stranded else Reaped()

    async def _release(self, connection: Connection, stranded: Sequence[int], *, tries: int = TRIES) -> Reaped:
        try:
            return await patiently(lambda: self._release_together(connection, stranded), tries=tries)
        except OF_SOME_ROWS as error:
            if len(stranded) == 1:
                return self._mender.set_turn_aside(stranded[0], error)
            again = 1 if isinstance(error, IN_THE_WAY) else TRIES
        middle = len(stranded) // 2
        first = await self._release(connection, stranded[:middle], tries=again)
        return first + await self._release(connection, stranded[middle:], tries=again)

    async def _release_together(self, connection: Connection, stranded: Sequence[int]) -> Reaped:
        async with connection.transaction():
            await stuck.be_patient_briefly(connection)
            released = await turns.release_stranded(connection, stranded)
            repaired = await self._released(connection, stranded, released) if released else []
            await self._mender.repairs.record(connection, repaired)
        self._mender.turns_aside.forget(stranded)
        self._mender.repairs.tell(repaired)
        return Reaped(released=released)

    async def _released(self, connection: Connection, schedule_ids: Sequence[int], runs: int) -> list[Repaired]:
        named = await names_of(connection, schedule_ids)
        tenants = frozenset(name.tenant for name in named)
        return [Repaired(Repair.TURN_FREE, [str(name) for name in named], tenants, {"runs": runs})]

    def _stop(self, runs: Sequence[HeldRun | stuck.Removed]) -> None:
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


def _ended(workers: Mapping[UUID, str]) -> Repaired:
    names = [f"sessions/{session_id}" for session_id in sorted(workers)]
    return Repaired(Repair.SESSION_LOST, names, details={"workers": sorted(set(workers.values()))[:SHOWN]})
