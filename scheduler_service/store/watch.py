"""Looking at where runs stand, without reading them whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.record import Progress
from scheduler_service.domain.run import RunState
from scheduler_service.domain.watching import Look, Standing
from scheduler_service.store.database import Transaction
from scheduler_service.store.run_rows import LIVE_STATE, all_of, visible_to


@dataclass(frozen=True, slots=True)
class Scope:
    """All runs of a job or schedule, or one run."""

    column: Literal["job_id", "schedule_id", "run_id"]
    value: int | UUID

    @property
    def is_one_run(self) -> bool:
        return self.column == "run_id"


async def find_schedule(tx: Transaction, name: ScheduleName) -> int | None:
    """The schedule's key; None if the caller does not see it."""
    found = await tx.connection.execute(
        text(
            "select s.schedule_id from carillon.schedules s join carillon.jobs j using (job_id)"
            " where j.service = :service and j.job = :job and s.tenant_id = :tenant and s.schedule = :schedule"
            " and s.deleted_at is null"
        ),
        {"service": name.job.service, "job": name.job.job, "tenant": name.tenant, "schedule": name.schedule},
    )
    schedule_id: int | None = found.scalar_one_or_none()
    return schedule_id


async def look(tx: Transaction, scope: Scope, since: datetime) -> Look:
    """Where the live runs in scope stand, and which ended after `since`, in one snapshot."""
    in_scope = all_of([f"r.{scope.column} = :value", *visible_to(tx.principal)])
    rows = await tx.connection.execute(
        text(
            f"select r.run_id, {LIVE_STATE} as state, r.attempt, r.progress, r.cancel_requested_at,"
            f" null::timestamptz as finished_at from carillon.live_runs r where {in_scope}"
            " union all select r.run_id, null, null, null, null, r.finished_at"
            f" from carillon.runs r where {in_scope} and r.finished_at > :since"
        ),
        {"value": scope.value, "since": since},
    )
    live: dict[UUID, Standing] = {}
    ended: dict[UUID, datetime] = {}
    for row in rows:
        if row.finished_at is not None:
            ended[row.run_id] = row.finished_at
        else:
            progress = Progress.from_document(row.progress)
            live[row.run_id] = Standing(RunState(row.state), row.attempt, progress, row.cancel_requested_at)
    return Look(tx.now, live, ended)
