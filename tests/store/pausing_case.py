"""What tests of pausing share: pausing and resuming on a stepped clock, and whether everything owed has its record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg

from scheduler_service.domain.access import Principal
from scheduler_service.domain.catching_up import CatchUpPlan
from scheduler_service.domain.job import JobSpec, Policies
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.schedule import Schedule
from scheduler_service.domain.timing import CatchUp, occurrences
from scheduler_service.store.timeline import timelines
from scheduler_service.usecases import jobs, pausing
from tests.builders import ADMIN
from tests.store.definitions_case import DIGEST, Scheduler, digest, every

ALLOW_ALL = Policies(overlap=Overlap.ALLOW_ALL)


def job(**fields: Any) -> JobSpec:
    """One that is due each 10 minutes, lets runs overlap, and may be scheduled by tenants."""
    defaults: dict[str, Any] = {"timing": every("10m"), "tenant_schedules": True, "policies": ALLOW_ALL}
    return digest(**(defaults | fields))


async def pause(scheduler: Scheduler, name: ScheduleName, *, by: Principal = ADMIN) -> Schedule:
    return await pausing.pause_schedule(scheduler.database, scheduler.wakeups, by, name)


async def resume(
    scheduler: Scheduler,
    name: ScheduleName,
    policy: CatchUp = CatchUp.NONE,
    *,
    by: Principal = ADMIN,
    validate_only: bool = False,
) -> tuple[Schedule, CatchUpPlan]:
    return await pausing.resume_schedule(
        scheduler.database, scheduler.wakeups, by, name, policy, validate_only=validate_only
    )


async def pause_job(scheduler: Scheduler) -> None:
    await jobs.pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)


async def resume_job(
    scheduler: Scheduler, policy: CatchUp = CatchUp.NONE, *, validate_only: bool = False
) -> CatchUpPlan:
    _, plan = await jobs.resume_job(
        scheduler.database, scheduler.wakeups, ADMIN, DIGEST, policy, validate_only=validate_only
    )
    return plan


def made(admin: psycopg.Connection[Any]) -> list[tuple[datetime, str, int]]:
    """Each scheduled run's nominal instant, trigger and priority, in order."""
    rows = admin.execute(
        "select scheduled_for, trigger::text, priority from carillon.live_runs where schedule_id is not null order by 1"
    ).fetchall()
    return [(instant.astimezone(UTC), trigger, priority) for instant, trigger, priority in rows]


def gaps(admin: psycopg.Connection[Any]) -> list[tuple[datetime, datetime, int, str]]:
    """Each gap's first and last instant, count and reason, in order."""
    rows = admin.execute(
        "select first_at, last_at, occurrences, reason from carillon.gaps order by first_at, schedule_id"
    ).fetchall()
    return [(first.astimezone(UTC), last.astimezone(UTC), *others) for first, last, *others in rows]


async def unaccounted(scheduler: Scheduler) -> list[tuple[int, datetime, int]]:
    """Occurrences up to now that have not exactly one record although the revisions and the job's changes say they were
    owed, or have one although they were not: (schedule_id, instant, how many records more than owed)."""
    owed: dict[tuple[int, datetime], int] = {}
    ids = [row[0] for row in scheduler.admin.execute("select schedule_id from carillon.schedules").fetchall()]
    async with scheduler.database.acting_for(ADMIN) as tx:
        lines = await timelines(tx, ids, tx.now)
    for schedule_id, stretches in lines.items():
        for each in stretches:
            if each.owing:
                for occurrence in occurrences(each.in_force.timing, each.after, each.until):
                    owed[schedule_id, occurrence.instant] = -1
    for row in scheduler.admin.execute(
        "select schedule_id, scheduled_for from carillon.live_runs where trigger in ('SCHEDULE', 'CATCH_UP')"
        " union all select schedule_id, scheduled_for from carillon.runs where trigger in ('SCHEDULE', 'CATCH_UP')"
    ).fetchall():
        at = (row[0], row[1].astimezone(UTC))
        owed[at] = owed.get(at, 0) + 1
    for schedule_id, first, last in scheduler.admin.execute(
        "select schedule_id, first_at, last_at from carillon.gaps"
    ).fetchall():
        for key in [key for key in owed if key[0] == schedule_id and first <= key[1] <= last]:
            owed[key] += 1
    return [(schedule_id, instant, count) for (schedule_id, instant), count in sorted(owed.items()) if count]
