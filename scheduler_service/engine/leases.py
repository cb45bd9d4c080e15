"""Leases of worker sessions: Hello, heartbeats, Goodbye.

In charge: the `sessions` row. It outlives streams; the newest stream counts, which a heartbeat finds out in the same
statement that extends the lease. Heartbeats are written in groups, and acknowledged once they are committed. What
arrives here is timed by this process's monotonic clock; everything else by the database's.

A replica whose step is held up loses every session that it serves. So nothing in it waits for what somebody has locked,
or not for long: that is left to the next heartbeat (engine/taking_back.py for the runs).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from scheduler_service.domain.access import ANY_SERVICE, Action, Principal, Resource, require
from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.errors import Conflict, Forbidden, Refusal, Replaced
from scheduler_service.domain.repairs import Repair
from scheduler_service.engine.clock_watch import ClockWatch
from scheduler_service.engine.leaving import end_session
from scheduler_service.engine.sessions import ConnectedSession, Outbound, Sessions
from scheduler_service.engine.taking_back import Listed, TakingBack
from scheduler_service.engine.unsent import Unsent
from scheduler_service.store import sessions as store
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.store.errors import is_database_away
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Hello:
    """How a worker introduces a stream. `held_claims`: of which it still holds runs or results."""

    session_id: UUID
    worker: str
    client: str
    routes: frozenset[str]
    held_claims: Sequence[int] = ()


class WorkStream(Outbound, Protocol):
    """A worker's stream, as the leases see it. Never blocks."""

    def acknowledge_heartbeat(self, sequence: int) -> None: ...

    def withdraw_late(self) -> Sequence[AttemptRef]:
        """Runs that it was to send, and will not any more: see `Outbound.assign`. Each is answered once."""

    def end(self, refusal: Refusal) -> None: ...


@dataclass(slots=True)
class _Lease:
    stream: WorkStream
    heard_at: float


@dataclass(frozen=True, slots=True)
class _Beat:
    """`sequence` is None for a Hello, which has its own answer."""

    session: ConnectedSession
    sequence: int | None
    claims: Sequence[int]
    arrived: float


class Leases:
    """The leases of the sessions that are connected to this replica. `wakeup` is set when `step` has work. `watch`: of
    the clocks, for all of the replica that goes by the database's."""

    def __init__(
        self,
        database: Database,
        sessions: Sessions,
        wakeups: Wakeups,
        *,
        replica: str,
        lease: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        watch: ClockWatch | None = None,
    ) -> None:
        self.wakeup = Wakeup()
        self.watch = watch or ClockWatch(lease)
        self._database = database
        self._sessions = sessions
        self._wakeups = wakeups
        self._replica = replica
        self._taking_back = TakingBack(sessions, replica, clock)
        self._unsent = Unsent(sessions)
        self._lease = lease
        self._clock = clock
        self._leases: dict[ConnectedSession, _Lease] = {}
        self._beats: dict[UUID, _Beat] = {}

    @property
    def repairs(self) -> Counter[Repair]:
        """What it took back from workers that never got it."""
        return self._taking_back.repairs.counts

    @property
    def set_aside(self) -> int:
        """How many runs it cannot take back, and goes on without."""
        return self._taking_back.set_aside

    async def forget_the_gone(self, connection: Connection) -> None:
        """What is in no worker's hands any more is set aside no more."""
        await self._taking_back.forget_the_gone(connection)

    async def open(
        self, principal: Principal, hello: Hello, stream: WorkStream, *, now: datetime | None = None
    ) -> ConnectedSession:
        """A stream said Hello: it is its session's newest from now on. Refuses routes that the principal may not
        serve, and with SESSION_LOST a session that says it holds runs but is gone. `now` steps the database's clock in
        tests, here and below."""
        _require_routes(principal, hello.routes)
        row = store.SessionRow(
            hello.session_id, hello.worker, hello.client, _holder(principal), hello.routes, self._replica
        )
        arrived = self._clock()
        async with self._database.as_engine() as pooled:
            connection = await store.driver_connection(pooled)
            begin = store.resume_session if hello.held_claims else store.open_session
            number = await begin(connection, row, lease=self._lease, now=now)
        if number is None:
            raise _lost("its lease has ended, or another service or worker began it")
        session = ConnectedSession(
            hello.session_id, hello.worker, hello.routes, number, stream, principal=str(principal)
        )
        self._connect(session, stream)
        self._beats[session.session_id] = _Beat(session, None, hello.held_claims, arrived)
        self.wakeup.set()
        return session

    def _connect(self, session: ConnectedSession, stream: WorkStream) -> None:
        other = self._sessions.get(session.session_id)
        if other is not None and other.stream > session.stream:
            raise _replaced()
        self._sessions.connect(session)
        if other is not None:
            self._end(other, _replaced())
        self._leases[session] = _Lease(stream, self._clock())

    def beat(self, session: ConnectedSession, sequence: int, held_claims: Sequence[int]) -> None:
        """A heartbeat arrived. It is acknowledged once the lease is extended."""
        if (lease := self._leases.get(session)) is not None:
            lease.heard_at = self._clock()
            if session.quiet:
                self._sessions.fall_quiet(session, False)
            self._beats[session.session_id] = _Beat(session, sequence, held_claims, lease.heard_at)
            self.wakeup.set()

    async def leave(self, session: ConnectedSession, *, now: datetime | None = None) -> None:
        """The worker said Goodbye: its session ends, and what it still holds is free again."""
        self.close(session)
        await end_session(self._database, session.session_id, session.stream, self._tell_of_free_runs, now=now)

    def close(self, session: ConnectedSession) -> None:
        """A stream ended. That alone frees nothing."""
        self._sessions.disconnect(session)
        if (lease := self._leases.pop(session, None)) is not None:
            self._unsent.add(session, lease.stream.withdraw_late())
        beat = self._beats.get(session.session_id)
        if beat is not None and beat.session is session:
            del self._beats[session.session_id]

    def lost(self, session_ids: Iterable[UUID]) -> None:
        """These sessions were ended by the reaper: a stream that one still has here ends."""
        for session_id in session_ids:
            if (session := self._sessions.get(session_id)) is not None:
                self._end(session, _lost("its lease has ended"))

    async def step(self, connection: Connection, *, now: datetime | None = None) -> bool:
        """Gives back what was not sent in time, writes the heartbeats that have arrived, and takes back what their
        sessions do not know that they hold. Streams that fell silent get no more runs after a third of a lease, and end
        after a whole one. Answers whether there was anything that could be done."""
        self._end_silent()
        self._note_quiet()
        gave_back = await self._give_back(connection)
        beats, self._beats = self._beats, {}
        if not beats:
            return gave_back
        try:
            counted = await self._extend(connection, beats, now)
            await self._take_back(connection, counted, now)
        except Exception as error:
            if is_database_away(error):
                self._put_back(beats)
            raise
        return gave_back or any(self._beats.get(session_id) is not beat for session_id, beat in beats.items())

    async def _give_back(self, connection: Connection) -> bool:
        """Before any list is looked at, which cannot name these either."""
        for session, lease in self._leases.items():
            self._unsent.add(session, lease.stream.withdraw_late())
        gave_back = await self._unsent.step(connection)
        if gave_back:
            self._tell_of_free_runs()
        return gave_back

    def _put_back(self, beats: dict[UUID, _Beat]) -> None:
        """They could not be written. What came after them counts instead."""
        still_here = {session_id: beat for session_id, beat in beats.items() if beat.session in self._leases}
        self._beats = still_here | self._beats

    async def _extend(self, connection: Connection, beats: dict[UUID, _Beat], now: datetime | None) -> list[_Beat]:
        streams = {session_id: beat.session.stream for session_id, beat in beats.items()}
        newest = await store.extend_leases(connection, streams, lease=self._lease, now=now)
        left = beats.keys() - newest.keys()
        locked = await store.workers_of(connection, left) if left else {}
        self._put_back({session_id: beats[session_id] for session_id in locked})
        counted = []
        for session_id, beat in beats.items():
            if session_id in locked:
                continue
            if (number := newest.get(session_id)) is None:
                self._end(beat.session, _lost("its lease has ended"))
            elif number != beat.session.stream:
                self._end(beat.session, _replaced())
            else:
                counted.append(beat)
                self._acknowledge(beat)
        return counted

    def _acknowledge(self, beat: _Beat) -> None:
        lease = self._leases.get(beat.session)
        if lease is not None and beat.sequence is not None:
            lease.stream.acknowledge_heartbeat(beat.sequence)

    async def _take_back(self, connection: Connection, beats: list[_Beat], now: datetime | None) -> None:
        if not beats:
            return
        now = now or await store.database_now(connection)
        elapsed = self._clock()
        if self.watch.trusts(now, elapsed):
            lists = [Listed(beat.session.session_id, elapsed - beat.arrived, beat.claims) for beat in beats]
            if await self._taking_back.step(connection, lists, now):
                self._tell_of_free_runs()

    def _end_silent(self) -> None:
        silent_since = self._clock() - self._lease
        for session in [s for s, lease in self._leases.items() if lease.heard_at < silent_since]:
            self._end(session, _lost(f"no heartbeat came for {self._lease:g} s"))

    def _note_quiet(self) -> None:
        """After as long as a worker waits for an answer before it tries another replica."""
        quiet_since = self._clock() - self._lease / 3
        for session, lease in self._leases.items():
            if lease.heard_at < quiet_since and not session.quiet:
                self._sessions.fall_quiet(session, True)
                log.info("a worker is not heard and gets no more runs", session=str(session.session_id))

    def _end(self, session: ConnectedSession, refusal: Refusal) -> None:
        lease = self._leases.get(session)
        self.close(session)
        if lease is not None:
            lease.stream.end(refusal)

    def _tell_of_free_runs(self) -> None:
        self._wakeups.wake(Topic.PENDING)
        self._wakeups.wake(Topic.RUNS)


def _require_routes(principal: Principal, routes: Iterable[str]) -> None:
    """Payloads of all services pass on the shared routes, so these need a token that is bound to `*`."""
    require(principal, Action.WORK)
    for route in sorted(routes):
        kind, _, rest = route.partition("/")
        if kind == "handler":
            require(principal, Action.WORK, Resource(service=rest.partition("/")[0]))
        elif principal.service != ANY_SERVICE:
            raise Forbidden(
                f"{principal} may not serve route {route}, on which the payloads of all services pass; that needs a"
                " service token with scope `work` that is bound to `*`"
            )


def _holder(principal: Principal) -> str:
    """Whose a session is, whichever of its tokens or certificates a worker shows: it goes on after a rotation."""
    return f"{principal.kind}:{principal.service}"


def _lost(why: str) -> Conflict:
    return Conflict(f"the session is lost: {why}; say Hello with a new session id", reason="SESSION_LOST")


def _replaced() -> Replaced:
    return Replaced("the session opened a newer stream; this one is closed")
