"""Asking runs to stop."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.fields import compact_json
from scheduler_service.domain.record import RunError
from scheduler_service.store.database import Transaction


async def end_pending(tx: Transaction, run_id: UUID, error: RunError) -> bool:
    """Ends a run that no worker holds as CANCELLED: the delete is the fence. False if there is no such run."""
    ended = await tx.connection.execute(
        text("""
with gone as (delete from carillon.live_runs where run_id = :run_id and claim_id is null returning *)
insert into carillon.runs
  (run_id, schedule_id, revision, job_id, tenant_id, state, trigger, scheduled_for, scheduled_local, fold, time_zone,
   tzdata, run_after, created_at, finished_at, triggered_by, origin, labels, payload, attempt, max_attempts, error,
   cancel_requested_at)
select run_id, schedule_id, revision, job_id, tenant_id, 'CANCELLED', trigger, scheduled_for, scheduled_local, fold,
  time_zone, tzdata, run_after, created_at, greatest(:now, created_at), triggered_by, origin, labels, payload, attempt,
  max_attempts, cast(:error as jsonb), coalesce(cancel_requested_at, :now)
from gone
returning run_id"""),
        {"run_id": run_id, "now": tx.now, "error": compact_json(error.to_document())},
    )
    return ended.one_or_none() is not None


async def request_cancel(tx: Transaction, run_id: UUID, reason: str) -> bool:
    """Marks a run that a worker holds as to be stopped, once. False if there is no such run, or it is marked."""
    marked = await tx.connection.execute(
        text(
            "update carillon.live_runs set cancel_requested_at = :now, cancel_reason = :reason, cancelled_by = :by"
            " where run_id = :run_id and claim_id is not null and cancel_requested_at is null returning run_id"
        ),
        {"run_id": run_id, "now": tx.now, "reason": reason, "by": str(tx.principal)},
    )
    return marked.one_or_none() is not None
