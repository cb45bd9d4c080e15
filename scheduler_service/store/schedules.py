"""Rows of `schedules` and `schedule_revisions`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, TextClause, text

from scheduler_service.domain.job import TimingSpec
from scheduler_service.domain.names import DEFAULT_SCHEDULE, JobName, ScheduleName
from scheduler_service.domain.schedule import NOT_ALLOWED, OWES_NOTHING, InForce, Schedule, ScheduleSpec
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy
from scheduler_service.domain.values import from_json, to_json
from scheduler_service.store.database import Transaction

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule to make. It is not armed until its first revision is put in force."""

    job_id: int
    tenant: str
    schedule: str
    spec: ScheduleSpec
    in_force: InForce


@dataclass(slots=True)  # not frozen: one of a million perhaps, where freezing costs four times the making
class Following:
    """A schedule that takes something from its job or tenant: what it says itself (`timing` as JSON text), and what is
    in force for it. `tenant_zone` is empty where the tenant set none."""

    schedule_id: int
    job_id: int
    tenant_zone: str
    is_jobs_own: bool
    timing: str
    enabled: bool
    paused: bool
    allowed: bool
    in_force: InForce
    settled_to: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """What is now in force for a schedule, from `in_force_from` on, and when it then starts first."""

    schedule_id: int
    in_force: InForce
    enabled: bool
    in_force_from: datetime
    next_run_at: datetime | None
    set_aside_reason: str | None
    is_first: bool = False


SELECT = """
select s.schedule_id, s.job_id, j.service, j.job, s.tenant_id, s.schedule, s.timing, s.enabled, s.config, s.labels,
  s.cron, s.time_zone, s.gap, s.repeat, s.phase, s.jitter, s.revision, s.settled_to, s.next_run_at,
  s.set_aside_reason, s.created_at, s.created_by, s.updated_at, s.updated_by, s.paused_at,
  s.paused_at is not null as paused, j.owed_from, j.paused_at is not null or j.archived_at is not null as halted
from carillon.schedules s join carillon.jobs j using (job_id)
"""
_NAMED = """
where j.service = :service and j.job = :job and s.tenant_id = :tenant and s.schedule = :schedule
  and s.deleted_at is null"""
_BY_NAME = text(f"{SELECT} {_NAMED}")
_BY_NAME_LOCKED = text(f"{SELECT} {_NAMED} for no key update of s")
_FOLLOWING = """
select s.schedule_id, s.job_id, s.tenant_id = '-' and s.schedule = 'default' as is_jobs_own,
  s.timing::text as timing, s.enabled, s.cron, s.time_zone, s.gap, s.repeat, s.phase, s.jitter, s.set_aside_reason,
  s.paused_at is not null as paused, s.settled_to, coalesce(t.time_zone, '') as tenant_zone,
  j.tenant_schedules or s.tenant_id = '-' as allowed
from carillon.schedules s join carillon.jobs j using (job_id) left join carillon.tenants t on t.tenant_id = s.tenant_id
where s.job_id = any(:job_ids) and s.deleted_at is null"""
# Every schedule that takes something from its job: one that says all its fields itself does not, unless the job has
# begun or ceased to allow it.
_FOLLOWING_JOBS = text(f"""{_FOLLOWING}
  and (not jsonb_exists_all(s.timing, :fields) or (s.tenant_id = '-' and s.schedule = 'default')
       or (s.tenant_id <> '-' and j.tenant_schedules = (coalesce(s.set_aside_reason, '') = '{NOT_ALLOWED}')))
order by s.schedule_id for no key update of s""")
_FOLLOWING_TENANT = text(f"""{_FOLLOWING}
  and s.tenant_id = :tenant and s.tenant_id <> '-' and not jsonb_exists(s.timing, 'time_zone')
order by s.schedule_id for no key update of s""")
# A jitter is at most an hour, which bounds the range of the index on next_run_at.
_OWING = text("""
select schedule_id from carillon.schedules
where job_id = any(:job_ids) and next_run_at <= :now + interval '1 hour' and next_run_at - jitter <= :now
union all
select schedule_id from carillon.schedules where job_id = any(:job_ids) and set_aside_reason is not null
order by schedule_id""")
_THESE_OWING = text("""
select schedule_id from carillon.schedules
where schedule_id = any(:schedule_ids) and (next_run_at - jitter <= :now or set_aside_reason is not null)
order by schedule_id""")
_LOCK_DUE_SOON = text("""
with locked as materialized (
  select from carillon.schedules
  where job_id = any(:job_ids) and next_run_at <= :now + interval '5 minutes'
  order by schedule_id for update
)
select count(*) from locked""")
_JOBS_WITH_OWN = text(
    "select job_id from carillon.schedules"
    " where job_id = any(:job_ids) and tenant_id = '-' and schedule = :schedule and deleted_at is null"
)
_TIMING_FIELDS = ["cron", "time_zone", "gap", "repeat", "phase", "jitter"]


async def get_schedule(tx: Transaction, name: ScheduleName) -> Schedule | None:
    row = (await tx.connection.execute(_BY_NAME, _name(name))).one_or_none()
    return None if row is None else schedule_of(row)


async def lock_schedule(tx: Transaction, name: ScheduleName) -> Schedule | None:
    row = (await tx.connection.execute(_BY_NAME_LOCKED, _name(name))).one_or_none()
    return None if row is None else schedule_of(row)


async def lock_following(tx: Transaction, job_ids: Iterable[int]) -> AsyncIterator[list[Following]]:
    """The schedules of these jobs whose timing takes something from the job, by the page, locked as they come."""
    async for page in _following(tx, _FOLLOWING_JOBS, {"job_ids": list(job_ids), "fields": _TIMING_FIELDS}):
        yield page


async def lock_following_tenant(tx: Transaction, tenant: str, job_ids: Iterable[int]) -> AsyncIterator[list[Following]]:
    """A tenant's schedules of these jobs that name no zone themselves, by the page, locked as they come."""
    async for page in _following(tx, _FOLLOWING_TENANT, {"job_ids": list(job_ids), "tenant": tenant}):
        yield page


async def _following(tx: Transaction, statement: TextClause, values: dict[str, Any]) -> AsyncIterator[list[Following]]:
    # One statement for all pages: each for itself would look through all that are left.
    async with tx.connection.stream(statement, values) as rows:
        async for page in rows.partitions(_BATCH):
            yield [_following_of(row) for row in page]


async def owing(tx: Transaction, job_ids: Iterable[int]) -> list[int]:
    """The schedules of these jobs that owe something up to now, also where it only waits for its jitter, and those that
    are set aside."""
    rows = await tx.connection.execute(_OWING, {"job_ids": list(job_ids), "now": tx.now})
    return list(rows.scalars())


async def owing_of(tx: Transaction, schedule_ids: Sequence[int]) -> list[int]:
    """Those of these schedules that owe something up to now, as `owing` does."""
    rows = await tx.connection.execute(_THESE_OWING, {"schedule_ids": list(schedule_ids), "now": tx.now})
    return list(rows.scalars())


async def lock_due_soon(tx: Transaction, job_ids: Iterable[int]) -> None:
    """Locks those schedules of these jobs that are due within 5 minutes, longer than any transaction takes; waits for
    the ticks that are at them."""
    await tx.connection.execute(_LOCK_DUE_SOON, {"job_ids": list(job_ids), "now": tx.now})


async def jobs_with_own(tx: Transaction, job_ids: Iterable[int]) -> set[int]:
    """Which of these jobs have a schedule of their own."""
    rows = await tx.connection.execute(_JOBS_WITH_OWN, {"job_ids": list(job_ids), "schedule": DEFAULT_SCHEDULE})
    return set(rows.scalars())


_INSERT = text("""
insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, config, labels, cron, time_zone, gap,
  repeat, phase, jitter, settled_to, created_at, created_by, updated_at, updated_by)
select r.job_id, r.tenant, r.schedule, r.timing, r.enabled, r.config, r.labels, r.cron, r.time_zone, r.gap, r.repeat,
  make_interval(secs => r.phase), make_interval(secs => r.jitter), :now, :now, :principal, :now, :principal
from jsonb_to_recordset(cast(:rows as jsonb)) as r(job_id bigint, tenant text, schedule text, timing jsonb,
  enabled boolean, config jsonb, labels jsonb, cron text, time_zone text, gap text, repeat text, phase float8,
  jitter float8)
on conflict (job_id, tenant_id, schedule) where deleted_at is null do nothing
returning schedule_id, job_id, tenant_id, schedule""")
_PUT_IN_FORCE = text("""
with changed as (
  update carillon.schedules s set
    revision = case when r.is_first then s.revision else s.revision + 1 end, enabled = r.enabled, cron = r.cron,
    time_zone = r.time_zone, gap = r.gap, repeat = r.repeat, phase = make_interval(secs => r.phase),
    jitter = make_interval(secs => r.jitter), settled_to = greatest(s.settled_to, r.in_force_from),
    next_run_at = r.next_run_at, set_aside_reason = r.set_aside_reason, updated_at = :now, updated_by = :principal
  from jsonb_to_recordset(cast(:rows as jsonb)) as r(schedule_id bigint, is_first boolean, enabled boolean,
    in_force boolean, cron text, time_zone text, gap text, repeat text, phase float8, jitter float8,
    in_force_from timestamptz, next_run_at timestamptz, set_aside_reason text)
  where s.schedule_id = r.schedule_id
  returning s.schedule_id, s.revision, r.in_force, s.cron, s.time_zone, s.gap, s.repeat, s.phase, s.jitter,
    r.in_force_from
)
insert into carillon.schedule_revisions (schedule_id, revision, enabled, cron, time_zone, gap, repeat, phase, jitter,
  in_force_from, changed_by)
select schedule_id, revision, in_force, cron, time_zone, gap, repeat, phase, jitter, in_force_from, :principal
from changed""")
_SAVE_SPEC = text("""
update carillon.schedules set timing = cast(:timing as jsonb), enabled = :enabled, config = cast(:config as jsonb),
  labels = cast(:labels as jsonb), updated_at = :now, updated_by = :principal
where schedule_id = :schedule_id""")


async def insert_schedules(tx: Transaction, schedules: Sequence[NewSchedule]) -> dict[tuple[int, str, str], int]:
    """New schedules, not armed. Answers the schedule_id of each that was made, by (job_id, tenant, schedule); one that
    somebody else made meanwhile is left out."""
    rows = [
        {"job_id": each.job_id, "tenant": each.tenant, "schedule": each.schedule}
        | {"timing": to_json(each.spec.timing), "config": dict(each.spec.config), "labels": dict(each.spec.labels)}
        | _in_force_row(each.in_force)
        | {"enabled": each.spec.enabled}
        for each in schedules
    ]
    made = await tx.connection.execute(_INSERT, _batch(tx, rows))
    return {(row.job_id, row.tenant_id, row.schedule): row.schedule_id for row in made}


async def put_in_force(tx: Transaction, revisions: Sequence[Revision]) -> None:
    """Writes revisions: what each schedule now is, and the row that says from when on."""
    for start in range(0, len(revisions), _BATCH):
        rows = [_revision_row(each) for each in revisions[start : start + _BATCH]]
        await tx.connection.execute(_PUT_IN_FORCE, _batch(tx, rows))


async def save_spec(tx: Transaction, schedule_id: int, spec: ScheduleSpec) -> None:
    """What was asked for; what is in force changes through `put_in_force` only."""
    await tx.connection.execute(
        _SAVE_SPEC,
        {
            "schedule_id": schedule_id,
            "timing": json.dumps(to_json(spec.timing)),
            "enabled": spec.enabled,
            "config": json.dumps(dict(spec.config), ensure_ascii=False),
            "labels": json.dumps(dict(spec.labels), ensure_ascii=False),
            "now": tx.now,
            "principal": str(tx.principal),
        },
    )


def in_force_of(row: Row[Any]) -> InForce:
    """What the columns of a schedule say is in force."""
    return InForce(
        enabled=row.enabled and row.set_aside_reason not in OWES_NOTHING and not row.paused,
        cron=row.cron,
        time_zone=row.time_zone,
        gap=GapPolicy[row.gap],
        repeat=RepeatPolicy[row.repeat],
        phase=row.phase,
        jitter=row.jitter,
    )


def _name(name: ScheduleName) -> dict[str, str]:
    return {
        "service": name.job.service,
        "job": name.job.job,
        "tenant": name.tenant,
        "schedule": name.schedule,
    }


def _batch(tx: Transaction, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": json.dumps(rows, ensure_ascii=False), "now": tx.now, "principal": str(tx.principal)}


def _in_force_row(in_force: InForce) -> dict[str, Any]:
    return {
        "cron": in_force.cron,
        "time_zone": in_force.time_zone,
        "gap": in_force.gap.name,
        "repeat": in_force.repeat.name,
        "phase": in_force.phase.total_seconds(),
        "jitter": in_force.jitter.total_seconds(),
    }


def _revision_row(revision: Revision) -> dict[str, Any]:
    return _in_force_row(revision.in_force) | {
        "schedule_id": revision.schedule_id,
        "is_first": revision.is_first,
        "enabled": revision.enabled,
        "in_force": revision.in_force.enabled,
        "in_force_from": revision.in_force_from.isoformat(),
        "next_run_at": revision.next_run_at.isoformat() if revision.next_run_at else None,
        "set_aside_reason": revision.set_aside_reason,
    }


def _following_of(row: Row[Any]) -> Following:
    return Following(
        schedule_id=row.schedule_id,
        job_id=row.job_id,
        tenant_zone=row.tenant_zone,
        is_jobs_own=row.is_jobs_own,
        timing=row.timing,
        enabled=row.enabled,
        paused=row.paused,
        allowed=row.allowed,
        in_force=in_force_of(row),
        settled_to=row.settled_to,
    )


def schedule_of(row: Row[Any]) -> Schedule:
    """The schedule of a row of `SELECT`."""
    return Schedule(
        schedule_id=row.schedule_id,
        job_id=row.job_id,
        name=ScheduleName(JobName(row.service, row.job), row.tenant_id, row.schedule),
        spec=ScheduleSpec(from_json(TimingSpec, row.timing), row.enabled, row.config, row.labels),
        in_force=in_force_of(row),
        revision=row.revision,
        settled_to=row.settled_to,
        owed_from=row.owed_from,
        halted=row.halted,
        next_run_at=row.next_run_at,
        set_aside_reason=row.set_aside_reason or "",
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
        paused_at=row.paused_at,
    )
