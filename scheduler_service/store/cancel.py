"""Asking runs to stop, and ending those that no worker holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import text

from scheduler_service.domain.record import RunError
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Transaction
from scheduler_service.store.turns import arrange

# The delete is the fence. Runs that wait for a retry are pending, too; what their last attempt left behind is no part
# of this outcome.
_END_PENDING: LiteralString = """
with gone as (
  delete from carillon.live_runs where run_id = any(%(run_ids)s::uuid[]) and claim_id is null returning *
),
recorded as (
  insert into carillon.runs
    (run_id, schedule_id, revision, job_id, tenant_id, state, trigger, scheduled_for, scheduled_local, fold, time_zone,
     tzdata, run_after, created_at, finished_at, triggered_by, origin, labels, payload, attempt, max_attempts, error,
     cancel_requested_at)
  select run_id, schedule_id, revision, job_id, tenant_id, 'CANCELLED', trigger, scheduled_for, scheduled_local, fold,
    time_zone, tzdata, run_after, created_at, greatest(%(now)s, created_at), triggered_by, origin, labels, payload,
    attempt, max_attempts, %(error)s, coalesce(cancel_requested_at, %(now)s)
  from gone
)
select case when followed then schedule_id end from gone"""


async def end_pending_runs(connection: Connection, run_ids: Sequence[UUID], error: RunError, now: datetime) -> int:
    """Ends those of these runs that no worker holds as CANCELLED, and gives their turns to those that wait for them.
    Answers how many ended. Several are to be locked before, in the order of locks that store/turns.py gives."""
    parameters = {"run_ids": arrays.uuids(run_ids), "now": now, "error": Jsonb(error.to_document())}
    rows = await (await connection.execute(_END_PENDING, parameters, binary=True)).fetchall()
    await arrange(connection, {schedule_id for (schedule_id,) in rows if schedule_id is not None})
    return len(rows)


async def end_pending(tx: Transaction, run_id: UUID, error: RunError) -> bool:
    """Ends a run that no worker holds as CANCELLED. False if there is no such run."""
    return await end_pending_runs(await tx.driver_connection(), [run_id], error, tx.now) > 0


async def request_cancel(tx: Transaction, run_id: UUID, reason: str) -> bool:
    """Marks a run that a worker holds as to be stopped, once. `reason`: what its record will say. False if there is no
    such run, or it is marked."""
    marked = await tx.connection.execute(
        text(
            "update carillon.live_runs set cancel_requested_at = :now, cancel_reason = :reason, cancelled_by = :by"
            " where run_id = :run_id and claim_id is not null and cancel_requested_at is null returning run_id"
        ),
        {"run_id": run_id, "now": tx.now, "reason": reason, "by": str(tx.principal)},
    )
    return marked.one_or_none() is not None
