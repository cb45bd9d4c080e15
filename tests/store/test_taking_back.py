"""Heartbeats that nothing holds up, and runs that are taken back from sessions that live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.engine.clock_watch import ClockWatch
from scheduler_service.engine.leases import Hello, Leases
from scheduler_service.engine.reap import LOOK_THROUGH_SECONDS, Reaped, Reaper
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.engine.taking_back import IN_FLIGHT_SECONDS
from scheduler_service.store.claim import Claim, claim
from scheduler_service.store.database import Database
from scheduler_service.store.sessions import database_now
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob, connect, make_job, make_live_run
from tests.conftest import DatabaseUrls
from tests.store.engine_case import rows
from tests.store.test_leases import WORKER, Stream

Admin = psycopg.Connection[Any]
Connection = psycopg.AsyncConnection[Any]
LEASE = 30.0
FREE_ALL = "update carillon.live_runs set session_id = null, claim_id = null, claimed_at = null, deadline = null"
PATIENCE = 60.0


class Told(Stream):
    """Remembers what it was told to stop, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: list[AttemptRef] = []

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        self.stopped += attempts


@dataclass
class Replica:
    """One replica's leases and reaper, whose clocks the test steps. `settle`: as of its clock watch."""

    database: Database
    admin: Admin
    connection: Connection
    job: MadeJob
    now: datetime
    settle: float = 0.0
    monotonic: float = 100.0
    sequence: int = 0
    sessions: Sessions = field(default_factory=lambda: Sessions(lambda: None))
    streams: dict[UUID, Told] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leases = Leases(
            self.database,
            self.sessions,
            Wakeups(),
            replica="replica-1",
            clock=lambda: self.monotonic,
            watch=ClockWatch(LEASE, settle=self.settle),
        )
        self.reaper = Reaper(self.sessions, self.leases, Wakeups(), clock=lambda: self.monotonic)

    async def session(self, held: Sequence[int] = (), session_id: UUID | None = None) -> ConnectedSession:
        stream = Told()
        hello = Hello(session_id or uuid4(), "w-1", "test", frozenset({"http"}), held)
        session = await self.leases.open(WORKER, hello, stream, now=self.now)
        self.streams[session.session_id] = stream
        await self.leases.step(self.connection, now=self.now)
        return session

    async def claimed(self, session: ConnectedSession, runs: int = 1) -> tuple[Claim, list[AttemptRef]]:
        for _ in range(runs):
            make_live_run(self.admin, self.job, at=self.now - timedelta(minutes=1))
        made = await claim(self.connection, session.session_id, ["http"], runs, self.now)
        assert made is not None
        assert len(made.runs) == runs
        return made, [AttemptRef(run.run_id, run.attempt, made.claim_id) for run in made.runs]

    def pass_(self, seconds: float, *, database: float | None = None) -> None:
        self.monotonic += seconds
        self.now += timedelta(seconds=seconds if database is None else database)

    async def beat(self, session: ConnectedSession, held: Sequence[int] = ()) -> bool:
        self.sequence += 1
        self.leases.beat(session, self.sequence, held)
        async with asyncio.timeout(PATIENCE):
            return await self.leases.step(self.connection, now=self.now)

    def expires_at(self, session: ConnectedSession) -> datetime:
        [(expires_at,)] = rows(
            self.admin, "select expires_at from carillon.sessions where session_id = %s", session.session_id
        )
        assert isinstance(expires_at, datetime)
        return expires_at

    def held(self) -> set[UUID]:
        return {
            row[0] for row in rows(self.admin, "select run_id from carillon.live_runs where session_id is not null")
        }


@pytest.fixture
async def replica(database: Database, admin: Admin, hot: Connection) -> Replica:
    return Replica(database, admin, hot, make_job(admin), await database_now(hot))


@pytest.fixture
def locking(database_urls: DatabaseUrls) -> Iterator[Admin]:
    """Somebody's connection, in whose transaction rows stay locked."""
    with connect(database_urls.admin) as somebody, somebody.transaction(force_rollback=True):
        yield somebody


async def test_what_somebody_has_locked_keeps_no_heartbeat_waiting(replica: Replica, locking: Admin) -> None:
    mine, other = await replica.session(), await replica.session()
    _, refs = await replica.claimed(mine, 2)
    replica.pass_(IN_FLIGHT_SECONDS + 1)
    locking.execute("select from carillon.live_runs where run_id = %s for update", (refs[0].run_id,))
    replica.leases.beat(other, 7, [])
    await replica.beat(mine)
    assert replica.expires_at(other) == replica.now + timedelta(seconds=LEASE)
    assert replica.streams[other.session_id].acknowledged[-1] == 7
    assert replica.held() == {refs[0].run_id}, "the other one is taken back"
    locking.execute("rollback")
    await replica.beat(mine)
    assert replica.held() == set(), "what was passed over is found at the next heartbeat"


@pytest.mark.parametrize("mode", ["share", "access exclusive"])
async def test_a_table_that_is_locked_keeps_the_step_waiting_for_a_moment_only(
    replica: Replica, locking: Admin, mode: str
) -> None:
    session = await replica.session()
    await replica.claimed(session)
    replica.pass_(IN_FLIGHT_SECONDS + 1)
    locking.execute(f"lock table carillon.live_runs in {mode} mode".encode())
    assert await replica.beat(session)
    assert replica.streams[session.session_id].acknowledged == [1]
    locking.execute("rollback")
    assert len(replica.held()) == 1


async def test_a_locked_session_keeps_the_others_no_lease_from_being_extended(replica: Replica, locking: Admin) -> None:
    locked, other = await replica.session(), await replica.session()
    before = replica.expires_at(locked)
    locking.execute("select from carillon.sessions where session_id = %s for update", (locked.session_id,))
    replica.pass_(5)
    replica.leases.beat(locked, 8, [])
    assert await replica.beat(other)
    assert replica.expires_at(other) == replica.now + timedelta(seconds=LEASE)
    assert not await replica.leases.step(replica.connection, now=replica.now), "there is nothing that can be done"
    stream = replica.streams[locked.session_id]
    assert (stream.acknowledged, stream.ended, replica.expires_at(locked)) == ([], [], before)
    locking.execute("rollback")
    assert await replica.leases.step(replica.connection, now=replica.now)
    assert (stream.acknowledged, stream.ended) == ([8], [])
    assert replica.expires_at(locked) == replica.now + timedelta(seconds=LEASE)


async def test_one_run_that_cannot_be_taken_back_keeps_no_other_waiting(replica: Replica) -> None:
    session = await replica.session()
    _, refs = await replica.claimed(session, 5)
    bad = refs[2].run_id
    check = f"check (run_id <> '{bad}' or session_id is not null)"
    replica.admin.execute(f"alter table carillon.live_runs add constraint bad {check}".encode())
    replica.pass_(IN_FLIGHT_SECONDS + 1)
    with capture_logs() as logs:
        await replica.beat(session)
        await replica.beat(session)
    assert replica.held() == {bad}
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "a run cannot be taken back; it is tried again"
    ]
    replica.admin.execute("alter table carillon.live_runs drop constraint bad")
    replica.pass_(5)
    await replica.beat(session)
    assert replica.held() == set()


@pytest.mark.parametrize("how", ["delete from carillon.live_runs", FREE_ALL], ids=["ended", "freed"])
async def test_what_cannot_be_taken_back_is_counted_until_it_is_in_nobody_s_hands(replica: Replica, how: str) -> None:
    session = await replica.session()
    await replica.claimed(session, 2)
    replica.admin.execute("alter table carillon.live_runs add constraint bad check (session_id is not null)")
    replica.pass_(IN_FLIGHT_SECONDS + 1)
    await replica.beat(session)
    await replica.reaper.step(replica.connection, now=replica.now)
    assert replica.reaper.set_aside == 2
    replica.admin.execute("alter table carillon.live_runs drop constraint bad")
    replica.admin.execute(how.encode())
    replica.pass_(LOOK_THROUGH_SECONDS)
    await replica.reaper.step(replica.connection, now=replica.now)
    assert replica.reaper.set_aside == 0


async def test_after_a_jump_of_the_database_s_clock_nothing_is_taken_back_for_a_lease(replica: Replica) -> None:
    session = await replica.session()
    replica.pass_(1)
    made, refs = await replica.claimed(session)
    replica.pass_(0.05, database=6.05)  # the heartbeat was on its way when the run was sent
    await replica.beat(session)
    assert replica.held() == {refs[0].run_id}
    assert replica.streams[session.session_id].stopped == []
    replica.pass_(LEASE - 1)
    await replica.beat(session)
    assert replica.held() == {refs[0].run_id}
    replica.pass_(1)
    await replica.beat(session, [made.claim_id])
    assert replica.held() == {refs[0].run_id}
    await replica.beat(session)
    assert replica.held() == set()
    assert replica.streams[session.session_id].stopped == refs, "two workers must not both go on"


async def test_leases_and_reaper_watch_the_clocks_together(replica: Replica) -> None:
    session = await replica.session()
    await replica.claimed(session)
    replica.pass_(1, database=100)
    assert await replica.reaper.step(replica.connection, now=replica.now) == Reaped()
    replica.pass_(IN_FLIGHT_SECONDS + 1)
    await replica.beat(session)
    assert len(replica.held()) == 1, "the leases did not see the jump themselves"


async def test_a_replica_that_starts_after_a_jump_ends_no_session_that_lives(
    replica: Replica, other: Connection
) -> None:
    session = await replica.session()
    replica.pass_(1, database=61)
    new = Replica(replica.database, replica.admin, other, replica.job, replica.now, settle=10.0)
    assert await new.reaper.step(other, now=replica.now) == Reaped()
    for second in range(15):
        if second == 5:
            replica.now = new.now
            await replica.beat(session)
        assert await new.reaper.step(other, now=new.now) == Reaped()
        new.pass_(1)
    assert replica.streams[session.session_id].acknowledged == [1]


async def test_a_replica_that_starts_alone_ends_what_is_lost_once_it_has_settled(
    replica: Replica, other: Connection
) -> None:
    session = await replica.session()
    await replica.claimed(session)
    replica.pass_(20)
    new = Replica(replica.database, replica.admin, other, replica.job, replica.now, settle=10.0)
    reaped = []
    for _ in range(13):
        reaped.append(bool(await new.reaper.step(other, now=new.now)))
        new.pass_(1)
    assert reaped == [False] * 10 + [True] + [False] * 2


async def test_a_list_of_claims_costs_what_is_held_and_not_what_is_said(replica: Replica) -> None:
    said = range(10_000_000, 10_100_000)
    sessions = [await replica.session() for _ in range(5)]
    made, refs = await replica.claimed(sessions[0], 3)
    replica.pass_(IN_FLIGHT_SECONDS + 1)
    sent: list[int] = []
    with counting_what_is_sent(replica.connection, sent):
        for session in sessions[1:]:
            replica.leases.beat(session, 1, said)
        await replica.beat(sessions[0], [*said, made.claim_id])
    assert replica.held() == {ref.run_id for ref in refs}
    assert 5 < max(sent) < 100
    await replica.beat(sessions[0], said)
    assert replica.held() == set()


@contextmanager
def counting_what_is_sent(connection: Connection, sent: list[int]) -> Iterator[None]:
    """Elements of the parameters of each statement."""
    execute = connection.execute

    async def counting(query: Any, params: Any = None, **more: Any) -> Any:
        values = params.values() if isinstance(params, dict) else params or ()
        sent.append(sum(len(value) if isinstance(value, list) else 1 for value in values))
        return await execute(query, params, **more)

    connection.execute = counting  # type: ignore[method-assign]  # it goes on to the real one
    try:
        yield
    finally:
        connection.execute = execute  # type: ignore[method-assign]


async def test_who_starts_what_was_taken_back_is_told_to_stop(replica: Replica) -> None:
    session, other = await replica.session(), await replica.session()
    _, [kept, ended, freed, moved] = await replica.claimed(session, 4)
    free = "update carillon.live_runs set session_id = null, claim_id = null, claimed_at = null, deadline = null"
    replica.admin.execute(f"{free} where run_id = any(%s)", ([freed.run_id, moved.run_id],))
    await claim(replica.connection, other.session_id, ["http"], 1, replica.now)
    replica.admin.execute("delete from carillon.live_runs where run_id = %s", (ended.run_id,))
    reports = Reports(Wakeups())
    stream = replica.streams[session.session_id]
    for is_news in (True, False):
        reports.started(session, [(ref, 0.0) for ref in (kept, ended, freed, moved)])
        assert await reports.step(replica.connection, now=replica.now) == is_news
        assert set(stream.stopped) == {freed, moved}, "not what is held, nor what has ended"
        stream.stopped.clear()
