"""Schedules that were paused by hand, and what the schedules of a job owe for a time that it was paused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text

from scheduler_service.domain.schedule import InForce
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy
from scheduler_service.store.database import Transaction

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Member:
    """A schedule among those that are alike, with the revision that owes."""

    schedule_id: int
    revision: int
    jitter: timedelta


@dataclass(frozen=True, slots=True)
class Alike:
    """So many schedules that owe the same in `(after, until]`; who they are is left out where they are only counted.
    `goes_on`: what owes is the revision that is in force now. Jitter is each schedule's own, and none in `in_force`."""

    schedules: int
    members: Sequence[Member]
    goes_on: bool
    in_force: InForce
    after: datetime
    until: datetime


_PAUSE = text("update carillon.schedules set paused_at = :at where schedule_id = :schedule_id")
_RESUME = text("update carillon.schedules set paused_at = null where schedule_id = :schedule_id")
_IN_FORCE_FROM = text("""
select r.in_force_from from carillon.schedules s join carillon.schedule_revisions r using (schedule_id, revision)
where s.schedule_id = :schedule_id""")
_WINDOW = text("select catch_up_window from carillon.jobs where job_id = :job_id")


async def pause(tx: Transaction, schedule_id: int, at: datetime) -> None:
    """Marks a schedule that is not armed as paused."""
    await tx.connection.execute(_PAUSE, {"schedule_id": schedule_id, "at": at})


async def resume(tx: Transaction, schedule_id: int) -> None:
    """The schedule is no longer paused; it is armed by its next revision."""
    await tx.connection.execute(_RESUME, {"schedule_id": schedule_id})


async def in_force_from(tx: Transaction, schedule_id: int) -> datetime:
    """From when on the schedule's revision is in force."""
    found: datetime = (await tx.connection.execute(_IN_FORCE_FROM, {"schedule_id": schedule_id})).scalar_one()
    return found


async def catch_up_window(tx: Transaction, job_id: int) -> timedelta:
    """How late an occurrence of this job may be and still be caught up."""
    found: timedelta = (await tx.connection.execute(_WINDOW, {"job_id": job_id})).scalar_one()
    return found


# Each revision holds until one after it begins, also where that one begins earlier. Nothing goes on of those that were
# set aside: it is missed.
_OWED = """
from (
  select r.schedule_id, r.revision, r.enabled, r.cron, r.time_zone, r.gap, r.repeat, r.phase, r.jitter,
    s.revision = r.revision and s.deleted_at is null and s.set_aside_reason is null as goes_on,
    greatest(r.in_force_from, :since) as after,
    least(min(r.in_force_from) over later, :now) as until
  from carillon.schedules s join carillon.schedule_revisions r using (schedule_id)
  where s.job_id = :job_id
  window later as (partition by r.schedule_id order by r.revision rows between 1 following and unbounded following)
) r
where r.enabled and r.after < r.until"""
_ALIKE = "goes_on, cron, time_zone, gap, repeat, phase, after, until"
_COUNTED = text(f"select count(*) as schedules, {_ALIKE} {_OWED} group by {_ALIKE}")
_LISTED = text(f"""
select count(*) as schedules, {_ALIKE}, array_agg(schedule_id) as schedule_ids, array_agg(revision) as revisions,
  array_agg(jitter) as jitters
from (
  select r.*, row_number() over (partition by {_ALIKE} order by schedule_id) / {_BATCH} as part {_OWED}
) r
group by {_ALIKE}, part""")


async def count_owing(tx: Transaction, job_id: int, since: datetime) -> AsyncIterator[Alike]:
    """What the schedules of a job would owe from an instant up to now if the job had not been paused, those that are
    alike together."""
    async with tx.connection.stream(_COUNTED, _values(tx, job_id, since)) as rows:
        async for row in rows:
            yield _alike(row, ())


async def list_owing(tx: Transaction, job_id: int, since: datetime) -> AsyncIterator[Alike]:
    """The same with the schedules, by the thousand."""
    async with tx.connection.stream(_LISTED, _values(tx, job_id, since)) as rows:
        async for row in rows:
            each = zip(row.schedule_ids, row.revisions, row.jitters, strict=True)
            yield _alike(row, [Member(*values) for values in each])


def _values(tx: Transaction, job_id: int, since: datetime) -> dict[str, Any]:
    return {"job_id": job_id, "since": since, "now": tx.now}


def _alike(row: Row[Any], members: Sequence[Member]) -> Alike:
    in_force = InForce(
        enabled=True,
        cron=row.cron,
        time_zone=row.time_zone,
        gap=GapPolicy[row.gap],
        repeat=RepeatPolicy[row.repeat],
        phase=row.phase,
        jitter=timedelta(),
    )
    return Alike(row.schedules, members, row.goes_on, in_force, row.after, row.until)
