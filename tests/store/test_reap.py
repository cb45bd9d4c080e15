"""The reaper on the real tables, with a stepped now: what becomes of runs that their sessions will not finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Cancels, Reaped, Reaper
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store.claim import Claim, claim, claim_alone
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.store.sessions import SessionRow, extend_leases, open_session
from scheduler_service.store.starts import Start, record_starts
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests.builders import MadeJob, make_job, make_live_run

LEASE = 30.0
# Records need a partition, which there is for the months around the real now.
START = datetime.now(UTC).replace(microsecond=0)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@dataclass
class House:
    """A database with one job and one reaper, whose clocks pass together."""

    admin: psycopg.Connection[Any]
    connection: Connection
    job: MadeJob
    wakeups: Wakeups
    sessions: Sessions
    monotonic: float = 0.0
    reaper: Reaper = field(init=False)

    def pending(self, **columns: Any) -> UUID:
        return make_live_run(self.admin, self.job, at=START, **columns)

    async def session(self, at: float = 0) -> UUID:
        session_id = uuid4()
        row = SessionRow(session_id, "worker-1", "test", "service:*", frozenset({"http"}), "replica-1")
        await open_session(self.connection, row, lease=LEASE, now=after(at))
        return session_id

    async def claimed(self, session_id: UUID, at: float = 0) -> Claim:
        made = await claim(self.connection, session_id, ["http"], 100, after(at))
        if made is not None and not made.runs:
            made = await claim_alone(self.connection, session_id, 1, ["http"], now=after(at))
        assert made is not None
        return made

    async def started(self, session_id: UUID, made: Claim, at: float = 0) -> None:
        starts = [Start(run.run_id, run.attempt, made.claim_id, session_id, 0.0) for run in made.runs]
        assert len(await record_starts(self.connection, starts, now=after(at))) == len(starts)

    async def reap(self, at: float) -> Reaped:
        self.monotonic = at
        return await self.reaper.step(self.connection, now=after(at))

    def live(self, run_id: UUID) -> dict[str, Any] | None:
        return self._row("live_runs", run_id)

    def record(self, run_id: UUID) -> dict[str, Any] | None:
        return self._row("runs", run_id)

    def attempts(self, run_id: UUID) -> Sequence[dict[str, Any]]:
        with self.admin.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                "select * from carillon.attempts where run_id = %s order by attempt", (run_id,)
            ).fetchall()

    def _row(self, table: str, run_id: UUID) -> dict[str, Any] | None:
        with self.admin.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(f"select * from carillon.{table} where run_id = %s".encode(), (run_id,)).fetchone()


@pytest.fixture
async def house(database: Database, admin: psycopg.Connection[Any]) -> AsyncIterator[House]:
    async with await database.hot_connection() as connection:
        wakeups, sessions = Wakeups(), Sessions(lambda: None)
        house = House(admin, connection, make_job(admin), wakeups, sessions)
        leases = Leases(database, sessions, wakeups, replica="replica-1", lease=LEASE)
        house.reaper = Reaper(sessions, leases, wakeups, clock=lambda: house.monotonic)
        yield house


async def test_a_lost_session_keeps_its_runs_until_the_lease_ends(house: House) -> None:
    run_id = house.pending()
    await house.claimed(await house.session())
    assert await house.reap(29.9) == Reaped()
    assert await house.reap(30) == Reaped(sessions=1, freed=1)
    live = house.live(run_id)
    assert live is not None
    assert (live["session_id"], live["claim_id"], live["deadline"]) == (None, None, None)


async def test_a_run_that_had_not_started_is_free_at_no_charge(house: House) -> None:
    run_id = house.pending()
    await house.claimed(await house.session())
    await house.reap(30)
    live = house.live(run_id)
    assert live is not None
    assert (live["attempt"], live["alone"], live["unstarted_returns"]) == (1, False, 1)
    assert house.attempts(run_id) == []


async def test_the_second_unstarted_return_is_charged(house: House) -> None:
    run_id = house.pending()
    await house.claimed(await house.session())
    await house.reap(30)
    await house.claimed(await house.session(at=40), at=40)
    assert await house.reap(70) == Reaped(sessions=1, charged=1)
    live = house.live(run_id)
    assert live is not None
    assert (live["attempt"], live["alone"]) == (2, True)
    [attempt] = house.attempts(run_id)
    assert (attempt["attempt"], attempt["error"]["code"], attempt["started_at"]) == (1, "WORKER_LOST", None)
    assert attempt["worker"] == "worker-1"


async def test_a_run_that_had_started_is_charged_and_free_at_once(house: House) -> None:
    run_id = house.pending()
    session_id = await house.session()
    made = await house.claimed(session_id)
    await house.started(session_id, made, at=3)
    assert await house.reap(30) == Reaped(sessions=1, charged=1)
    live = house.live(run_id)
    assert live is not None
    assert (live["attempt"], live["alone"], live["session_id"], live["started_at"]) == (2, False, None, None)
    assert live["run_after"] <= after(30)
    assert live["first_started_at"] == after(3)
    [attempt] = house.attempts(run_id)
    assert (attempt["claim_id"], attempt["started_at"], attempt["finished_at"]) == (made.claim_id, after(3), after(30))
    again = await house.claimed(await house.session(at=30), at=30)
    assert [(run.run_id, run.attempt) for run in again.runs] == [(run_id, 2)]


async def test_a_node_s_runs_that_were_lost_once_go_out_together_again(house: House) -> None:
    run_ids = {house.pending() for _ in range(500)}
    node = await house.session()
    made = await claim(house.connection, node, ["http"], 500, after(0))
    assert made is not None
    await house.started(node, made)
    assert await house.reap(30) == Reaped(sessions=1, charged=500)
    again = await claim(house.connection, await house.session(at=30), ["http"], 500, after(30))
    assert again is not None
    assert {run.run_id for run in again.runs} == run_ids
    assert {run.attempt for run in again.runs} == {2}


async def test_what_was_lost_twice_goes_out_alone(house: House) -> None:
    for _ in range(2):
        house.pending()
    for at in (0.0, 30.0):
        session_id = await house.session(at=at)
        made = await house.claimed(session_id, at=at)
        assert len(made.runs) == 2
        await house.started(session_id, made, at=at)
        await house.reap(at + 30)
    made = await house.claimed(await house.session(at=60), at=60)
    assert [run.attempt for run in made.runs] == [3]


async def test_a_run_with_no_attempts_left_ends_failed(house: House) -> None:
    run_id = house.pending(max_attempts=1)
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    assert await house.reap(30) == Reaped(sessions=1, failed=1)
    assert house.live(run_id) is None
    record = house.record(run_id)
    assert record is not None
    assert (record["state"], record["error"]["code"], record["worker"]) == ("FAILED", "WORKER_LOST", "worker-1")
    assert (record["attempt"], record["finished_at"]) == (1, after(30))


@pytest.mark.parametrize(("max_attempts", "table"), [(3, "attempts"), (1, "runs")])
async def test_what_had_started_took_as_long_as_until_its_end_was_recorded(
    house: House, max_attempts: int, table: str
) -> None:
    """As where a worker reports no duration: see the record of a result."""
    run_id, unstarted = house.pending(max_attempts=max_attempts), house.pending(max_attempts=max_attempts)
    session_id = await house.session()
    made = await house.claimed(session_id)
    house.admin.execute("update carillon.live_runs set unstarted_returns = 1 where run_id = %s", [unstarted])
    started = [Start(run_id, 1, made.claim_id, session_id, 0.0)]
    assert len(await record_starts(house.connection, started, now=after(3))) == 1
    await house.reap(30)
    took = house.admin.execute(f"select run_id, duration from carillon.{table}".encode()).fetchall()
    assert dict(took) == {run_id: timedelta(seconds=27), unstarted: None}


async def test_a_clock_that_was_set_back_makes_no_duration_negative(house: House) -> None:
    house.pending(max_attempts=1)
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id), at=60)
    await house.reap(30)
    assert house.admin.execute("select duration from carillon.runs").fetchall() == [(timedelta(),)]


async def test_a_run_that_was_asked_to_stop_ends_cancelled_with_its_session(house: House) -> None:
    run_id = house.pending(cancel_grace=timedelta(hours=1))
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    ask_to_stop(house, run_id, at=10)
    assert await house.reap(30) == Reaped(sessions=1, cancelled=1)
    record = house.record(run_id)
    assert record is not None
    assert (record["state"], record["error"]["code"]) == ("CANCELLED", "CANCELLED")


async def test_a_session_with_heartbeats_keeps_its_runs(house: House) -> None:
    house.pending()
    session_id = await house.session()
    await house.claimed(session_id)
    for at in (20, 40, 60):
        await extend_leases(house.connection, {session_id: 1}, lease=LEASE, now=after(at))
        assert await house.reap(at + 29) == Reaped()


async def test_the_end_of_one_session_leaves_its_neighbours_alone(house: House) -> None:
    lost, kept = await house.session(), await house.session(at=25)
    first = house.pending()
    await house.claimed(lost)
    second = house.pending()
    await house.claimed(kept)
    await house.reap(30)
    neighbour = house.live(second)
    assert neighbour is not None
    assert neighbour["session_id"] == kept
    freed = house.live(first)
    assert freed is not None
    assert freed["session_id"] is None


async def test_two_reapers_at_once_charge_once(house: House, database: Database) -> None:
    run_ids = [house.pending() for _ in range(50)]
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    house.monotonic = 30
    async with await database.hot_connection() as other:
        reaped = await asyncio.gather(
            house.reaper.step(house.connection, now=after(30)), house.reaper.step(other, now=after(30))
        )
    assert reaped[0] + reaped[1] == Reaped(sessions=1, charged=50)
    assert {len(house.attempts(run_id)) for run_id in run_ids} == {1}


async def test_an_overdue_attempt_fails_and_is_tried_again_after_the_delay(house: House) -> None:
    run_id = house.pending(attempt_timeout=timedelta(seconds=60))
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id), at=1)
    await extend_leases(house.connection, {session_id: 1}, lease=1000, now=after(1))
    assert await house.reap(65) == Reaped(), "the worker itself is to say so first"
    assert await house.reap(71) == Reaped(charged=1)
    live = house.live(run_id)
    assert live is not None
    assert (live["attempt"], live["alone"], live["run_after"]) == (2, False, after(671))
    [attempt] = house.attempts(run_id)
    assert (attempt["error"]["code"], attempt["worker"]) == ("ATTEMPT_TIMEOUT", "worker-1")


async def test_the_last_overdue_attempt_ends_the_run(house: House) -> None:
    run_id = house.pending(attempt_timeout=timedelta(seconds=60), max_attempts=1)
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    await extend_leases(house.connection, {session_id: 1}, lease=1000, now=START)
    assert await house.reap(70) == Reaped(failed=1)
    record = house.record(run_id)
    assert record is not None
    assert (record["state"], record["error"]["code"]) == ("FAILED", "ATTEMPT_TIMEOUT")


async def test_a_run_over_its_time_ends_also_while_it_waits(house: House) -> None:
    run_id = house.pending(run_timeout=timedelta(seconds=100))
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    await house.reap(30)
    assert await house.reap(99) == Reaped()
    assert await house.reap(100) == Reaped(failed=1)
    record = house.record(run_id)
    assert record is not None
    assert (record["state"], record["error"]["code"], record["attempt"]) == ("FAILED", "RUN_TIMEOUT", 2)


async def test_a_run_over_its_time_ends_also_while_it_runs(house: House) -> None:
    run_id = house.pending(run_timeout=timedelta(seconds=100))
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    await extend_leases(house.connection, {session_id: 1}, lease=1000, now=START)
    assert await house.reap(110) == Reaped(failed=1)
    record = house.record(run_id)
    assert record is not None
    assert record["error"]["code"] == "RUN_TIMEOUT"


async def test_the_end_of_the_cancel_grace_ends_the_run(house: House) -> None:
    run_id = house.pending(cancel_grace=timedelta(seconds=5))
    session_id = await house.session()
    await house.started(session_id, await house.claimed(session_id))
    ask_to_stop(house, run_id, at=10)
    assert await house.reap(14.9) == Reaped()
    assert await house.reap(15) == Reaped(cancelled=1)
    record = house.record(run_id)
    assert record is not None
    assert (record["state"], record["cancel_requested_at"]) == ("CANCELLED", after(10))


async def test_a_run_that_nobody_holds_and_was_asked_to_stop_ends_at_once(house: House) -> None:
    run_id = house.pending()
    ask_to_stop(house, run_id, at=0)
    assert await house.reap(0) == Reaped(cancelled=1)
    assert house.live(run_id) is None


async def test_a_clock_that_jumps_ends_no_session(house: House) -> None:
    house.pending()
    session_id = await house.session()
    await house.claimed(session_id)
    assert await house.reap(1) == Reaped()
    house.monotonic = 2
    assert await house.reaper.step(house.connection, now=after(3600)) == Reaped()
    await extend_leases(house.connection, {session_id: 1}, lease=LEASE, now=after(3601))
    house.monotonic = 31
    assert await house.reaper.step(house.connection, now=after(3629)) == Reaped()
    house.monotonic = 33
    assert await house.reaper.step(house.connection, now=after(3631)) == Reaped(sessions=1, freed=1)


async def test_what_was_reaped_wakes_dispatchers_and_watchers(house: House) -> None:
    house.pending()
    await house.claimed(await house.session())
    pending, runs = house.wakeups.listen(Topic.PENDING), house.wakeups.listen(Topic.RUNS)
    await house.reap(1)
    assert not pending.take()
    await house.reap(30)
    assert pending.take()
    assert runs.take()


class Stops:
    """The port of a connected worker that remembers what it was asked to stop."""

    def __init__(self) -> None:
        self.asked: list[AttemptRef] = []

    def assign(self, claim_id: int, runs: object, asked_at: float) -> None: ...

    def acknowledge(self, verdicts: object) -> None: ...

    def cancel(self, attempts: Any) -> None:
        self.asked.extend(attempts)


async def test_a_connected_worker_is_told_once_to_stop(house: House) -> None:
    run_id, other = house.pending(), house.pending()
    session_id = await house.session()
    made = await house.claimed(session_id)
    stops = Stops()
    house.sessions.connect(ConnectedSession(session_id, "worker-1", frozenset({"http"}), 1, stops))
    cancels = Cancels(house.sessions)
    assert not await cancels.step(house.connection)
    ask_to_stop(house, run_id, at=1)
    assert await cancels.step(house.connection)
    assert not await cancels.step(house.connection)
    assert stops.asked == [AttemptRef(run_id, 1, made.claim_id)]
    newer = Stops()
    house.sessions.connect(ConnectedSession(session_id, "worker-1", frozenset({"http"}), 2, newer))
    ask_to_stop(house, other, at=2)
    assert await cancels.step(house.connection)
    assert {ref.run_id for ref in newer.asked} == {run_id, other}


def ask_to_stop(house: House, run_id: UUID, *, at: float) -> None:
    house.admin.execute("update carillon.live_runs set cancel_requested_at = %s where run_id = %s", (after(at), run_id))
