"""Changes that had to wait for somebody count from when they got their locks, and leave no gap to the ticks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.job import JobOverrides, Manifest
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.store.database import Database
from scheduler_service.usecases.jobs import pause_job, resume_job
from scheduler_service.usecases.registry import register_jobs, remove_job
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN
from tests.conftest import DatabaseUrls
from tests.store.definitions_case import (
    DIGEST,
    EMAIL,
    MINUTE,
    START,
    Scheduler,
    digest,
    every,
    for_tenant,
    own,
)

SECOND = timedelta(seconds=1)
_WAITING = "select count(*) from pg_stat_activity where usename = 'carillon_api' and wait_event_type = 'Lock'"


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    await scheduler.register(digest(timing=every("10m"), tenant_schedules=True))
    return scheduler


@asynccontextmanager
async def ticking(connection: psycopg.AsyncConnection[Any], now: datetime) -> AsyncIterator[None]:
    """Another replica's tick, which has written what it does and not yet committed."""
    async with connection.transaction():
        assert (await tick(connection, NobodySeated(), now=now)).schedules == 1
        yield


@contextmanager
def held(urls: DatabaseUrls, table: str) -> Iterator[None]:
    """A transaction of somebody else's that has the rows of a table locked."""
    with psycopg.connect(urls.admin) as rival:
        rival.execute(f"select from carillon.{table} for no key update".encode())
        yield


async def until_it_waits(change: asyncio.Task[Any], admin: psycopg.Connection[Any]) -> None:
    """Until a change waits for a lock, or does not."""
    async with asyncio.timeout(60):
        while not change.done() and admin.execute(_WAITING).fetchone() == (0,):  # noqa: ASYNC110 - nothing says it
            await asyncio.sleep(0)


def owed_from(scheduler: Scheduler) -> datetime:
    row = scheduler.admin.execute("select owed_from from carillon.jobs").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return] # a timestamptz


async def test_a_run_that_a_tick_makes_while_its_job_is_removed_ends_with_the_job(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    due = START + 10 * MINUTE
    scheduler.database.now = due - SECOND
    async with ticking(scheduler.hot, due):
        removal = asyncio.create_task(remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST))
        await until_it_waits(removal, admin)
        scheduler.database.now = due + SECOND
    removed = await removal
    assert removed.archived_at == due + SECOND
    assert admin.execute("select count(*) from carillon.live_runs").fetchone() == (0,)
    assert admin.execute("select state::text from carillon.runs").fetchall() == [("CANCELLED",)]


async def test_a_registration_that_leaves_a_job_out_ends_such_a_run_too(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    due = START + 10 * MINUTE
    scheduler.database.now = due - SECOND
    async with ticking(scheduler.hot, due):
        manifest = Manifest("email-service", jobs=(digest("other"),), allow_mass_removal=True)
        registration = asyncio.create_task(register_jobs(scheduler.database, scheduler.wakeups, EMAIL, manifest))
        await until_it_waits(registration, admin)
    await registration
    assert admin.execute("select count(*) from carillon.live_runs").fetchone() == (0,)


async def test_an_occurrence_that_a_tick_passes_over_is_not_owed_by_the_job_that_is_resumed_meanwhile(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    await pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    due = START + 10 * MINUTE
    scheduler.database.now = due - SECOND
    async with ticking(scheduler.hot, due):
        resuming = asyncio.create_task(resume_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST))
        await until_it_waits(resuming, admin)
        scheduler.database.now = due + SECOND
    await resuming
    assert owed_from(scheduler) == due + SECOND


async def test_resuming_counts_from_when_it_was_done_not_from_when_it_was_asked(
    scheduler: Scheduler, database_urls: DatabaseUrls, admin: psycopg.Connection[Any]
) -> None:
    await pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    scheduler.database.now = START + 5 * MINUTE
    with held(database_urls, "jobs"):
        resuming = asyncio.create_task(resume_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST))
        await until_it_waits(resuming, admin)
        await scheduler.tick_until(START + 25 * MINUTE)
    await resuming
    assert owed_from(scheduler) == START + 25 * MINUTE
    await scheduler.tick_until(START + 30 * MINUTE)
    assert scheduler.fired() == [(START + 30 * MINUTE, 1)]


@pytest.mark.parametrize("table", ["services", "jobs"])
async def test_registering_counts_from_when_it_was_done(
    scheduler: Scheduler, database_urls: DatabaseUrls, admin: psycopg.Connection[Any], table: str
) -> None:
    scheduler.database.now = START + 5 * MINUTE
    with held(database_urls, table):
        jobs = [digest(timing=every("10m")), digest("new", timing=every("10m"))]
        registration = asyncio.create_task(scheduler.register(*jobs))
        await until_it_waits(registration, admin)
        scheduler.database.now = START + 25 * MINUTE
    made = (await registration).changes[1].job
    assert (made.created_at, made.owed_from) == (START + 25 * MINUTE,) * 2
    assert made.next_run_at == START + 30 * MINUTE


async def test_a_new_timing_counts_from_when_the_change_was_done(
    scheduler: Scheduler, database_urls: DatabaseUrls, admin: psycopg.Connection[Any]
) -> None:
    scheduler.database.now = START + 5 * MINUTE
    with held(database_urls, "jobs"):
        change = asyncio.create_task(scheduler.override(JobOverrides(timing=every("1m")), "timing"))
        await until_it_waits(change, admin)
        await scheduler.tick_until(START + 15 * MINUTE)
    await change
    assert (await scheduler.get(own())).settled_to == START + 15 * MINUTE


@pytest.mark.parametrize("there", [False, True])
async def test_a_schedule_counts_from_when_it_was_put(
    scheduler: Scheduler, database_urls: DatabaseUrls, admin: psycopg.Connection[Any], there: bool
) -> None:
    if there:
        await scheduler.put(for_tenant("acme"), ScheduleSpec(timing=every("1h")))
    scheduler.database.now = START + 5 * MINUTE
    with held(database_urls, "schedules" if there else "jobs"):
        put = asyncio.create_task(scheduler.put(for_tenant("acme"), ScheduleSpec(timing=every("1m"))))
        await until_it_waits(put, admin)
        scheduler.database.now = START + 25 * MINUTE
    schedule = await put
    assert (schedule.settled_to, schedule.next_run_at) == (START + 25 * MINUTE, START + 26 * MINUTE)


async def test_the_databases_clock_is_looked_at_after_the_wait(
    scheduler: Scheduler, database: Database, database_urls: DatabaseUrls, admin: psycopg.Connection[Any]
) -> None:
    with held(database_urls, "services"):
        removal = asyncio.create_task(remove_job(database, Wakeups(), EMAIL, DIGEST))
        await until_it_waits(removal, admin)
        row = admin.execute("select clock_timestamp()").fetchone()
        assert row is not None
    removed = await removal
    assert removed.archived_at is not None
    assert removed.archived_at > row[0]
