"""Readers are told why a pending run is in no worker's hands, and learn nothing more of workers by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.domain.access import Principal
from scheduler_service.domain.pending import PendingReason, Served
from scheduler_service.domain.run import RunState
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.store.database import Database
from scheduler_service.store.served_routes import ServedRoutes
from scheduler_service.usecases.runs import get_run, list_runs
from tests import builders
from tests.builders import ADMIN, MadeJob
from tests.conftest import DatabaseUrls

Admin = psycopg.Connection[Any]
HOUR = timedelta(hours=1)


@pytest.fixture
def job(admin: Admin) -> MadeJob:
    return builders.make_job(admin)


async def reason(database: Database, run_id: UUID, by: Principal = ADMIN) -> PendingReason | None:
    return (await get_run(database, by, run_id)).pending_reason


async def reasons(database: Database, by: Principal = ADMIN) -> dict[UUID, PendingReason | None]:
    return {run.run_id: run.pending_reason for run in (await list_runs(database, by, RunFilter())).runs}


async def test_each_pending_run_says_why_and_no_other_does(database: Database, admin: Admin, job: MadeJob) -> None:
    session = builders.make_session(admin)
    schedule = builders.make_schedule(admin, job)
    taken = builders.make_live_run(admin, job)
    builders.claim(admin, taken, session)
    turn: dict[str, Any] = {"schedule_id": schedule, "revision": 1, "exclusive": True}
    expected = {
        builders.make_live_run(admin, job, blocked=True, **turn): PendingReason.BLOCKED,
        builders.make_live_run(admin, job, run_after=builders.now() + HOUR): PendingReason.NOT_DUE,
        builders.make_live_run(admin, job, attempt=2, run_after=builders.now() + HOUR): PendingReason.RETRY_DELAY,
        builders.make_live_run(admin, job, route="handler/email-service/digest"): PendingReason.NO_WORKER,
        builders.make_live_run(admin, job, route="grpc", alone=True): PendingReason.NO_WORKER,
        builders.make_live_run(admin, job, alone=True): PendingReason.ALONE,
        builders.make_live_run(admin, job): PendingReason.READY,
        builders.make_live_run(admin, job, attempt=2): PendingReason.READY,
        taken: None,
        builders.make_ended_run(admin, job): None,
        builders.make_ended_run(admin, job, RunState.SKIPPED): None,
    }
    assert await reasons(database) == expected
    for run_id, why in expected.items():
        assert await reason(database, run_id) is why


async def test_a_session_whose_lease_is_over_serves_nothing(database: Database, admin: Admin, job: MadeJob) -> None:
    builders.make_session(admin)
    admin.execute("update carillon.sessions set expires_at = now()")
    assert await reason(database, builders.make_live_run(admin, job)) is PendingReason.NO_WORKER


async def test_a_worker_that_comes_counts_from_the_next_call_on(database: Database, admin: Admin, job: MadeJob) -> None:
    run_id = builders.make_live_run(admin, job)
    assert await reason(database, run_id) is PendingReason.NO_WORKER
    builders.make_session(admin)
    assert await reason(database, run_id) is PendingReason.READY


async def test_what_waits_behind_a_run_that_is_alone_says_so(database: Database, admin: Admin, job: MadeJob) -> None:
    session = builders.make_session(admin)
    builders.claim(admin, builders.make_live_run(admin, job, alone=True), session)
    turn: dict[str, Any] = {"schedule_id": builders.make_schedule(admin, job), "revision": 1, "exclusive": True}
    expected = {
        builders.make_live_run(admin, job, tenant="tenant-a"): PendingReason.BEHIND_ALONE,
        builders.make_live_run(admin, job, tenant="tenant-a", alone=True): PendingReason.ALONE,
        builders.make_live_run(admin, job, tenant="tenant-a", blocked=True, **turn): PendingReason.BLOCKED,
        builders.make_live_run(admin, job, tenant="tenant-a", route="grpc"): PendingReason.NO_WORKER,
    }
    assert await reasons(database, builders.user("tenant-a")) == expected
    for run_id, why in expected.items():
        assert await reason(database, run_id) is why


async def test_whoever_sees_a_run_is_told_the_same_and_sees_no_more_of_workers(
    database: Database, admin: Admin, job: MadeJob
) -> None:
    builders.make_session(admin)
    mine = builders.make_live_run(admin, job, tenant="tenant-a")
    builders.make_live_run(admin, job, tenant="tenant-b")
    user = builders.user("tenant-a")
    for caller in (ADMIN, builders.service("email-service"), user):
        assert await reason(database, mine, caller) is PendingReason.READY
    assert await reasons(database, user) == {mine: PendingReason.READY}
    async with database.acting_for(user) as tx:
        seen = await tx.driver_connection()
        assert await (await seen.execute("select worker from carillon.sessions")).fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await seen.execute("select routes from carillon.sessions")


async def test_runs_are_read_without_it_where_the_engines_login_leads_nowhere(
    database_urls: DatabaseUrls, admin: Admin, job: MadeJob
) -> None:
    builders.make_session(admin)
    ready, later = (builders.make_live_run(admin, job, run_after=builders.now() + wait) for wait in (-HOUR, HOUR))
    broken = Database(database_urls.api, database_urls.engine.replace("carillon_engine:", "carillon_engine:not-"))
    try:
        assert await reasons(broken) == {ready: None, later: PendingReason.NOT_DUE}
    finally:
        await broken.close()


class Looking:
    """How often somebody looks, on a clock that the test steps. `begun`: somebody does.
    `held`: no look ends before it is set."""

    def __init__(self, database: Database) -> None:
        self.looks = 0
        self.now = 100.0
        self.begun, self.held = asyncio.Event(), asyncio.Event()
        self.held.set()
        self._database = database
        self.routes = ServedRoutes(self._connect, lambda: self.now)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncConnection]:
        self.looks += 1
        self.begun.set()
        await self.held.wait()
        async with self._database.as_engine() as connection:
            yield connection

    async def ask(self, route: str = "http") -> Served | None:
        return await self.routes.serves(route, now=builders.now(), since=self.now)


@pytest.fixture
def looking(database: Database) -> Looking:
    return Looking(database)


async def test_what_is_served_is_looked_up_once_a_second_for_all(looking: Looking, admin: Admin) -> None:
    builders.make_session(admin)
    assert [await looking.ask() for _ in range(3)] == [Served.YES] * 3
    looking.now += 0.9
    assert (await looking.ask(), looking.looks) == (Served.YES, 1)
    looking.now += 0.2
    assert (await looking.ask(), looking.looks) == (Served.YES, 2)
    admin.execute("delete from carillon.sessions")
    looking.now += 1.1
    assert (await looking.ask(), looking.looks) == (Served.NO, 3)


async def test_a_route_is_kept_while_each_session_that_serves_it_holds_a_run_that_is_alone(
    looking: Looking, admin: Admin, job: MadeJob
) -> None:
    async def seen_next() -> Served | None:
        looking.now += 1.1
        return await looking.ask()

    first = builders.make_session(admin)
    builders.claim(admin, builders.make_live_run(admin, job), first)
    builders.make_live_run(admin, job, alone=True)
    assert await looking.ask() is Served.YES, "a run that is to be alone only waits"
    held = builders.make_live_run(admin, job, alone=True)
    builders.claim(admin, held, first)
    assert await seen_next() is Served.KEPT
    elsewhere = builders.make_session(admin)
    admin.execute("update carillon.sessions set routes = '{grpc}' where session_id = %s", [elsewhere])
    assert await seen_next() is Served.KEPT
    second = builders.make_session(admin)
    assert await seen_next() is Served.YES
    admin.execute("update carillon.sessions set expires_at = now() where session_id = %s", [second])
    assert await seen_next() is Served.KEPT
    builders.finish(admin, held)
    assert await seen_next() is Served.YES


async def test_that_a_route_is_kept_is_looked_up_once_a_second_too(
    looking: Looking, admin: Admin, job: MadeJob
) -> None:
    builders.claim(admin, builders.make_live_run(admin, job, alone=True), builders.make_session(admin))
    assert [await looking.ask() for _ in range(3)] == [Served.KEPT] * 3
    looking.now += 0.9
    assert (await looking.ask(), looking.looks) == (Served.KEPT, 1)


async def test_that_nobody_serves_it_is_looked_up_once_a_call(looking: Looking) -> None:
    assert [await looking.ask(route) for route in ("http", "grpc", "http")] == [Served.NO] * 3
    assert looking.looks == 1, "all of them in one call"
    looking.now += 0.001
    assert (await looking.ask(), looking.looks) == (Served.NO, 2)


async def test_those_who_ask_while_somebody_looks_share_the_look_after_it(looking: Looking, admin: Admin) -> None:
    builders.make_session(admin)
    looking.held.clear()
    first = asyncio.create_task(looking.ask())
    await looking.begun.wait()
    looking.now += 0.001
    others = [asyncio.create_task(looking.ask()) for _ in range(20)]
    looking.held.set()
    assert await asyncio.gather(first, *others) == [Served.YES] * 21
    assert looking.looks <= 2
