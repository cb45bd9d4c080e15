"""Watching real runs change, as other connections write them, without a word from them unless a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from scheduler_service.domain.access import ANONYMOUS, Principal
from scheduler_service.domain.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import RunState, id_floor
from scheduler_service.store.database import Database
from scheduler_service.store.errors import translate
from scheduler_service.usecases.wakeups import Topic, Wakeups
from scheduler_service.usecases.watch import Pace, watch_runs
from tests import builders
from tests.builders import ADMIN, MadeJob

NAME = JobName("email-service", "weekly-digest")
_LONGEST_WAIT = 60
# Looks by itself only after far longer than any test takes.
ONLY_WHEN_WOKEN = Pace(pause=0.0, poll=600.0)
POLLING = Pace(pause=0.01, poll=0.05)


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin)


class Watcher:
    """What a watch yields, one at a time."""

    def __init__(self, runs: AsyncIterator[Run]) -> None:
        self._runs = runs

    async def next(self) -> Run:
        return await asyncio.wait_for(anext(self._runs), _LONGEST_WAIT)

    async def next_state(self, run_id: UUID) -> RunState:
        run = await self.next()
        assert run.run_id == run_id
        return run.state

    async def rest(self) -> list[Run]:
        async with asyncio.timeout(_LONGEST_WAIT):
            return [run async for run in self._runs]


@asynccontextmanager
async def watching(
    database: Database,
    target: JobName | ScheduleName | UUID,
    *,
    principal: Principal = ADMIN,
    wakeups: Wakeups | None = None,
    pace: Pace = POLLING,
) -> AsyncIterator[Watcher]:
    changes = watch_runs(database, wakeups or Wakeups(), principal, target, pace=pace)
    async with aclosing(changes):
        yield Watcher(changes)


async def test_a_run_is_seen_from_pending_to_completed_without_being_told(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job)
    session = builders.make_session(admin)
    async with watching(database, NAME) as watcher:
        assert await watcher.next_state(run_id) is RunState.PENDING
        builders.claim(admin, run_id, session)
        assert await watcher.next_state(run_id) is RunState.RUNNING
        progress = '{"done": 1, "total": 2, "message": "half", "updated_at": "2026-03-01T09:00:00.5+00:00"}'
        admin.execute("update carillon.live_runs set progress = %s", [progress])
        seen = await watcher.next()
        assert seen.progress is not None
        assert (seen.progress.done, seen.progress.message, seen.progress.updated_at.microsecond) == (1, "half", 500_000)
        builders.finish(admin, run_id)
        assert await watcher.next_state(run_id) is RunState.COMPLETED
        following = builders.make_live_run(admin, job)
        assert await watcher.next_state(following) is RunState.PENDING


async def test_a_wake_up_is_enough(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    wakeups = Wakeups()
    first = builders.make_live_run(admin, job)
    async with watching(database, NAME, wakeups=wakeups, pace=ONLY_WHEN_WOKEN) as watcher:
        await watcher.next_state(first)
        second = builders.make_live_run(admin, job)
        wakeups.wake(Topic.RUNS)
        assert await watcher.next_state(second) is RunState.PENDING


async def test_a_run_that_begins_and_ends_between_two_looks_is_seen(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    wakeups = Wakeups()
    first = builders.make_live_run(admin, job)
    async with watching(database, NAME, wakeups=wakeups, pace=ONLY_WHEN_WOKEN) as watcher:
        await watcher.next_state(first)
        quick = builders.make_live_run(admin, job)
        builders.finish(admin, quick, RunState.FAILED)
        wakeups.wake(Topic.RUNS)
        assert await watcher.next_state(quick) is RunState.FAILED
        builders.finish(admin, first)
        wakeups.wake(Topic.RUNS)
        assert await watcher.next_state(first) is RunState.COMPLETED


async def test_what_ended_before_the_watch_is_not_sent(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    builders.make_ended_run(admin, job)
    run_id = builders.make_live_run(admin, job)
    async with watching(database, NAME) as watcher:
        assert await watcher.next_state(run_id) is RunState.PENDING


async def test_a_watch_of_one_run_ends_with_its_outcome(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job)
    async with watching(database, run_id) as watcher:
        assert await watcher.next_state(run_id) is RunState.PENDING
        builders.make_live_run(admin, job)
        builders.finish(admin, run_id)
        assert [run.state for run in await watcher.rest()] == [RunState.COMPLETED]


async def test_a_watch_of_a_run_that_ended_long_ago_ends_at_once(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_ended_run(admin, job, at=builders.days_ago(2))
    async with watching(database, run_id) as watcher:
        assert [run.run_id for run in await watcher.rest()] == [run_id]


async def test_a_watch_of_a_schedule_shows_its_runs_only(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    schedule_id = builders.make_schedule(admin, job, "morning", "tenant-a")
    builders.make_live_run(admin, job, tenant="tenant-a")
    of_schedule = builders.make_live_run(
        admin, job, tenant="tenant-a", schedule_id=schedule_id, revision=1, trigger="SCHEDULE"
    )
    name = ScheduleName(NAME, "tenant-a", "morning")
    for principal in (ADMIN, builders.user("tenant-a"), builders.service("email-service")):
        async with watching(database, name, principal=principal) as watcher:
            assert await watcher.next_state(of_schedule) is RunState.PENDING


async def test_a_user_sees_its_tenants_runs_only(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    async with watching(database, NAME, principal=builders.user("tenant-a")) as watcher:
        coming = asyncio.create_task(watcher.next())
        builders.make_live_run(admin, job)
        builders.make_ended_run(admin, job, tenant="tenant-b")
        mine = builders.make_live_run(admin, job, tenant="tenant-a")
        assert (await coming).run_id == mine


async def test_more_runs_than_are_read_at_once_all_come(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    made = {builders.make_live_run(admin, job) for _ in range(120)}
    async with watching(database, NAME) as watcher:
        assert {(await watcher.next()).run_id for _ in made} == made


async def test_nothing_to_watch_is_not_found(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    run_id = builders.make_live_run(admin, job, tenant="tenant-a")
    builders.make_schedule(admin, job, "morning", "tenant-a")
    refusals: list[tuple[Principal, JobName | ScheduleName | UUID, type[Exception]]] = [
        (ADMIN, id_floor(builders.now()), NotFound),
        (ADMIN, JobName("email-service", "other"), NotFound),
        (ADMIN, ScheduleName(NAME, "tenant-a", "evening"), NotFound),
        (builders.user("tenant-b"), run_id, NotFound),
        (builders.user("tenant-b"), ScheduleName(NAME, "tenant-a", "morning"), NotFound),
        (builders.service("kpi-service"), run_id, NotFound),
        (builders.service("kpi-service"), NAME, Forbidden),
        (ANONYMOUS, run_id, Unauthenticated),
    ]
    for principal, target, refusal in refusals:
        async with watching(database, target, principal=principal) as watcher:
            with pytest.raises(refusal):
                await watcher.next()


async def test_no_transaction_is_open_while_a_watcher_waits(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job)
    async with watching(database, NAME) as watcher:
        await watcher.next_state(run_id)
        open_ones = admin.execute(
            "select count(*) from pg_stat_activity where usename = 'carillon_api' and state like '%in transaction%'"
        ).fetchone()
        assert open_ones == (0,)


async def test_a_watch_ends_when_the_database_goes(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job)
    async with watching(database, NAME) as watcher:
        await watcher.next_state(run_id)
        builders.cut_off_the_api(admin)
        with pytest.raises(DBAPIError) as ended:
            await watcher.next()
        assert isinstance(translate(ended.value), Unavailable)


async def test_a_watch_ends_when_its_replica_goes(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    wakeups = Wakeups()
    run_id = builders.make_live_run(admin, job)
    async with watching(database, NAME, wakeups=wakeups, pace=ONLY_WHEN_WOKEN) as watcher:
        await watcher.next_state(run_id)
        wakeups.end()
        with pytest.raises(Unavailable, match="watch again") as refused:
            await watcher.next()
    assert refused.value.retry_after == 0.0
