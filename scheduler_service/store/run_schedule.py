"""Making a run of a schedule by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.fields import compact_json
from scheduler_service.domain.names import ScheduleName
from scheduler_service.store.database import Transaction
from scheduler_service.store.documents import read_document
from scheduler_service.store.turns import arrange

_LOCK = text("""
select s.schedule_id, s.config::text as config
from carillon.schedules s join carillon.jobs j using (job_id)
where j.service = :service and j.job = :job and s.tenant_id = :tenant and s.schedule = :schedule
  and s.deleted_at is null
for no key update of s""")
_INSERT = text("""
insert into carillon.live_runs
  (run_id, schedule_id, revision, job_id, tenant_id, route, trigger, exclusive, blocked, scheduled_for, run_after,
   created_at, triggered_by, labels, payload, max_attempts, attempt_timeout, run_timeout, cancel_grace)
select :run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, j.route, 'MANUAL', j.overlap <> 'ALLOW_ALL',
  j.overlap <> 'ALLOW_ALL', :now, :now, :now, :triggered_by, j.labels || s.labels, cast(:payload as jsonb),
  j.max_attempts, j.attempt_timeout, j.run_timeout, j.cancel_grace
from carillon.schedules s join carillon.jobs j using (job_id)
where s.schedule_id = :schedule_id""")


@dataclass(frozen=True, slots=True)
class RunnableSchedule:
    """What a run by hand takes from its schedule."""

    schedule_id: int
    config: Mapping[str, Any]


async def lock_schedule(tx: Transaction, name: ScheduleName) -> RunnableSchedule | None:
    """The schedule, locked against the ticks and everybody else who adds a run to it; None if there is none."""
    row = (
        await tx.connection.execute(
            _LOCK,
            {
                "service": name.job.service,
                "job": name.job.job,
                "tenant": name.tenant,
                "schedule": name.schedule,
            },
        )
    ).one_or_none()
    return None if row is None else RunnableSchedule(row.schedule_id, read_document(row.config))


async def insert_run(tx: Transaction, schedule_id: int, run_id: UUID, payload: Mapping[str, Any]) -> None:
    """Makes the run of a locked schedule, due now. It waits its turn, which is at once if no other run of the schedule
    is live, or if its job lets them run side by side."""
    await tx.connection.execute(
        _INSERT,
        {
            "schedule_id": schedule_id,
            "run_id": run_id,
            "now": tx.now,
            "triggered_by": str(tx.principal),
            "payload": compact_json(dict(payload)),
        },
    )
    await arrange(await tx.driver_connection(), [schedule_id])
