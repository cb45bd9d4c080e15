"""Starts, progress and items: written in batches, and only for what a session still holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from scheduler_service.domain.attempt import AttemptRef, ItemResult
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.store.claim import claim
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.store.items import insert_items
from scheduler_service.store.progress import Progress, record_progress
from scheduler_service.store.starts import Start, record_starts
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests.builders import make_job, make_live_run, make_session
from tests.store.engine_case import Received

START = datetime.now(UTC).replace(microsecond=0)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with await database.hot_connection() as connection:
        yield connection


@pytest.fixture
async def held(connection: Connection, admin: psycopg.Connection[Any]) -> tuple[UUID, AttemptRef]:
    """A session, and the attempt that it holds since START."""
    make_live_run(
        admin,
        make_job(admin),
        at=START,
        attempt_timeout=timedelta(seconds=60),
        run_timeout=timedelta(seconds=500),
        tenant="brand-7",
    )
    session_id = make_session(admin)
    made = await claim(connection, session_id, ["http"], 1, START)
    assert made is not None
    return session_id, AttemptRef(made.runs[0].run_id, 1, made.claim_id)


def a_start(held: tuple[UUID, AttemptRef], age: float) -> Start:
    session_id, ref = held
    return Start(ref.run_id, ref.attempt, ref.claim_id, session_id, age)


def times(admin: psycopg.Connection[Any]) -> Any:
    return admin.execute(
        "select started_at, deadline, first_started_at, run_deadline from carillon.live_runs"
    ).fetchone()


async def test_a_start_sets_the_deadlines(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    assert await record_starts(connection, [a_start(held, age=2)], now=after(10)) == [held[1].run_id]
    assert times(admin) == (after(8), after(68), after(8), after(508))


async def test_no_attempt_starts_before_it_was_handed_over(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    await record_starts(connection, [a_start(held, age=3600)], now=after(10))
    assert times(admin)[0] == START


async def test_only_the_first_report_of_a_start_counts(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    await record_starts(connection, [a_start(held, age=0)], now=after(1))
    assert await record_starts(connection, [a_start(held, age=0)], now=after(2)) == []
    assert times(admin)[0] == after(1)


async def test_a_start_by_who_does_not_hold_the_attempt_is_left_alone(
    connection: Connection, held: tuple[UUID, AttemptRef]
) -> None:
    start = a_start(held, age=0)
    wrong = [
        replace(start, claim_id=start.claim_id + 1),
        replace(start, attempt=2),
        replace(start, session_id=uuid4()),
        replace(start, run_id=uuid4()),
    ]
    assert await record_starts(connection, wrong, now=after(1)) == []


async def test_progress_is_kept_only_for_who_holds_the_attempt(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    session_id, ref = held
    made = Progress(ref.run_id, 1, ref.claim_id, session_id, 3, 10, 'page "3" of {x}')
    assert await record_progress(connection, [replace(made, session_id=uuid4())], now=after(1)) == []
    assert await record_progress(connection, [made], now=after(1)) == [ref.run_id]
    [progress] = admin.execute("select progress from carillon.live_runs").fetchone() or [None]
    assert datetime.fromisoformat(progress.pop("updated_at")) == after(1)
    assert progress == {"done": 3, "total": 10, "message": 'page "3" of {x}'}


async def test_reports_write_progress_at_most_once_a_second_and_the_latest_wins(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    session_id, ref = held
    clock = [100.0]
    wakeups = Wakeups()
    changed = wakeups.listen(Topic.RUNS)
    reports = Reports(wakeups, clock=lambda: clock[0])
    session = ConnectedSession(session_id, "worker-1", frozenset({"http"}), 1, Received())

    async def done_after(done: int) -> int:
        reports.progressed(session, [(ref, (done, 10, ""))])
        await reports.step(connection)
        [kept] = admin.execute("select progress -> 'done' from carillon.live_runs").fetchone() or [None]
        return int(kept)

    assert await done_after(1) == 1
    assert changed.take()
    assert await done_after(2) == 1
    assert not changed.take()
    clock[0] += 0.4
    assert await done_after(3) == 1
    assert reports.seconds_to_next == pytest.approx(0.6)
    clock[0] += 0.6
    assert await done_after(4) == 4
    assert reports.seconds_to_next is None


def a_session(session_id: UUID) -> ConnectedSession:
    return ConnectedSession(session_id, "worker-1", frozenset({"http"}), 1, Received())


def of_nobody(count: int) -> list[AttemptRef]:
    return [AttemptRef(uuid4(), 1, 1) for _ in range(count)]


async def test_a_flood_of_starts_delays_those_of_other_sessions_by_nothing(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    session_id, ref = held
    flood, reports = a_session(uuid4()), Reports(Wakeups())
    reports.started(flood, [(one, 0.0) for one in of_nobody(1_000) * 101])
    assert not reports.room.is_left_for(flood)
    reports.started(a_session(session_id), [(ref, 0.0)])
    assert await reports.step(connection)
    assert times(admin)[0] is not None


async def test_progress_is_written_in_batches_and_makes_room_once_it_is_written(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    session_id, ref = held
    clock = [100.0]
    flood, reports = a_session(uuid4()), Reports(Wakeups(), clock=lambda: clock[0])
    for _ in range(50):
        reports.progressed(flood, [(one, (1, 2, "x" * 3_000)) for one in of_nobody(30)])
        reports.progressed(flood, [(one, (1, 2, "")) for one in of_nobody(10)] * 200)
    assert not reports.room.is_left_for(flood)
    reports.progressed(a_session(session_id), [(ref, (3, 10, ""))])
    assert not await reports.step(connection)
    assert reports.seconds_to_next == 0.0
    while admin.execute("select progress -> 'done' from carillon.live_runs").fetchone() != (3,):
        assert reports.seconds_to_next == 0.0
        await reports.step(connection)
    assert reports.room.is_left_for(flood)
    assert reports.seconds_to_next is None


async def test_items_are_kept_once_each_with_the_runs_tenant(
    connection: Connection, admin: psycopg.Connection[Any], held: tuple[UUID, AttemptRef]
) -> None:
    session_id, ref = held
    items = [
        ItemResult(ref, session_id, "a@example.org", succeeded=True),
        ItemResult(ref, session_id, "b@example.org", succeeded=False, error="no such mailbox"),
        ItemResult(ref, session_id, "a@example.org", succeeded=False, error="later result of the same key"),
    ]
    assert await insert_items(connection, items, now=after(5)) == 2
    assert await insert_items(connection, items, now=after(6)) == 0
    kept = admin.execute(
        "select key, tenant_id, succeeded, error, finished_at from carillon.items order by key"
    ).fetchall()
    assert kept == [
        ("a@example.org", "brand-7", True, "", after(5)),
        ("b@example.org", "brand-7", False, "no such mailbox", after(5)),
    ]


async def test_items_with_an_old_token_are_left_out(connection: Connection, held: tuple[UUID, AttemptRef]) -> None:
    session_id, ref = held
    stale = [
        ItemResult(ref._replace(claim_id=ref.claim_id + 1), session_id, "a", succeeded=True),
        ItemResult(ref._replace(attempt=2), session_id, "b", succeeded=True),
        ItemResult(ref._replace(run_id=uuid4()), session_id, "c", succeeded=True),
        ItemResult(ref, uuid4(), "another session's", succeeded=True),
    ]
    assert await insert_items(connection, [*stale, ItemResult(ref, session_id, "d", succeeded=True)], now=after(1)) == 1
