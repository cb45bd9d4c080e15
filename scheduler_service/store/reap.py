"""Live runs that their sessions will not finish: found and locked in one statement, changed in the next.

A statement that takes a lock reads through a snapshot older than the lock. So a caller finds runs here (the rows that
come back are as they stand under the lock), decides, and has the decision carried out in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from psycopg.types.json import Jsonb

from scheduler_service.domain.returns import Charged, Ended, Freed, HeldRun, Return
from scheduler_service.store.sessions import Connection, workers_of
from scheduler_service.store.turns import arrange

log = structlog.get_logger()

_HELD = """
select r.run_id, r.session_id, r.claim_id, r.attempt, r.max_attempts, r.retry_delay, r.started_at, r.run_deadline,
       r.unstarted_returns, r.cancel_requested_at, r.cancel_reason
from carillon.live_runs r
"""

_OF_SESSIONS = _HELD + "where r.session_id = any(%(session_ids)s) order by r.run_id for update"

# Session by session, each by the index on what it holds: joined at once, every run would be compared with each session.
_NOT_LISTED = f"""{_HELD}
join (
  select x.run_id, x.claim_id
  from unnest(%(session_ids)s::uuid[], %(before)s::timestamptz[]) b(session_id, before)
  cross join lateral (
    select l.run_id, l.claim_id, l.session_id from carillon.live_runs l
    where l.session_id = b.session_id and l.claimed_at < b.before
    offset 0
  ) x
  where (x.session_id, x.claim_id) not in (select * from unnest(%(listed_by)s::uuid[], %(claims)s::bigint[]))
) c on c.run_id = r.run_id and c.claim_id = r.claim_id
order by r.run_id for update of r
"""

_OVERDUE = f"""{_HELD}
where r.session_id is not null and least(r.deadline, r.run_deadline) + %(margin)s <= %(now)s
order by r.run_id limit %(limit)s for update skip locked
"""

_RUN_OVERDUE = f"""{_HELD}
where r.session_id is null and r.run_deadline <= %(now)s
order by r.run_id limit %(limit)s for update skip locked
"""

_GRACE_OVER = f"""{_HELD}
where r.cancel_requested_at is not null
  and (r.session_id is null or r.cancel_requested_at + r.cancel_grace <= %(now)s)
order by r.run_id limit %(limit)s for update skip locked
"""

_FREE = """
update carillon.live_runs r set
  session_id = null, claim_id = null, claimed_at = null, deadline = null, started_at = null, progress = null,
  alone = r.alone or f.lost, unstarted_returns = r.unstarted_returns + f.lost::integer
from unnest(%(run_ids)s::uuid[], %(lost)s::boolean[]) f(run_id, lost)
where r.run_id = f.run_id
"""

_RECORD_ATTEMPTS = """
insert into carillon.attempts
  (run_id, attempt, job_id, tenant_id, started_at, finished_at, worker, error, claim_id)
select r.run_id, r.attempt, r.job_id, r.tenant_id, r.started_at, %(now)s, c.worker, c.error, r.claim_id
from unnest(%(run_ids)s::uuid[], %(workers)s::text[], %(errors)s::jsonb[]) c(run_id, worker, error)
join carillon.live_runs r on r.run_id = c.run_id
on conflict do nothing
"""

_CHARGE = """
update carillon.live_runs r set
  attempt = r.attempt + 1, run_after = c.run_after, last_error = c.error, alone = r.alone or c.lost,
  first_started_at = coalesce(r.first_started_at, r.claimed_at),
  run_deadline = coalesce(r.run_deadline, r.claimed_at + r.run_timeout),
  session_id = null, claim_id = null, claimed_at = null, deadline = null, started_at = null, progress = null
from unnest(%(run_ids)s::uuid[], %(run_after)s::timestamptz[], %(errors)s::jsonb[], %(lost)s::boolean[])
  c(run_id, run_after, error, lost)
where r.run_id = c.run_id
"""

_END = """
with ended as (
  delete from carillon.live_runs r
  using unnest(%(run_ids)s::uuid[], %(states)s::carillon.outcome[], %(errors)s::jsonb[], %(workers)s::text[])
    e(run_id, state, error, worker)
  where r.run_id = e.run_id
  returning r.*, e.state, e.error, e.worker
),
recorded as (
  insert into carillon.runs
    (run_id, schedule_id, revision, job_id, tenant_id, state, trigger, scheduled_for, scheduled_local, fold, time_zone,
     tzdata, run_after, created_at, started_at, finished_at, triggered_by, origin, labels, payload, attempt,
     max_attempts, worker, error, cancel_requested_at, claim_id)
  select run_id, schedule_id, revision, job_id, tenant_id, state, trigger, scheduled_for, scheduled_local, fold,
     time_zone, tzdata, run_after, created_at, started_at, greatest(%(now)s, created_at), triggered_by, origin, labels,
     payload, attempt, max_attempts, worker, error, cancel_requested_at, claim_id
  from ended
  on conflict do nothing
  returning run_id
)
select case when followed then schedule_id end, (select count(*) from recorded) from ended
"""

_TO_STOP = """
select session_id, run_id, attempt, claim_id from carillon.live_runs
where cancel_requested_at is not null and session_id = any(%s)
"""


@dataclass(frozen=True, slots=True)
class HeldClaims:
    """What a session said that it holds, and the instant before which a claim must have been made to count as lost
    if it is not among these."""

    session_id: UUID
    before: datetime
    claims: Sequence[int]


@dataclass(frozen=True, slots=True)
class ToStop:
    """A claimed run that was asked to stop."""

    session_id: UUID
    run_id: UUID
    attempt: int
    claim_id: int


async def held_by(connection: Connection, session_ids: Sequence[UUID]) -> list[HeldRun]:
    """What these sessions hold."""
    return await _locked(connection, _OF_SESSIONS, session_ids=list(session_ids))


async def held_unknown_to_their_sessions(connection: Connection, lists: Sequence[HeldClaims]) -> list[HeldRun]:
    """Runs whose session does not list their claim."""
    return await _locked(
        connection,
        _NOT_LISTED,
        session_ids=[one.session_id for one in lists],
        before=[one.before for one in lists],
        listed_by=[one.session_id for one in lists for _ in one.claims],
        claims=[claim for one in lists for claim in one.claims],
    )


async def overdue(connection: Connection, now: datetime, *, margin: timedelta, limit: int) -> list[HeldRun]:
    """Claimed runs whose attempt's or run's deadline passed more than `margin` ago."""
    return await _locked(connection, _OVERDUE, now=now, margin=margin, limit=limit)


async def overdue_while_waiting(connection: Connection, now: datetime, *, limit: int) -> list[HeldRun]:
    """Runs that nobody holds, and whose time is over."""
    return await _locked(connection, _RUN_OVERDUE, now=now, limit=limit)


async def past_cancel_grace(connection: Connection, now: datetime, *, limit: int) -> list[HeldRun]:
    """Runs that were asked to stop, and whose time for that is over, or that nobody holds any more."""
    return await _locked(connection, _GRACE_OVER, now=now, limit=limit)


async def _locked(connection: Connection, statement: str, **values: object) -> list[HeldRun]:
    return [HeldRun(*row) for row in await (await connection.execute(statement, values)).fetchall()]


async def carry_out(
    connection: Connection,
    returns: Sequence[tuple[HeldRun, Return]],
    now: datetime,
    *,
    ended_sessions: Mapping[UUID, str] | None = None,
) -> None:
    """Carries out what was decided about runs that this transaction has locked. `ended_sessions` names the workers of
    sessions whose rows are gone."""
    workers = dict(ended_sessions or {})
    unnamed = {run.session_id for run, _ in returns if run.session_id is not None} - set(workers)
    if unnamed:
        workers |= await workers_of(connection, unnamed)
    await _free(connection, [(run, what) for run, what in returns if isinstance(what, Freed)])
    await _charge(connection, [(run, what) for run, what in returns if isinstance(what, Charged)], now, workers)
    await _end(connection, [(run, what) for run, what in returns if isinstance(what, Ended)], now, workers)


async def _free(connection: Connection, freed: Sequence[tuple[HeldRun, Freed]]) -> None:
    if freed:
        values = {"run_ids": [run.run_id for run, _ in freed], "lost": [what.lost for _, what in freed]}
        await connection.execute(_FREE, values)


async def _charge(
    connection: Connection, charged: Sequence[tuple[HeldRun, Charged]], now: datetime, workers: Mapping[UUID, str]
) -> None:
    if not charged:
        return
    values = {
        "run_ids": [run.run_id for run, _ in charged],
        "workers": [_worker(run, workers) for run, _ in charged],
        "errors": [Jsonb(what.error.to_document()) for _, what in charged],
        "run_after": [what.run_after for _, what in charged],
        "lost": [what.lost for _, what in charged],
        "now": now,
    }
    await connection.execute(_RECORD_ATTEMPTS, values)
    await connection.execute(_CHARGE, values)


async def _end(
    connection: Connection, ended: Sequence[tuple[HeldRun, Ended]], now: datetime, workers: Mapping[UUID, str]
) -> None:
    if not ended:
        return
    run_ids = [run.run_id for run, _ in ended]
    values = {
        "run_ids": run_ids,
        "states": [what.state.value for _, what in ended],
        "errors": [Jsonb(what.error.to_document()) for _, what in ended],
        "workers": [_worker(run, workers) for run, _ in ended],
        "now": now,
    }
    rows = await (await connection.execute(_END, values)).fetchall()
    await arrange(connection, {schedule_id for schedule_id, _ in rows if schedule_id is not None})
    if not rows or rows[0][1] < len(ended):
        log.critical(
            "live runs had records already; the live ones are removed", runs=[str(run_id) for run_id in run_ids]
        )


def _worker(run: HeldRun, workers: Mapping[UUID, str]) -> str:
    return workers.get(run.session_id, "") if run.session_id is not None else ""


async def asked_to_stop(connection: Connection, session_ids: Sequence[UUID]) -> list[ToStop]:
    """What these sessions hold and were asked to stop."""
    cursor = await connection.execute(_TO_STOP, (list(session_ids),))
    return [ToStop(*row) for row in await cursor.fetchall()]
