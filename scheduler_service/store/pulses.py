"""Rows of `pulses`: when each replica's loops last did their work, by the database's clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import LiteralString

from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection

KEPT = timedelta(days=1)

# One row after the other in the order of their key, so that two that clear up never wait for each other.
_BEAT: LiteralString = """
with clock as materialized (select clock_timestamp() as now),
old as (
  delete from carillon.pulses p using (
    select o.replica, o.loop from carillon.pulses o, clock where o.beat_at < clock.now - %(kept)s
      and o.replica <> %(replica)s
    order by o.replica, o.loop for update of o skip locked
  ) o where p.replica = o.replica and p.loop = o.loop
)
insert into carillon.pulses as p (replica, loop, beat_at)
select %(replica)s, b.loop, clock.now - b.idle * interval '1 second'
from clock, unnest(%(loops)s::text[], %(idle)s::float8[]) as b(loop, idle) order by b.loop
on conflict (replica, loop) do update set beat_at = excluded.beat_at"""

# What was written by a clock that was ahead says nothing.
_YOUNGEST: LiteralString = """
select p.loop, extract(epoch from min(greatest(t.now - p.beat_at, interval '0')))::float8,
  extract(epoch from min(greatest(t.now - p.beat_at, interval '0')) filter (where p.replica <> %(replica)s))::float8
from carillon.pulses p, (select clock_timestamp() as now) t
where p.beat_at < t.now + interval '1 minute'
group by p.loop"""


async def beat(connection: Connection, replica: str, idle: Mapping[str, float]) -> None:
    """Says for each loop of a replica how many seconds ago it did its work last. Forgets replicas that have said
    nothing for a day."""
    values = {
        "replica": replica,
        "loops": arrays.texts(idle),
        "idle": arrays.plain(idle.values()),
        "kept": KEPT,
    }
    await connection.execute(_BEAT, values)


async def youngest(connection: Connection, replica: str) -> dict[str, tuple[float, float | None]]:
    """For each loop, how many seconds ago it did its work last: on any replica, and on any other than this one (None if
    no other ever did)."""
    rows = await connection.execute(_YOUNGEST, {"replica": replica})
    return {loop: (anywhere, elsewhere) for loop, anywhere, elsewhere in await rows.fetchall()}
