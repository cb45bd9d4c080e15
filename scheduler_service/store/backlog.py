"""What waits, counted for operators: without the statements that the hot paths need being slowed by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from scheduler_service.store import arrays
from scheduler_service.store.claim import PRIORITIES
from scheduler_service.store.connection import Connection

CAP = 10_000
"""How many rows of one route or state are counted. The figure then means: so many or more."""

# Only indexes are read: from one route to the next, and of each the first entries. Routes of jobs without a run are
# in it with 0, so that a scaler has a figure; routes that only runs have are those that no job has any more.
_COUNT: LiteralString = """
with recursive clock as materialized (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now),
waiting(route) as (
  (select route from carillon.live_runs where session_id is null and not blocked order by route limit 1)
  union all
  select (select l.route from carillon.live_runs l
          where l.session_id is null and not l.blocked and l.route > w.route order by l.route limit 1)
  from waiting w where w.route is not null
),
routes as (
  select route from waiting where route is not null
  union select route from carillon.jobs where archived_at is null
)
select 'route', r.route, d.runs, extract(epoch from clock.now - d.oldest)::float8
from clock, routes r, lateral (
  select least(count(*), %(cap)s) as runs, min(run_after) as oldest
  from unnest(%(priorities)s::smallint[]) as p(priority), lateral (
    select l.run_after from carillon.live_runs l
    where l.route = r.route and l.priority = p.priority
      and l.session_id is null and not l.blocked and l.run_after <= clock.now
    order by l.run_after limit %(cap)s) due
) d
union all
select 'state', 'PENDING', count(*), null
from (select from carillon.live_runs where session_id is null and not blocked limit %(cap)s) pending
union all
select 'state', 'RUNNING', count(*), null
from (select from carillon.live_runs where session_id is not null limit %(cap)s) running"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Runs of one route that are due and in no worker's hands, at most CAP of them. `oldest`: for how many seconds
    the first of them has been due; 0 if there is none."""

    runs: int
    oldest: float


@dataclass(frozen=True, slots=True)
class BacklogCounts:
    """Due runs by route, and live runs by state (each at most CAP; blocked ones are not among them)."""

    waiting: Mapping[str, Waiting]
    live: Mapping[str, int]


async def count_backlog(connection: Connection, *, cap: int = CAP, now: datetime | None = None) -> BacklogCounts:
    """Counts what waits at this moment. `now` stands in for the database's clock."""
    parameters = {"cap": cap, "now": now, "priorities": arrays.plain(PRIORITIES)}
    rows = await (await connection.execute(_COUNT, parameters)).fetchall()
    return BacklogCounts(
        waiting={name: Waiting(runs, oldest or 0.0) for kind, name, runs, oldest in rows if kind == "route"},
        live={name: runs for kind, name, runs, _ in rows if kind == "state"},
    )
