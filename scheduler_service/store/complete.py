"""Results, in batches: what ends runs, what has them tried again, and what became of those that matched nothing.

The fence is the match on (run, attempt, claim), and that the session's row is still there: who frees the runs of a
lost session deletes that row first. Arrays are in order of run ids, the order in which everyone locks live rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

from scheduler_service.domain.attempt import AttemptRef, Result
from scheduler_service.domain.record import RunError
from scheduler_service.domain.retry import RetryPolicy
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.losses import losses
from scheduler_service.store.patience import PATIENCE, PATIENTLY, in_ms
from scheduler_service.store.retry_policies import OF_THE_JOB, policy_of
from scheduler_service.store.turns import arrange

UNNAMED = {
    "FAILED": RunError("HANDLER_ERROR", "the attempt failed without saying why"),
    "CANCELLED": RunError("CANCELLED", "the worker stopped the attempt"),
    "RETURNED": RunError("CANCELLED", "the run was cancelled before it started"),
}

_NOW: LiteralString = "(select coalesce(%(now)s::timestamptz, clock_timestamp()))"

_HELD: LiteralString = f"""
held as materialized (
  select session_id, worker from carillon.sessions where session_id = any(%(sessions)s::uuid[]) and {PATIENTLY}
  order by session_id for key share
)"""

_RESULTS: LiteralString = """
unnest(%(run_ids)s::uuid[], %(attempts)s::int[], %(claim_ids)s::bigint[], %(of_sessions)s::uuid[],
       %(completed)s::boolean[], %(durations)s::float8[], %(delays)s::interval[], %(errors)s::text[],
       %(processed)s::bigint[], %(succeeded)s::bigint[], %(failed)s::bigint[],
       %(metrics)s::text[], %(metadata)s::text[], %(digests)s::text[])
  as r(run_id, attempt, claim_id, session_id, completed, seconds, delay, error,
       processed, succeeded, failed, metrics, metadata, digest)"""

# `is not distinct from` keeps the planner off the index on sessions, which it would walk once for each run.
_IS_THAT_ATTEMPT: LiteralString = """
l.run_id = r.run_id and l.attempt = r.attempt and l.claim_id = r.claim_id
  and l.session_id is not distinct from r.session_id"""

_DURATION: LiteralString = "make_interval(secs => r.seconds)"

# A worker's clock runs at its own rate: no attempt starts before it was handed over.
_STARTED_AT: LiteralString = f"""
coalesce(l.started_at, greatest(l.claimed_at, {_NOW} - {_DURATION}))"""

# Lateral, so that the runs are locked in the order of the arrays, however many sessions they are of. Followed ones,
# whose turn is to go to another, are left out unless the caller sees to that: see store/turns.py.
_END: LiteralString = f"""
with {_HELD},
ended as (
  delete from carillon.live_runs l
  using {_RESULTS}
  cross join lateral (select worker from held where held.session_id = r.session_id offset 0) h
  where {_IS_THAT_ATTEMPT} and (%(also_followed)s or not l.followed)
  returning l.*, h.worker, greatest(l.created_at, {_NOW}) as finished_at,
    case when l.started_at is not null or r.seconds is not null then {_STARTED_AT} end as begun_at,
    {_DURATION} as duration,
    r.completed, r.error, r.processed, r.succeeded, r.failed, r.metrics, r.metadata, r.digest
)
insert into carillon.runs (run_id, schedule_id, revision, job_id, tenant_id, state, trigger,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, started_at, finished_at, duration,
  triggered_by, origin, labels, payload, attempt, max_attempts, worker,
  items_processed, items_succeeded, items_failed, metrics, metadata, error,
  cancel_requested_at, claim_id, result_digest)
select run_id, schedule_id, revision, job_id, tenant_id,
  case when completed then 'COMPLETED' when cancel_requested_at is not null then 'CANCELLED'
       else 'FAILED' end::carillon.outcome, trigger,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, begun_at, finished_at,
  coalesce(duration, finished_at - begun_at),
  triggered_by, origin, labels, payload, attempt, max_attempts, worker,
  coalesce(processed, 0), coalesce(succeeded, 0), coalesce(failed, 0),
  coalesce(metrics::jsonb, '{{}}'), coalesce(metadata::jsonb, '{{}}'),
  case when completed then null
       when error::jsonb ->> 'code' = 'CANCELLED' and cancel_reason <> ''
         then error::jsonb || jsonb_build_object('message', cancel_reason)
       else error::jsonb end,
  cancel_requested_at, claim_id, decode(digest, 'hex')
from ended
returning run_id, attempt, claim_id"""

_LOCK: LiteralString = f"""
with {_HELD}
select l.run_id, l.attempt, l.claim_id, l.cancel_requested_at is not null, case when l.followed then l.schedule_id end,
  l.started_at is not null, l.max_attempts, {OF_THE_JOB}
from {_RESULTS} join held h on h.session_id = r.session_id join carillon.live_runs l on {_IS_THAT_ATTEMPT}
join carillon.jobs j on j.job_id = l.job_id
order by l.run_id
for update of l"""

# One instant for all that it writes: the next attempt is due its whole delay after the end of this one.
_CLOCK: LiteralString = "(select now from clock)"
_BEGAN_AT: LiteralString = _STARTED_AT.replace(_NOW, _CLOCK)

# The attempt is recorded from the row as it was: the statement's snapshot, of rows that are locked already.
# A run that failed in the ordinary way has left its worker alive, and need not be alone any longer. But one that was
# lost twice with its worker stays so until it ends, and of one that was lost once no neighbour shall take the last
# attempt: see domain/returns.py. Earlier losses are looked up only where they decide.
_RETRY: LiteralString = f"""
with clock as materialized (select {_NOW} as now),
recorded as (
  insert into carillon.attempts (run_id, attempt, job_id, tenant_id, started_at, finished_at, duration, worker, error,
    claim_id, result_digest)
  select l.run_id, l.attempt, l.job_id, l.tenant_id,
    case when l.started_at is not null or r.seconds is not null then {_BEGAN_AT} end, {_CLOCK},
    coalesce({_DURATION}, {_CLOCK} - l.started_at), h.worker, r.error::jsonb, l.claim_id, decode(r.digest, 'hex')
  from {_RESULTS} join carillon.live_runs l on {_IS_THAT_ATTEMPT}
  join carillon.sessions h on h.session_id = l.session_id
)
update carillon.live_runs l set
  attempt = l.attempt + 1, run_after = {_CLOCK} + r.delay, last_error = r.error::jsonb,
  session_id = null, claim_id = null, claimed_at = null, deadline = null, started_at = null, progress = null,
  first_started_at = coalesce(l.first_started_at, {_BEGAN_AT}),
  run_deadline = coalesce(l.run_deadline, {_BEGAN_AT} + l.run_timeout),
  alone = case
    when l.attempt + 1 >= l.max_attempts then {losses("l")} > 0
    when l.alone then {losses("l")} > 1
    else false end,
  unstarted_returns = 0
from {_RESULTS}
where {_IS_THAT_ATTEMPT}
returning r.run_id, r.attempt, r.claim_id"""

_FREE: LiteralString = f"""
update carillon.live_runs l set
  session_id = null, claim_id = null, claimed_at = null, deadline = null, started_at = null, progress = null
from {_RESULTS}
where {_IS_THAT_ATTEMPT}
returning r.run_id, r.attempt, r.claim_id"""

_REMOVE_RECORDED: LiteralString = """
delete from carillon.live_runs l using carillon.runs r
where l.run_id = %(run_id)s and r.run_id = %(run_id)s
returning case when l.followed then l.schedule_id end"""

# Joined, not `= any(...)`: that would probe every partition.
_LOOK_UP: LiteralString = """
select e.state::text,
  coalesce(e.attempt = r.attempt and e.claim_id = r.claim_id and e.result_digest = decode(r.digest, 'hex')
           or a.claim_id = r.claim_id and a.result_digest = decode(r.digest, 'hex'), false),
  e.run_id is not null or a.run_id is not null or l.run_id is not null
from unnest(%(run_ids)s::uuid[], %(attempts)s::int[], %(claim_ids)s::bigint[], %(digests)s::text[])
  with ordinality as r(run_id, attempt, claim_id, digest, place)
left join carillon.runs e on e.run_id = r.run_id
left join carillon.attempts a on a.run_id = r.run_id and a.attempt = r.attempt
left join carillon.live_runs l on l.run_id = r.run_id
order by r.place"""


@dataclass(frozen=True, slots=True)
class Held:
    """A locked live attempt: what decides on another one needs. `followed_on` is the schedule of a run that others
    wait for."""

    cancel_requested: bool
    followed_on: int | None
    started: bool
    retry: RetryPolicy


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a result that matched no live attempt. `state` is the outcome of its run, if that has
    ended; `identical`: this very result is recorded."""

    state: str | None
    identical: bool
    run_exists: bool


async def end_runs(
    connection: Connection,
    results: Sequence[Result],
    now: datetime | None = None,
    digests: Sequence[str] | None = None,
    *,
    also_followed: bool = False,
    patience: float = PATIENCE,
) -> set[AttemptRef]:
    """Ends runs: COMPLETED, or CANCELLED where that was asked for, or FAILED. Answers which results matched no live
    attempt. `digests` are those of the results as they were sent, where these stand in for others.

    Runs that others wait for are only ended `also_followed`: by who arranges the turns in the same transaction.
    Errors: LockNotAvailable, of who waited for a lock for longer than `patience`, in seconds."""
    more: dict[str, object] = {"digests": arrays.plain(digests)} if digests else {}
    more["patience"] = in_ms(patience)
    return await _unmatched(connection, _END, results, now, also_followed=also_followed, **more)


async def lock_attempts(
    connection: Connection, results: Sequence[Result], *, patience: float = PATIENCE
) -> dict[AttemptRef, Held]:
    """Locks sessions and live runs, so that what follows can be decided from them. `patience`, for all that follows in
    this transaction, and errors as above."""
    parameters = _parameters(results, None) | {"patience": in_ms(patience)}
    cursor = await connection.execute(_LOCK, parameters, binary=True)
    return {AttemptRef(*row[:3]): Held(row[3], row[4], row[5], policy_of(row)) for row in await cursor.fetchall()}


async def retry_runs(
    connection: Connection,
    results: Sequence[Result],
    delays: Sequence[timedelta],
    now: datetime | None = None,
    digests: Sequence[str] | None = None,
) -> set[AttemptRef]:
    """Records failed attempts of locked runs, and has the runs tried again after these delays. `digests`, and the
    answer, as above."""
    more: dict[str, object] = {"digests": arrays.plain(digests)} if digests else {}
    seconds = (f"{delay.total_seconds():f}s" for delay in delays)
    return await _unmatched(connection, _RETRY, results, now, delays=arrays.plain(seconds), **more)


async def free_runs(connection: Connection, results: Sequence[Result]) -> set[AttemptRef]:
    """Takes back locked runs that were never started: the attempt is not charged. Answers as above."""
    return await _unmatched(connection, _FREE, results, None)


async def remove_recorded(connection: Connection, run_id: UUID) -> bool:
    """Removes a live run of which there is a record already. Answers whether it was so. In a transaction of its own."""
    async with connection.transaction():
        row = await (await connection.execute(_REMOVE_RECORDED, {"run_id": run_id})).fetchone()
        if row is not None and row[0] is not None:
            await arrange(connection, [row[0]])
    return row is not None


async def look_up(connection: Connection, results: Sequence[Result]) -> list[Known]:
    """What is known of results that matched no live attempt, in their order."""
    cursor = await connection.execute(_LOOK_UP, _parameters(results, None), binary=True)
    return [Known(*row) for row in await cursor.fetchall()]


async def _unmatched(
    connection: Connection, query: LiteralString, results: Sequence[Result], now: datetime | None, **more: object
) -> set[AttemptRef]:
    cursor = await connection.execute(query, _parameters(results, now) | more, binary=True)
    if cursor.rowcount == len(results):
        return set()
    matched = {AttemptRef(*row) for row in await cursor.fetchall()}
    return {each.ref for each in results} - matched


def _parameters(results: Sequence[Result], now: datetime | None) -> dict[str, Any]:
    counts = [each.items for each in results] if any(each.items for each in results) else []
    return {
        "now": now,
        "sessions": arrays.uuids({each.session_id for each in results}),
        "run_ids": arrays.uuids(each.ref.run_id for each in results),
        "attempts": arrays.plain(each.ref.attempt for each in results),
        "claim_ids": arrays.plain(each.ref.claim_id for each in results),
        "of_sessions": arrays.uuids(each.session_id for each in results),
        "completed": arrays.plain(each.outcome == "COMPLETED" for each in results),
        "durations": arrays.plain(each.duration for each in results),
        "delays": "{}",
        "errors": arrays.texts(_error(each) for each in results),
        "processed": arrays.plain(each and each.processed for each in counts),
        "succeeded": arrays.plain(each and each.succeeded for each in counts),
        "failed": arrays.plain(each and each.failed for each in counts),
        "metrics": arrays.texts(each.metrics or None for each in results),
        "metadata": arrays.texts(each.metadata or None for each in results),
        "digests": arrays.plain(each.digest() for each in results),
    }


def _error(result: Result) -> str | None:
    if result.outcome == "COMPLETED":
        return None
    error = result.error or UNNAMED[result.outcome]
    return json.dumps(error.to_document())
