"""Claims: pending runs handed to a session. The claim's id is the fencing token."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, LiteralString
from uuid import UUID

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun
from scheduler_service.domain.fields import MAX_JSON_BYTES
from scheduler_service.domain.run import TriggerSource
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection

PRIORITIES = (0, 1)
"""0: due now. 1: catch-up, backfill and repair, which what is due now does not wait for."""

MOST_BYTES = 4 * 1024 * 1024
"""Of payloads in one claim, about: what compresses well counts less than it is, but never less than a third."""


def bytes_of(column: LiteralString) -> LiteralString:
    """SQL for what a JSON document takes, about: known without reading it, unless it is compressed. Then it is taken to
    be 32 times as large (the densest are 90 times), and no larger than one may be."""
    return f"""case when pg_column_compression({column}) is null then pg_column_size({column})
      else least(32 * pg_column_size({column}), {MAX_JSON_BYTES}) end"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim took; `claim_id` is 0 if nothing. `emptied`: nothing was left for these routes but what others
    have locked, and what is to be alone."""

    claim_id: int
    runs: Sequence[ClaimedRun]
    emptied: bool


_NOW: LiteralString = "(select coalesce(%(now)s::timestamptz, clock_timestamp()))"

# The sub-select on the sequence takes a number only once a run is there. The rows are locked by then, and so are found
# by their place: by run_id, a plan that was made while the table was small walks all of it for every claim.
_CLAIMED: LiteralString = f"""
claimed as (
  update carillon.live_runs l set
    session_id = %(session)s,
    claim_id = (select nextval('carillon.claim_ids')),
    claimed_at = {_NOW},
    deadline = {_NOW} + l.attempt_timeout
  from chosen c where l.ctid = c.place
  returning l.run_id, l.claim_id, l.attempt, l.max_attempts, l.job_id, l.tenant_id, l.payload,
    l.attempt_timeout, l.cancel_grace, l.scheduled_for, l.trigger, l.labels
)"""

_ANSWER: LiteralString = """
select c.claim_id, c.run_id, c.attempt, c.max_attempts, j.service, j.job, c.tenant_id, j.endpoint, c.payload::text,
  extract(epoch from c.attempt_timeout)::float8, extract(epoch from c.cancel_grace)::float8,
  c.scheduled_for, c.trigger::text, c.labels::text, (select count(*) from picked)
from held left join (claimed c join carillon.jobs j using (job_id)) on true"""

_HELD: LiteralString = """
held as materialized (
  select session_id from carillon.sessions
  where session_id = %(session)s and stream = coalesce(%(stream)s::bigint, stream) for key share
)"""

_PICKED: LiteralString = f"""
    from carillon.live_runs l
    where l.route = served.route and l.priority = served.priority and l.session_id is null and not l.blocked
      and not l.alone and l.run_after <= {_NOW}
    order by l.run_after, l.run_id limit %(limit)s
    for update skip locked
  ) due
  limit %(limit)s
)"""

# Every statement is planned each time it is executed, so what a small claim does not need is not in it.
_CLAIM_FEW: LiteralString = f"""
with {_HELD},
picked as materialized (
  select due.place
  from held, unnest(%(routes)s::text[], %(priorities)s::smallint[]) as served(route, priority)
  cross join lateral (
    select l.ctid as place {_PICKED},
chosen as materialized (select place from picked),
{_CLAIMED}
{_ANSWER}"""

_CLAIM_MANY: LiteralString = f"""
with {_HELD},
picked as materialized (
  select due.place, due.bytes
  from held, unnest(%(routes)s::text[], %(priorities)s::smallint[]) as served(route, priority)
  cross join lateral (
    select l.ctid as place, {bytes_of("l.payload")} as bytes {_PICKED},
sized as (
  select place, sum(bytes) over (rows between unbounded preceding and current row) - bytes as before from picked
),
chosen as materialized (
  select place from sized where before < {MOST_BYTES}
),
{_CLAIMED}
{_ANSWER}"""

_FEW = MOST_BYTES // MAX_JSON_BYTES
"""So many have no more than MOST_BYTES, whatever they are."""


async def claim(
    connection: Connection,
    session_id: UUID,
    routes: Collection[str],
    limit: int,
    now: datetime | None = None,
    *,
    stream: int | None = None,
) -> Claim | None:
    """Hands up to `limit` due runs of these routes to a session, or fewer once their payloads have 4 MiB: those of the
    lower priority first, of these the routes in their order, and within a route the longest due first. Runs that are to
    be alone are left out. None if the session has gone, or has a newer stream than `stream`."""
    parameters = {"session": session_id, "stream": stream, "limit": limit, "now": now, **_ranges(routes)}
    query = _CLAIM_FEW if limit <= _FEW else _CLAIM_MANY
    rows = await (await connection.execute(query, parameters, binary=True)).fetchall()
    return _claim_of(rows, limit) if rows else None


_LOCK_SESSION: LiteralString = """
select from carillon.sessions where session_id = %(session)s and stream = %(stream)s for update"""

# `is not true`, so that no other index serves: it would be walked past everything that waits.
_CLAIM_ALONE: LiteralString = f"""
with held as materialized (
  select exists (
    select from carillon.live_runs h where h.session_id = %(session)s and (h.alone or not %(beside)s)
  ) as holds_other
),
picked as materialized (
  select l.ctid as place from carillon.live_runs l
  where l.alone and l.session_id is null and l.route = any(%(routes)s::text[]) and l.run_after <= {_NOW}
    and l.blocked is not true and not (select holds_other from held)
  order by l.priority, l.run_after, l.run_id limit 1
  for update skip locked
),
chosen as materialized (select place from picked),
{_CLAIMED}
{_ANSWER}"""


async def claim_alone(
    connection: Connection,
    session_id: UUID,
    stream: int,
    routes: Collection[str],
    *,
    beside: bool = False,
    now: datetime | None = None,
) -> Claim | None:
    """Hands the first run that is to be alone to a session that holds nothing; `beside`: nothing else that is to be
    alone. None if the session has gone, or has a newer stream.

    The session's row is locked against claims and completion, and what it holds is looked at in the next statement:
    that is all it holds."""
    parameters = {"session": session_id, "stream": stream, "routes": arrays.texts(routes), "beside": beside, "now": now}
    async with connection.transaction():
        if (await connection.execute(_LOCK_SESSION, parameters)).rowcount == 0:
            return None
        rows = await (await connection.execute(_CLAIM_ALONE, parameters, binary=True)).fetchall()
    return _claim_of(rows, 1)


def _claim_of(rows: Sequence[tuple[Any, ...]], limit: int) -> Claim:
    if rows[0][0] is None:
        return Claim(0, (), emptied=True)
    picked: int = rows[0][14]
    return Claim(rows[0][0], [_claimed_run(row) for row in rows], emptied=len(rows) == picked < limit)


# What was to be stopped meanwhile ends another way: free, it could be claimed.
_GIVE_BACK: LiteralString = """
update carillon.live_runs l set session_id = null, claim_id = null, claimed_at = null, deadline = null
from (
  select h.run_id, h.attempt, h.claim_id
  from unnest(%(run_ids)s::uuid[], %(attempts)s::int[], %(claim_ids)s::bigint[]) as r(run_id, attempt, claim_id)
  join carillon.live_runs h on h.run_id = r.run_id and h.attempt = r.attempt and h.claim_id = r.claim_id
  where h.started_at is null and h.cancel_requested_at is null
  order by h.run_id for update of h skip locked
) g
where l.run_id = g.run_id
returning g.run_id, g.attempt, g.claim_id"""


async def give_back(connection: Connection, attempts: Collection[AttemptRef]) -> set[AttemptRef]:
    """Frees runs of claims that no worker has seen, at no charge; but for those that somebody has locked, or that were
    asked to stop. Answers which are free."""
    parameters = {
        "run_ids": arrays.uuids(ref.run_id for ref in attempts),
        "attempts": arrays.plain(ref.attempt for ref in attempts),
        "claim_ids": arrays.plain(ref.claim_id for ref in attempts),
    }
    cursor = await connection.execute(_GIVE_BACK, parameters, binary=True)
    return {AttemptRef(*row) for row in await cursor.fetchall()}


_ALONE_WAITING: LiteralString = f"""
select route, count(*) from carillon.live_runs
where alone and session_id is null and route = any(%(routes)s::text[]) and run_after <= {_NOW}
  and blocked is not true
group by route"""


async def alone_waiting(connection: Connection, routes: Collection[str], now: datetime | None = None) -> dict[str, int]:
    """How many runs that are to be alone wait for a session on each of these routes, where any does."""
    cursor = await connection.execute(_ALONE_WAITING, {"routes": arrays.texts(routes), "now": now})
    return dict(await cursor.fetchall())


_HOLDINGS: LiteralString = """
select s.session_id,
  exists (select from carillon.live_runs a where a.session_id = s.session_id and a.alone),
  (select count(*) from carillon.live_runs h where h.session_id = s.session_id)
from unnest(%(sessions)s::uuid[]) as s(session_id)"""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a session has in its hands: how many runs, and whether one of them is to be alone."""

    alone: bool
    runs: int


async def holdings(connection: Connection, session_ids: Collection[UUID]) -> dict[UUID, Holding]:
    """What each of these sessions holds."""
    cursor = await connection.execute(_HOLDINGS, {"sessions": arrays.plain(session_ids)})
    return {row[0]: Holding(row[1], row[2]) for row in await cursor.fetchall()}


_TRIGGERS = {source.value: source for source in TriggerSource}


@lru_cache(maxsize=4_096)
def labels_of(text: str) -> dict[str, str]:
    """Labels from their JSON. Remembered and shared, because most runs of a job have the same: not to be changed."""
    labels: dict[str, str] = json.loads(text)
    return labels


def _claimed_run(row: tuple[Any, ...]) -> ClaimedRun:
    return ClaimedRun(*(*row[1:12], _TRIGGERS[row[12]], labels_of(row[13])))


def _ranges(routes: Collection[str]) -> dict[str, str]:
    """Each route with each priority, a range of the index on claimable runs each."""
    return {
        "routes": arrays.texts([*routes] * len(PRIORITIES)),
        "priorities": arrays.plain(priority for priority in PRIORITIES for _ in routes),
    }


_SECONDS_TO_NEXT: LiteralString = """
select extract(epoch from min(waiting.run_after)
         - (select coalesce(%(now)s::timestamptz, clock_timestamp())))::float8
from unnest(%(routes)s::text[], %(priorities)s::smallint[]) as served(route, priority)
cross join lateral (
  select l.run_after from carillon.live_runs l
  where l.route = served.route and l.priority = served.priority and l.session_id is null and not l.blocked
    and l.run_after > (select coalesce(%(now)s::timestamptz, clock_timestamp()))
  order by l.run_after limit 1
) waiting"""


async def seconds_to_next(connection: Connection, routes: Collection[str], now: datetime | None = None) -> float | None:
    """How long until a run of these routes that waits for its time (jitter, a retry's delay) may be claimed; None if
    none waits."""
    parameters = {"now": now, **_ranges(routes)}
    row = await (await connection.execute(_SECONDS_TO_NEXT, parameters)).fetchone()
    return row[0] if row else None
