"""Claims: pending runs handed to a session. The claim's id is the fencing token."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from scheduler_service.domain.attempt import ClaimedRun
from scheduler_service.domain.run import TriggerSource
from scheduler_service.store import arrays

Connection = psycopg.AsyncConnection[TupleRow]

PRIORITIES = (0, 1)
"""0: due now. 1: catch-up, backfill and repair, which what is due now does not wait for."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim took; `claim_id` is 0 if nothing. `emptied`: nothing was left for these routes but what others
    have locked."""

    claim_id: int
    runs: Sequence[ClaimedRun]
    emptied: bool


# A run that is to be alone makes a claim of its own where it stands first, and is passed over until it does. The
# sub-select on the sequence takes a number only once a run is there. The rows are locked by then, and so are found by
# their place: by run_id, a plan that was made while the table was small walks all of it for every claim.
_CLAIM: LiteralString = """
with held as materialized (
  select session_id from carillon.sessions where session_id = %(session)s for key share
),
picked as materialized (
  select due.place, due.alone
  from held, unnest(%(routes)s::text[], %(priorities)s::smallint[]) as served(route, priority)
  cross join lateral (
    select l.ctid as place, l.alone from carillon.live_runs l
    where l.route = served.route and l.priority = served.priority and l.session_id is null and not l.blocked
      and l.run_after <= (select coalesce(%(now)s::timestamptz, clock_timestamp()))
    order by l.run_after, l.run_id limit %(limit)s
    for update skip locked
  ) due
  limit %(limit)s
),
chosen as materialized (
  select place from picked where not alone and not (select alone from picked limit 1)
  union all
  (select place from picked where (select alone from picked limit 1) limit 1)
),
claimed as (
  update carillon.live_runs l set
    session_id = %(session)s,
    claim_id = (select nextval('carillon.claim_ids')),
    claimed_at = (select coalesce(%(now)s::timestamptz, clock_timestamp())),
    deadline = (select coalesce(%(now)s::timestamptz, clock_timestamp())) + l.attempt_timeout
  from chosen c where l.ctid = c.place
  returning l.run_id, l.claim_id, l.attempt, l.max_attempts, l.job_id, l.tenant_id, l.payload,
    l.attempt_timeout, l.cancel_grace, l.scheduled_for, l.trigger, l.labels
)
select c.claim_id, c.run_id, c.attempt, c.max_attempts, j.service, j.job, c.tenant_id, j.endpoint, c.payload::text,
  extract(epoch from c.attempt_timeout)::float8, extract(epoch from c.cancel_grace)::float8,
  c.scheduled_for, c.trigger::text, c.labels::text, (select count(*) from picked)
from held left join (claimed c join carillon.jobs j using (job_id)) on true"""


async def claim(
    connection: Connection, session_id: UUID, routes: Collection[str], limit: int, now: datetime | None = None
) -> Claim | None:
    """Hands up to `limit` due runs of these routes to a session: those of the lower priority first, of these the routes
    in their order, and within a route the longest due first. None if the session has gone."""
    parameters = {"session": session_id, "limit": limit, "now": now, **_ranges(routes)}
    rows = await (await connection.execute(_CLAIM, parameters, binary=True)).fetchall()
    if not rows:
        return None
    if rows[0][0] is None:
        return Claim(0, (), emptied=True)
    picked: int = rows[0][14]
    return Claim(rows[0][0], [_claimed_run(row) for row in rows], emptied=len(rows) == picked < limit)


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
