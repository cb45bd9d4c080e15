"""Rows of `jobs`: read with the timing of the job's own schedule, written in batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text

from scheduler_service.domain.job import Job, JobOverrides, JobSpec, route_of
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import RunError
from scheduler_service.domain.schedule import next_owed
from scheduler_service.domain.values import from_json, to_json
from scheduler_service.store.cancel import end_pending_runs
from scheduler_service.store.database import Transaction
from scheduler_service.store.schedules import in_force_of


@dataclass(frozen=True, slots=True)
class JobValues:
    """What is written of a job: what was declared and overridden, and what follows from both. `job_id` is 0 for a job
    that is new. `revived` says that it was archived, and owes nothing from before now."""

    declared: JobSpec
    overrides: JobOverrides
    in_force: JobSpec
    endpoint: str
    job_id: int = 0
    revived: bool = False


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job with the columns that only writers compare."""

    job: Job
    endpoint: str


REMOVED = RunError("JOB_REMOVED", "the job's service no longer declares it")

_SELECT = """
select j.job_id, j.service, j.job, j.declared, j.overrides, j.endpoint, j.generation, j.owed_from, j.paused_at,
  j.archived_at, j.created_at, j.updated_at, s.enabled, s.cron, s.time_zone, s.gap, s.repeat, s.phase, s.jitter,
  s.settled_to, s.next_run_at, s.set_aside_reason, s.paused_at is not null as paused
from carillon.jobs j
left join carillon.schedules s on s.job_id = j.job_id and s.tenant_id = '-' and s.schedule = 'default'
  and s.deleted_at is null
"""
_OF_SERVICE = text(f"{_SELECT} where j.service = :service order by j.job_id for no key update of j")
_BY_NAME = text(f"{_SELECT} where j.service = :service and j.job = :job")
_BY_NAME_LOCKED = text(f"{_SELECT} where j.service = :service and j.job = :job for no key update of j")
_BY_NAME_HELD = text(f"{_SELECT} where j.service = :service and j.job = :job for share of j")
_THESE_HELD = text(f"{_SELECT} where j.job_id = any(:job_ids) order by j.job_id for share of j")
_LIST = f"""{_SELECT}
where (cast(:service as text) is null or j.service = :service)
  and (:archived or j.archived_at is null)
  and j.labels @> cast(:labels as jsonb)
  and (j.service, j.job) > (:after_service, :after_job)
order by j.service, j.job limit :limit"""


async def lock_jobs_of(tx: Transaction, service: str) -> list[StoredJob]:
    """Every job of a service, archived ones too, locked in the order of their ids."""
    rows = await tx.connection.execute(_OF_SERVICE, {"service": service})
    return [StoredJob(_job_of(row), row.endpoint) for row in rows]


async def get_job(tx: Transaction, name: JobName) -> Job | None:
    return await _one(tx, _BY_NAME, name)


async def lock_job(tx: Transaction, name: JobName) -> StoredJob | None:
    """The job, locked against everybody else who changes it or puts a schedule of it."""
    row = (await tx.connection.execute(_BY_NAME_LOCKED, {"service": name.service, "job": name.job})).one_or_none()
    return None if row is None else StoredJob(_job_of(row), row.endpoint)


async def hold_job(tx: Transaction, name: JobName) -> Job | None:
    """The job, which nobody changes until the transaction ends; any number may hold it."""
    return await _one(tx, _BY_NAME_HELD, name)


async def hold_jobs(tx: Transaction, job_ids: Iterable[int]) -> list[Job]:
    """Those of these jobs that the caller sees, as `hold_job` holds them, in the order of their ids."""
    rows = await tx.connection.execute(_THESE_HELD, {"job_ids": list(job_ids)})
    return [_job_of(row) for row in rows]


async def list_jobs(
    tx: Transaction,
    *,
    service: str | None,
    labels: Mapping[str, str],
    archived: bool,
    after: tuple[str, str] | None,
    limit: int,
) -> list[Job]:
    """Jobs after a (service, job), in that order."""
    after_service, after_job = after or ("", "")
    rows = await tx.connection.execute(
        text(_LIST),
        {
            "service": service,
            "archived": archived,
            "labels": json.dumps(dict(labels)),
            "after_service": after_service,
            "after_job": after_job,
            "limit": limit,
        },
    )
    return [_job_of(row) for row in rows]


_RECORDSET = """
jsonb_to_recordset(cast(:rows as jsonb)) as r(job_id bigint, revived boolean, job text, declared jsonb,
  overrides jsonb, route text, endpoint text, overlap carillon.overlap, attempt_timeout float8, run_timeout float8,
  cancel_grace float8, catch_up carillon.catch_up, catch_up_window float8, max_attempts integer, retry_delay float8,
  retry_multiplier float8, retry_max_delay float8, retry_jitter float8, never_retry text[],
  tenant_schedules boolean, labels jsonb, config jsonb)
"""
_INSERT = text(f"""
insert into carillon.jobs (service, job, declared, overrides, route, endpoint, overlap, attempt_timeout, run_timeout,
  cancel_grace, catch_up, catch_up_window, max_attempts, retry_delay, retry_multiplier, retry_max_delay,
  retry_jitter, never_retry, tenant_schedules, labels, config, generation, owed_from, created_at, updated_at)
select :service, r.job, r.declared, r.overrides, r.route, r.endpoint, r.overlap,
  make_interval(secs => r.attempt_timeout), make_interval(secs => r.run_timeout),
  make_interval(secs => r.cancel_grace), r.catch_up, make_interval(secs => r.catch_up_window), r.max_attempts,
  make_interval(secs => r.retry_delay), r.retry_multiplier, make_interval(secs => r.retry_max_delay), r.retry_jitter,
  r.never_retry, r.tenant_schedules, r.labels, r.config, :generation, :now, :now, :now
from {_RECORDSET}
returning job_id, job""")
_UPDATE = text(f"""
update carillon.jobs j set declared = r.declared, overrides = r.overrides, route = r.route, endpoint = r.endpoint,
  overlap = r.overlap, attempt_timeout = make_interval(secs => r.attempt_timeout),
  run_timeout = make_interval(secs => r.run_timeout), cancel_grace = make_interval(secs => r.cancel_grace),
  catch_up = r.catch_up, catch_up_window = make_interval(secs => r.catch_up_window),
  max_attempts = r.max_attempts, retry_delay = make_interval(secs => r.retry_delay),
  retry_multiplier = r.retry_multiplier, retry_max_delay = make_interval(secs => r.retry_max_delay),
  retry_jitter = r.retry_jitter, never_retry = r.never_retry,
  tenant_schedules = r.tenant_schedules, labels = r.labels, config = r.config,
  archived_at = case when r.revived then null else j.archived_at end,
  owed_from = case when r.revived then :now else j.owed_from end, updated_at = :now
from {_RECORDSET}
where j.job_id = r.job_id""")
_STAMP = text(
    "update carillon.jobs set generation = :generation where job_id = any(:job_ids) and generation <> :generation"
)
_PAUSE = text(
    "update carillon.jobs set paused_at = :now, updated_at = :now where job_id = :job_id and paused_at is null"
)
_RESUME = text(
    "update carillon.jobs set paused_at = null, owed_from = greatest(owed_from, :now), updated_at = :now"
    " where job_id = :job_id and paused_at is not null"
)
_ARCHIVE = text("""
update carillon.jobs set archived_at = :now, updated_at = :now
where job_id = any(:job_ids) and archived_at is null""")
# In the order of locks: those whose turn it is before those that wait for them.
_LOCK_PENDING = text("""
select run_id, claim_id is null as is_pending from carillon.live_runs
where job_id = any(:job_ids) and (claim_id is null or followed)
order by blocked, run_id for update""")


async def insert_jobs(tx: Transaction, service: str, jobs: Sequence[JobValues], *, generation: int) -> dict[str, int]:
    """New jobs of a service. Answers each one's job_id by its id."""
    parameters = {"service": service, "rows": _rows(service, jobs), "generation": generation, "now": tx.now}
    rows = await tx.connection.execute(_INSERT, parameters)
    return {row.job: row.job_id for row in rows}


async def update_jobs(tx: Transaction, service: str, jobs: Sequence[JobValues]) -> None:
    """Jobs of a service as they now are; those that were archived are no more."""
    await tx.connection.execute(_UPDATE, {"rows": _rows(service, jobs), "now": tx.now})


async def stamp_generation(tx: Transaction, job_ids: Iterable[int], generation: int) -> None:
    """Says which registration declared these jobs last."""
    await tx.connection.execute(_STAMP, {"job_ids": list(job_ids), "generation": generation})


async def pause(tx: Transaction, job_id: int) -> None:
    await tx.connection.execute(_PAUSE, {"job_id": job_id, "now": tx.now})


async def resume(tx: Transaction, job_id: int) -> None:
    await tx.connection.execute(_RESUME, {"job_id": job_id, "now": tx.now})


async def archive(tx: Transaction, job_ids: Iterable[int]) -> None:
    """Archives jobs, and ends their pending runs as CANCELLED, with JOB_REMOVED. Claimed runs go on."""
    wanted = list(job_ids)
    await tx.connection.execute(_ARCHIVE, {"job_ids": wanted, "now": tx.now})
    locked = await tx.connection.execute(_LOCK_PENDING, {"job_ids": wanted})
    pending = [row.run_id for row in locked if row.is_pending]
    if pending:
        await end_pending_runs(await tx.driver_connection(), pending, REMOVED, tx.now)


async def _one(tx: Transaction, statement: Any, name: JobName) -> Job | None:
    row = (await tx.connection.execute(statement, {"service": name.service, "job": name.job})).one_or_none()
    return None if row is None else _job_of(row)


def _rows(service: str, jobs: Sequence[JobValues]) -> str:
    return json.dumps([_row(service, each) for each in jobs], ensure_ascii=False)


def _row(service: str, values: JobValues) -> dict[str, Any]:
    policies = to_json(values.in_force.policies)
    retry = policies["retry"]
    return {
        "job_id": values.job_id,
        "revived": values.revived,
        "job": values.declared.job,
        "declared": to_json(values.declared),
        "overrides": to_json(values.overrides),
        "route": route_of(service, values.in_force),
        "endpoint": values.endpoint,
        "overlap": policies["overlap"],
        "attempt_timeout": policies["attempt_timeout"],
        "run_timeout": policies["run_timeout"],
        "cancel_grace": policies["cancel_grace"],
        "catch_up": policies["catch_up"],
        "catch_up_window": policies["catch_up_window"],
        "max_attempts": retry["max_attempts"],
        "retry_delay": retry["delay"],
        "retry_multiplier": retry["multiplier"],
        "retry_max_delay": retry["max_delay"],
        "retry_jitter": retry["jitter"],
        "never_retry": retry["never_retry"],
        "tenant_schedules": values.in_force.tenant_schedules,
        "labels": dict(values.in_force.labels),
        "config": dict(values.in_force.config),
    }


def _job_of(row: Row[Any]) -> Job:
    halted = row.paused_at is not None or row.archived_at is not None
    next_run_at = None
    if row.cron is not None:
        since = max(row.settled_to, row.owed_from)
        occurrence = next_owed(in_force_of(row), row.next_run_at, since, halted=halted)
        next_run_at = occurrence.instant if occurrence else None
    # A row that something else than registration made may lack its own id in `declared`.
    declared = from_json(JobSpec, {**row.declared, "job": row.job})
    return Job(
        job_id=row.job_id,
        service=row.service,
        declared=declared,
        overrides=from_json(JobOverrides, row.overrides),
        generation=row.generation,
        owed_from=row.owed_from,
        created_at=row.created_at,
        updated_at=row.updated_at,
        paused_at=row.paused_at,
        archived_at=row.archived_at,
        next_run_at=next_run_at,
    )
