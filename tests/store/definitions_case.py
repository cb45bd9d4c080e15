"""What tests of registration, jobs and schedules share: a database whose clock the test steps, and manifests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from scheduler_service.domain.access import Principal
from scheduler_service.domain.job import HttpTarget, JobOverrides, JobSpec, Manifest, Target, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.schedule import ALL_FIELDS, Schedule, ScheduleSpec
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases import jobs, registry, schedules
from scheduler_service.usecases.registry import ChangeKind, Registration
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN, service, user
from tests.conftest import DatabaseUrls

START = datetime.now(UTC).replace(day=15, hour=12, minute=0, second=0, microsecond=0)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
EMAIL = service("email-service")
DIGEST = JobName("email-service", "weekly-digest")
TABLES = ("services", "jobs", "schedules", "schedule_revisions", "live_runs", "runs", "gaps", "job_changes")


class _SteppedTransaction(Transaction):
    clock: SteppedDatabase

    async def look_at_clock(self) -> None:
        self.now = self.clock.now


class SteppedDatabase(Database):
    """The real database; the now of its transactions is where the test put it."""

    now = START

    @asynccontextmanager
    async def acting_for(self, principal: Principal, *, one_snapshot: bool = False) -> AsyncIterator[Transaction]:
        async with super().acting_for(principal, one_snapshot=one_snapshot) as tx:
            stepped = _SteppedTransaction(tx.connection, tx.principal, self.now, tx.served_routes)
            stepped.clock = self
            yield stepped


def digest(job: str = "weekly-digest", **fields: Any) -> JobSpec:
    """An http job without a schedule."""
    return JobSpec(job, **({"target": Target(http=HttpTarget("http://email-service/run"))} | fields))


def every(period: str, **fields: Any) -> TimingSpec:
    return TimingSpec(cron=f"@every {period}", **fields)


def own(job: str = "weekly-digest") -> ScheduleName:
    return ScheduleName(JobName("email-service", job), "-", "default")


def for_tenant(tenant: str, schedule: str = "daily") -> ScheduleName:
    return ScheduleName(DIGEST, tenant, schedule)


@dataclass
class Scheduler:
    """The use cases on one database, each with a caller who may."""

    database: SteppedDatabase
    hot: psycopg.AsyncConnection[Any]
    admin: psycopg.Connection[Any]
    wakeups: Wakeups = field(default_factory=Wakeups)

    async def register(self, *specs: JobSpec, validate_only: bool = False, **manifest: Any) -> Registration:
        return await registry.register_jobs(
            self.database,
            self.wakeups,
            EMAIL,
            Manifest("email-service", jobs=specs, **manifest),
            validate_only=validate_only,
        )

    async def override(self, overrides: JobOverrides, *mask: str) -> None:
        await jobs.update_job(self.database, self.wakeups, ADMIN, DIGEST, overrides, mask)

    async def put(self, name: ScheduleName, spec: ScheduleSpec, *mask: str, by: Principal = ADMIN) -> Schedule:
        return await schedules.put_schedule(self.database, self.wakeups, by, name, spec, mask or ALL_FIELDS)

    async def get(self, name: ScheduleName) -> Schedule:
        return await schedules.get_schedule(self.database, ADMIN, name)

    async def tick_until(self, until: datetime, step: timedelta = MINUTE) -> None:
        """Lets time pass to `until`, ticking at each step."""
        while self.database.now < until:
            self.database.now = min(self.database.now + step, until)
            await tick(self.hot, NobodySeated(), now=self.database.now)

    def fired(self) -> list[tuple[datetime, int]]:
        """Each scheduled run's nominal instant and revision, in order."""
        rows = self.admin.execute(
            "select scheduled_for, revision from carillon.live_runs where schedule_id is not null"
            " union all select scheduled_for, revision from carillon.runs where schedule_id is not null order by 1"
        ).fetchall()
        return [(instant.astimezone(UTC), revision) for instant, revision in rows]

    def contents(self) -> dict[str, list[Any]]:
        """Every row of every table, and its version: an update that changes no value shows as well."""
        return {
            table: self.admin.execute(f"select xmin::text, t::text from carillon.{table} t order by 2").fetchall()
            for table in TABLES
        }


@asynccontextmanager
async def scheduler_on(
    urls: DatabaseUrls, hot: psycopg.AsyncConnection[Any], admin: psycopg.Connection[Any]
) -> AsyncIterator[Scheduler]:
    database = SteppedDatabase(urls.api, urls.engine, pool_size=4)
    try:
        yield Scheduler(database, hot, admin)
    finally:
        await database.close()


def kinds(registration: Registration) -> dict[str, ChangeKind]:
    return {change.job.name.job: change.kind for change in registration.changes}


TENANT_USER = user("acme")
