"""Live runs that their sessions will not finish: locked in one statement, changed in the next.

A statement that takes a lock reads through a snapshot older than the lock. So a caller locks runs here (the rows that
come back are as they stand under the lock), decides, and has the decision carried out in the same transaction. Those
that no session's end leads to are found by store/stuck.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import structlog

from scheduler_service.domain.repairs import SHOWN
from scheduler_service.domain.returns import Charged, Ended, Freed, HeldRun, Return
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.losses import losses
from scheduler_service.store.retry_policies import OF_THE_JOB, policy_of
from scheduler_service.store.sessions import workers_of
from scheduler_service.store.turns import arrange

log = structlog.get_logger()

HELD: LiteralString = f"""
select r.run_id, r.session_id, r.claim_id, r.attempt, r.started_at, r.run_deadline, r.unstarted_returns,
  r.cancel_requested_at, r.cancel_reason, r.tenant_id, r.alone, {losses("r")},
  r.max_attempts, {OF_THE_JOB}
from carillon.live_runs r join carillon.jobs j using (job_id)
"""

# Of those that hold fewest first. By the runs' ids, then, and by no index on sessions: see _END_EXPIRED for the rest.
_OF_SESSIONS: LiteralString = f"""{HELD}
where r.run_id = any(array(
    select h.run_id from unnest(%(session_ids)s::uuid[]) s(session_id)
    cross join lateral (
      select f.run_id, count(*) over () as held from (
        select l.run_id from carillon.live_runs l where l.session_id = s.session_id limit %(limit)s
      ) f
    ) h
    order by h.held limit %(limit)s))
  and array_position(%(session_ids)s::uuid[], r.session_id) is not null
order by r.run_id for update of r"""

# Session by session, each by the index on what it holds: joined at once, every run would be compared with each session.
_CLAIMS_OF: LiteralString = """
select b.session_id, x.claim_id
from unnest(%(session_ids)s::uuid[], %(before)s::timestamptz[]) b(session_id, before)
cross join lateral (
  select distinct l.claim_id from carillon.live_runs l
  where l.session_id = b.session_id and l.claimed_at < b.before
) x
"""

_BY_THESE_CLAIMS: LiteralString = """
(r.session_id, r.claim_id) in (select * from unnest(%(session_ids)s::uuid[], %(claims)s::bigint[]))"""

_RUNS_OF: LiteralString = f"""
select r.run_id from carillon.live_runs r
where r.session_id = any(%(session_ids)s::uuid[]) and {_BY_THESE_CLAIMS} order by r.run_id
"""

_OF_CLAIMS: LiteralString = f"""{HELD}
where r.run_id = any(%(run_ids)s::uuid[]) and {_BY_THESE_CLAIMS} order by r.run_id for update of r skip locked
"""

_FREE = """
update carillon.live_runs r set
  session_id = null, claim_id = null, claimed_at = null, deadline = null, started_at = null, progress = null,
  alone = r.alone or f.alone, unstarted_returns = r.unstarted_returns + f.lost::integer
from unnest(%(run_ids)s::uuid[], %(lost)s::boolean[], %(alone)s::boolean[]) f(run_id, lost, alone)
where r.run_id = f.run_id
"""

_RECORD_ATTEMPTS = """
insert into carillon.attempts
  (run_id, attempt, job_id, tenant_id, started_at, finished_at, duration, worker, error, claim_id)
select r.run_id, r.attempt, r.job_id, r.tenant_id, r.started_at, %(now)s,
  greatest(%(now)s, r.started_at) - r.started_at,
  c.worker, c.error, r.claim_id
from unnest(%(run_ids)s::uuid[], %(workers)s::text[], %(errors)s::jsonb[]) c(run_id, worker, error)
join carillon.live_runs r on r.run_id = c.run_id
on conflict do nothing
"""

_CHARGE = """
update carillon.live_runs r set
  attempt = r.attempt + 1, run_after = c.run_after, last_error = c.error, alone = r.alone or c.alone,
  first_started_at = coalesce(r.first_started_at, r.claimed_at),
  run_deadline = coalesce(r.run_deadline, r.claimed_at + r.run_timeout),
  session_id = null, claim_id = null, claimed_at = null, deadline = null, started_at = null, progress = null
from unnest(%(run_ids)s::uuid[], %(run_after)s::timestamptz[], %(errors)s::jsonb[], %(alone)s::boolean[])
  c(run_id, run_after, error, alone)
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
     tzdata, run_after, created_at, started_at, finished_at, duration, triggered_by, origin, labels, payload, attempt,
     max_attempts, worker, error, cancel_requested_at, claim_id)
  select run_id, schedule_id, revision, job_id, tenant_id, state, trigger, scheduled_for, scheduled_local, fold,
     time_zone, tzdata, run_after, created_at, started_at, ended_at, greatest(ended_at, started_at) - started_at,
     triggered_by, origin, labels, payload, attempt, max_attempts, worker, error, cancel_requested_at, claim_id
  from ended cross join lateral (select greatest(%(now)s, created_at) as ended_at) x
  on conflict do nothing
  returning run_id
)
select run_id, case when followed then schedule_id end, run_id in (select r.run_id from recorded r) from ended
"""

_TO_STOP = """
select session_id, run_id, attempt, claim_id from carillon.live_runs
where cancel_requested_at is not null and session_id = any(%s)
"""


@dataclass(frozen=True, slots=True)
class ToStop:
    """A claimed run that was asked to stop."""

    session_id: UUID
    run_id: UUID
    attempt: int
    claim_id: int


async def held_by(
    connection: Connection, workers: Mapping[UUID, str], *, limit: int, wait_for_locks: bool = True
) -> list[HeldRun]:
    """Locks up to `limit` of the runs that these sessions hold (of a few runs first), whose rows are gone or locked, by
    their workers' names; without waiting, but for what somebody else has locked."""
    statement = _OF_SESSIONS if wait_for_locks else _OF_SESSIONS + " skip locked"
    return await locked(connection, statement, workers, session_ids=list(workers), limit=limit)


async def claims_held(connection: Connection, before: Mapping[UUID, datetime]) -> dict[UUID, set[int]]:
    """The claims of which sessions hold runs, but for those that were made at these instants or later."""
    values = {"session_ids": list(before), "before": list(before.values())}
    claims: dict[UUID, set[int]] = {}
    for session_id, claim_id in await (await connection.execute(_CLAIMS_OF, values)).fetchall():
        claims.setdefault(session_id, set()).add(claim_id)
    return claims


Claims = Collection[tuple[UUID, int]]
"""Of these sessions, by their ids."""


async def runs_of_claims(connection: Connection, claims: Claims) -> list[UUID]:
    """The runs that sessions hold by these claims."""
    return [row[0] for row in await (await connection.execute(_RUNS_OF, _arrays(claims))).fetchall()]


async def lock_held(connection: Connection, run_ids: Sequence[UUID], claims: Claims) -> list[HeldRun]:
    """Locks those of these runs that are held by one of these claims still, and that nobody else has locked."""
    return await locked(connection, _OF_CLAIMS, run_ids=list(run_ids), **_arrays(claims))


def _arrays(claims: Claims) -> dict[str, Any]:
    return {"session_ids": [session_id for session_id, _ in claims], "claims": [claim_id for _, claim_id in claims]}


async def locked(
    connection: Connection, statement: LiteralString, workers: Mapping[UUID, str] | None = None, **values: object
) -> list[HeldRun]:
    """The runs of a statement that begins with HELD and locks. `workers`: whose sessions those were whose rows are
    gone."""
    rows = await (await connection.execute(statement, values)).fetchall()
    names = dict(workers or {})
    if unnamed := {row[1] for row in rows if row[1] is not None} - set(names):
        names |= await workers_of(connection, unnamed)
    return [HeldRun(*[*row[:9], policy_of(row), *row[9:12], names.get(row[1], "")]) for row in rows]


async def carry_out(
    connection: Connection,
    returns: Sequence[tuple[HeldRun, Return]],
    now: datetime,
) -> set[UUID]:
    """Carries out what was decided about runs that this transaction has locked. Answers which of them had a record
    already: their live rows are removed."""
    await _free(connection, [(run, what) for run, what in returns if isinstance(what, Freed)])
    await _charge(connection, [(run, what) for run, what in returns if isinstance(what, Charged)], now)
    return await _end(connection, [(run, what) for run, what in returns if isinstance(what, Ended)], now)


async def _free(connection: Connection, freed: Sequence[tuple[HeldRun, Freed]]) -> None:
    if freed:
        values = {
            "run_ids": arrays.uuids(run.run_id for run, _ in freed),
            "lost": arrays.plain(what.lost for _, what in freed),
            "alone": arrays.plain(what.alone for _, what in freed),
        }
        await connection.execute(_FREE, values)


async def _charge(connection: Connection, charged: Sequence[tuple[HeldRun, Charged]], now: datetime) -> None:
    if not charged:
        return
    values = {
        "run_ids": arrays.uuids(run.run_id for run, _ in charged),
        "workers": arrays.texts(run.worker for run, _ in charged),
        "errors": arrays.texts(json.dumps(what.error.to_document()) for _, what in charged),
        "run_after": arrays.instants(what.run_after for _, what in charged),
        "alone": arrays.plain(what.alone for _, what in charged),
        "now": now,
    }
    await connection.execute(_RECORD_ATTEMPTS, values)
    await connection.execute(_CHARGE, values)


async def _end(connection: Connection, ended: Sequence[tuple[HeldRun, Ended]], now: datetime) -> set[UUID]:
    if not ended:
        return set()
    values = {
        "run_ids": arrays.uuids(run.run_id for run, _ in ended),
        "states": arrays.plain(what.state.value for _, what in ended),
        "errors": arrays.texts(json.dumps(what.error.to_document()) for _, what in ended),
        "workers": arrays.texts(run.worker for run, _ in ended),
        "now": now,
    }
    rows = await (await connection.execute(_END, values)).fetchall()
    await arrange(connection, {schedule_id for _, schedule_id, _ in rows if schedule_id is not None})
    there = {run_id for run_id, _, is_recorded in rows if not is_recorded}
    if there:
        said = [str(run_id) for run_id in sorted(there)[:SHOWN]]
        log.critical("live runs had records already; the live ones are removed", count=len(there), runs=said)
    return there


async def asked_to_stop(connection: Connection, session_ids: Sequence[UUID]) -> list[ToStop]:
    """What these sessions hold and were asked to stop."""
    cursor = await connection.execute(_TO_STOP, (list(session_ids),))
    return [ToStop(*row) for row in await cursor.fetchall()]
