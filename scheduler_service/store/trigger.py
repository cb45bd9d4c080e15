"""Making runs by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.fields import compact_json
from scheduler_service.domain.run import TriggerSource
from scheduler_service.store.database import Transaction
from scheduler_service.store.documents import read_document


@dataclass(frozen=True, slots=True)
class TriggerableJob:
    """What a run by hand takes from its job."""

    job_id: int
    config: Mapping[str, Any]
    labels: Mapping[str, str]
    archived_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewRuns:
    """Runs of one job by hand, one for each tenant, alike but for their ids."""

    job_id: int
    run_ids: Sequence[UUID]
    tenants: Sequence[str]
    trigger: TriggerSource
    origin: str
    labels: Mapping[str, str]
    payload: Mapping[str, Any]


async def lock_job(tx: Transaction, service: str, job: str) -> TriggerableJob | None:
    """The job, held as it is until the transaction ends, so that it is not archived meanwhile. None if the caller
    does not see it."""
    row = (
        await tx.connection.execute(
            text(
                "select job_id, config::text as config, labels, archived_at from carillon.jobs"
                " where service = :service and job = :job for share"
            ),
            {"service": service, "job": job},
        )
    ).one_or_none()
    if row is None:
        return None
    return TriggerableJob(row.job_id, read_document(row.config), row.labels, row.archived_at)


async def insert_runs(tx: Transaction, new: NewRuns) -> None:
    """Makes the runs, due now, in one statement; how they behave is the job's."""
    await tx.connection.execute(
        text("""
insert into carillon.live_runs
  (run_id, job_id, tenant_id, route, trigger, exclusive, scheduled_for, run_after, created_at, triggered_by, origin,
   labels, payload, max_attempts, attempt_timeout, run_timeout, cancel_grace)
select wanted.run_id, j.job_id, wanted.tenant_id, j.route, cast(:trigger as carillon.trigger_source), false,
  :now, :now, :now, :triggered_by, :origin, cast(:labels as jsonb), cast(:payload as jsonb),
  j.max_attempts, j.attempt_timeout, j.run_timeout, j.cancel_grace
from carillon.jobs j, unnest(cast(:run_ids as uuid[]), cast(:tenants as text[])) as wanted (run_id, tenant_id)
where j.job_id = :job_id"""),
        {
            "job_id": new.job_id,
            "run_ids": list(new.run_ids),
            "tenants": list(new.tenants),
            "trigger": new.trigger.value,
            "now": tx.now,
            "triggered_by": str(tx.principal),
            "origin": new.origin,
            "labels": compact_json(dict(new.labels)),
            "payload": compact_json(dict(new.payload)),
        },
    )


async def take_run_key(tx: Transaction, new: NewRuns, run_key: str) -> tuple[str, UUID] | None:
    """Takes a key for each of the runs; waits for whoever takes one of them at this moment. Answers the first tenant
    for which it is taken already, with the run that has it, or None once all are taken for these."""
    # In order of tenants, so that two calls for the same ones cannot wait for each other.
    await tx.connection.execute(
        text(
            "insert into carillon.run_keys (job_id, tenant_id, run_key, run_id, created_at)"
            " select :job_id, wanted.tenant_id, :run_key, wanted.run_id, :now"
            " from unnest(cast(:run_ids as uuid[]), cast(:tenants as text[])) as wanted (run_id, tenant_id)"
            " order by wanted.tenant_id on conflict do nothing"
        ),
        {
            "job_id": new.job_id,
            "run_key": run_key,
            "now": tx.now,
            "run_ids": list(new.run_ids),
            "tenants": list(new.tenants),
        },
    )
    taken = (
        await tx.connection.execute(
            text(
                "select tenant_id, run_id from carillon.run_keys where job_id = :job_id and run_key = :run_key"
                " and tenant_id = any(cast(:tenants as text[])) and run_id <> all(cast(:run_ids as uuid[]))"
                " order by tenant_id limit 1"
            ),
            {
                "job_id": new.job_id,
                "run_key": run_key,
                "run_ids": list(new.run_ids),
                "tenants": list(new.tenants),
            },
        )
    ).one_or_none()
    return (taken.tenant_id, taken.run_id) if taken is not None else None
