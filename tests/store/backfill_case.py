"""What the tests of backfills share: an hourly job, on a clock that the test steps, and ranges around START."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from scheduler_service.domain.access import Principal
from scheduler_service.domain.backfill import Backfill
from scheduler_service.domain.job import Policies, TimingSpec
from scheduler_service.domain.names import BackfillName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases.backfill import (
    BackfillRequest,
    backfill_job,
)
from tests.builders import ADMIN
from tests.store.definitions_case import (
    DIGEST,
    HOUR,
    START,
    Scheduler,
    digest,
)

DAY = timedelta(days=1)
ALLOW_ALL = Policies(overlap=Overlap.ALLOW_ALL, catch_up=CatchUp.ALL)
ONE_AT_A_TIME = Policies(overlap=Overlap.SKIP, catch_up=CatchUp.ALL)


async def register(scheduler: Scheduler, policies: Policies, cron: str = "0 * * * *", **fields: Any) -> None:
    timing = TimingSpec(cron=cron, time_zone=fields.pop("time_zone", "UTC"))
    await scheduler.register(digest(timing=timing, tenant_schedules=True, policies=policies, **fields))


def hours(first: int, end: int, **fields: Any) -> BackfillRequest:
    """From so many hours after START on until others."""
    return BackfillRequest(DIGEST, START + first * HOUR, START + end * HOUR, **fields)


async def fill(scheduler: Scheduler, request: BackfillRequest, by: Principal = ADMIN) -> Backfill:
    made: list[Backfill] = []

    def encode(backfill: Backfill) -> bytes:
        made.append(backfill)
        return b""

    await backfill_job(scheduler.database, scheduler.wakeups, by, request, encode)
    return made[0]


def name_of(backfill: Backfill) -> BackfillName:
    assert backfill.name is not None
    return backfill.name


def numbers(backfill: Backfill) -> tuple[int, int, int]:
    return backfill.occurrences, backfill.passed_over, backfill.runs


def made_runs(admin: psycopg.Connection[Any]) -> list[tuple[datetime, int]]:
    """Each live backfill run's nominal instant and revision, in the order of their ids."""
    rows = admin.execute(
        "select scheduled_for, revision from carillon.live_runs where trigger = 'BACKFILL' order by run_id"
    ).fetchall()
    return [(instant.astimezone(UTC), revision) for instant, revision in rows]


def run_of(admin: psycopg.Connection[Any], instant: datetime) -> Any:
    row = admin.execute("select run_id from carillon.live_runs where scheduled_for = %s", [instant]).fetchone()
    assert row is not None
    return row[0]


def remedies(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("select count(*) from carillon.remedies").fetchone()
    assert row is not None
    return int(row[0])


async def somebody_waits(admin: psycopg.Connection[Any]) -> None:
    """Until a caller of the API waits for a lock."""
    waiting = "select count(*) from pg_stat_activity where usename = 'carillon_api' and wait_event_type = 'Lock'"
    async with asyncio.timeout(60):
        while admin.execute(waiting).fetchone() == (0,):  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)
