"""Live and ended runs as one shape: the two halves of every statement that reads runs, and the value made of a row."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.pending import PendingReason, before_due, once_due
from scheduler_service.domain.record import ItemCounts, Progress, Run, RunError
from scheduler_service.domain.run import RunState, TriggerSource
from scheduler_service.store.database import Transaction
from scheduler_service.store.documents import read_document

_FIXED_BYTES = 700
# A `Struct` takes up to five and a half times the bytes of its JSON: a digit and a comma become eleven.
_STRUCT_FACTOR = 6

LIVE_STATE = "case when r.claim_id is null then 'PENDING' else 'RUNNING' end"

LIVE_COLUMNS = f"""
  r.run_id, r.schedule_id, r.revision, r.job_id, r.tenant_id, {LIVE_STATE} as state, r.trigger,
  r.scheduled_for, r.scheduled_local, r.time_zone, r.run_after, r.created_at, r.started_at,
  null::timestamptz as finished_at, null::interval as duration, r.triggered_by, r.origin, r.labels, r.payload,
  r.attempt, r.max_attempts, r.session_id, '' as worker, 0::bigint as items_processed,
  0::bigint as items_succeeded, 0::bigint as items_failed, '{{}}'::jsonb as metrics, '{{}}'::jsonb as metadata,
  r.last_error as error, r.cancel_requested_at, r.progress, r.blocked, r.alone, r.route"""

ENDED_COLUMNS = """
  r.run_id, r.schedule_id, r.revision, r.job_id, r.tenant_id, r.state::text as state, r.trigger,
  r.scheduled_for, r.scheduled_local, r.time_zone, r.run_after, r.created_at, r.started_at,
  r.finished_at, r.duration, r.triggered_by, r.origin, r.labels, r.payload,
  r.attempt, r.max_attempts, null::uuid as session_id, r.worker, r.items_processed,
  r.items_succeeded, r.items_failed, r.metrics, r.metadata,
  r.error, r.cancel_requested_at, null::jsonb as progress, false as blocked, false as alone,
  null::text as route"""


# Only runs by hand and tests try others again: for scheduled ones, nothing is looked up. A sub-select is always a
# look-up by the key, and for those rows only that somebody fetches; a join may read the whole table for a page.
_RETRY_OF = """case when r.trigger in ('MANUAL', 'TEST')
    then (select t.retry_of from carillon.retries t where t.run_id = r.run_id) end"""

# Likewise. What stands for an occurrence (not so a run by hand, which has no local time) is a remedy, also where it was
# made for another run of it; of a retry of this very run, `retries` knows.
_RETRIED_BY = """case when r.state in ('FAILED', 'CANCELLED', 'SKIPPED') then (
    select n.run_id from (
      select t.run_id from carillon.retries t where t.retry_of = r.run_id
      union all
      select m.run_id from carillon.remedies m
      where r.scheduled_local is not null and m.schedule_id = r.schedule_id and m.scheduled_for = r.scheduled_for
        and m.run_id > r.run_id
    ) n order by n.run_id desc limit 1) end"""


def with_names(runs: str, *, payload: str = "r.payload") -> str:
    """A statement of everything a Run holds, newest first, around one that selects the columns above.

    Documents become text at the very end, row by row, so that those of rows which nobody fetches are never unpacked.
    """
    return f"""
select r.run_id, r.service, r.job, r.tenant_id, coalesce(r.schedule, '') as schedule,
  coalesce(r.revision, 0) as revision, r.state, r.trigger::text as trigger, r.scheduled_for, r.scheduled_local,
  coalesce(r.time_zone, '') as time_zone, r.run_after, r.created_at, r.started_at, r.finished_at, r.duration,
  r.triggered_by, r.origin, r.labels, {payload}::text as payload, r.attempt, r.max_attempts,
  coalesce(r.session_worker, r.worker) as worker, r.items_processed, r.items_succeeded, r.items_failed,
  r.metrics::text as metrics, r.metadata::text as metadata, r.error, r.cancel_requested_at, r.progress, r.blocked,
  r.alone, r.route, {_RETRY_OF} as retry_of, {_RETRIED_BY} as retried_by
from (
  select r.*, j.service, j.job, s.schedule, w.worker as session_worker
  from ({runs}) r
    join carillon.jobs j on j.job_id = r.job_id
    left join carillon.schedules s on s.schedule_id = r.schedule_id
    left join carillon.sessions w on w.session_id = r.session_id
  order by r.run_id desc offset 0
) r
order by r.run_id desc"""


def visible_to(principal: Principal) -> list[str]:
    """Conditions beside row level security: a user sees its runs of jobs that it may see (others have no name), and
    saying the tenant lets the planner use its index."""
    if principal.kind is not Kind.USER:
        return []
    return [
        "r.tenant_id = current_setting('carillon.tenant')",
        "r.tenant_id <> '-'",
        "exists (select from carillon.jobs j where j.job_id = r.job_id)",
    ]


def all_of(conditions: list[str]) -> str:
    return " and ".join(conditions) or "true"


def size_of(row: Row[Any]) -> int:
    """Roughly how many bytes a run takes as a message, rather more than less."""
    documents = len(row.payload) + len(row.metrics) + len(row.metadata)
    texts = [*row.labels.keys(), *row.labels.values(), *(row.error or {}).values()]
    return _FIXED_BYTES + _STRUCT_FACTOR * documents + sum(len(text.encode()) for text in texts)


async def run_of(tx: Transaction, row: Row[Any]) -> Run:
    """The run in a row of `with_names`."""
    state = RunState(row.state)
    return Run(
        run_id=row.run_id,
        service=row.service,
        job=row.job,
        tenant=row.tenant_id,
        schedule=row.schedule,
        revision=row.revision,
        state=state,
        blocked=row.blocked,
        trigger=TriggerSource(row.trigger),
        origin=row.origin,
        triggered_by=row.triggered_by,
        scheduled_for=row.scheduled_for,
        scheduled_local=row.scheduled_local,
        time_zone=row.time_zone,
        created_at=row.created_at,
        run_after=row.run_after,
        started_at=row.started_at,
        finished_at=row.finished_at,
        duration=row.duration,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        worker=row.worker,
        labels=row.labels,
        payload=read_document(row.payload),
        metrics=read_document(row.metrics),
        metadata=read_document(row.metadata),
        items=ItemCounts(row.items_processed, row.items_succeeded, row.items_failed),
        progress=Progress.from_document(row.progress),
        error=RunError.from_document(row.error),
        cancel_requested_at=row.cancel_requested_at,
        retry_of=row.retry_of,
        retried_by=row.retried_by,
        pending_reason=await _pending_reason(tx, row) if state is RunState.PENDING else None,
    )


async def _pending_reason(tx: Transaction, row: Row[Any]) -> PendingReason | None:
    reason = before_due(blocked=row.blocked, attempt=row.attempt, run_after=row.run_after, now=tx.now)
    return reason or once_due(alone=row.alone, served=await tx.serves(row.route))
