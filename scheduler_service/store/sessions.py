"""Rows of `sessions`: a worker session's lease.

Claims and completion lock the row FOR KEY SHARE; extending the lease does not disturb them, deleting it waits for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.store.arrays import plain
from scheduler_service.store.connection import Connection

_OPEN = """
insert into carillon.sessions
  (session_id, worker, client, principal, routes, replica, created_at, heartbeat_at, expires_at)
select %(session_id)s, %(worker)s, %(client)s, %(principal)s, %(routes)s, %(replica)s, t.now, t.now,
       t.now + %(lease)s * interval '1 second'
from (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now) t
on conflict (session_id) do update set
  client = excluded.client, routes = excluded.routes, replica = excluded.replica,
  stream = sessions.stream + 1, heartbeat_at = excluded.heartbeat_at, expires_at = excluded.expires_at
where sessions.principal = excluded.principal and sessions.worker = excluded.worker
returning stream
"""

_RESUME = """
update carillon.sessions s set
  client = %(client)s, routes = %(routes)s, replica = %(replica)s, stream = s.stream + 1,
  heartbeat_at = t.now, expires_at = t.now + %(lease)s * interval '1 second'
from (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now) t
where s.session_id = %(session_id)s and s.principal = %(principal)s and s.worker = %(worker)s
returning s.stream
"""

# A session that somebody has locked (an alone run is claimed, a hand is in the database) keeps no other waiting.
_EXTEND = """
with b as materialized (
  select l.session_id, g.stream
  from unnest(%(session_ids)s::uuid[], %(streams)s::bigint[]) g(session_id, stream)
  join carillon.sessions l on l.session_id = g.session_id
  order by l.session_id for no key update of l skip locked
)
update carillon.sessions s set
  heartbeat_at = case when s.stream = b.stream then t.now else s.heartbeat_at end,
  expires_at = case when s.stream = b.stream then t.now + %(lease)s * interval '1 second' else s.expires_at end
from b, (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now) t
where s.session_id = b.session_id
returning s.session_id, s.stream
"""

_LOCK = "select worker from carillon.sessions where session_id = %s and stream = %s for update"
_HOLDS_MORE = "select from carillon.live_runs where session_id = %s offset %s limit 1"
_CLOSE = "delete from carillon.sessions where session_id = %s and stream = %s returning worker"

# Those that hold fewest runs first, as many as fit together; one that holds more than that by itself ends in any case.
# (How many that are is counted before the locks count: it only bounds what the next statement may find.)
_END_EXPIRED = """
with locked as materialized (
  select session_id from carillon.sessions
  where expires_at <= (select coalesce(%(now)s::timestamptz, clock_timestamp()))
  order by session_id limit %(sessions)s for update skip locked
),
sized as (
  select l.session_id, x.held from locked l cross join lateral (
    select count(*) as held from (
      select from carillon.live_runs r where r.session_id = l.session_id limit %(runs)s + 1
    ) r
  ) x
),
together as (
  select session_id, held, sum(held) over (order by held, session_id) as runs from sized
)
delete from carillon.sessions s using together t
where s.session_id = t.session_id and (t.runs <= %(runs)s or t.held > %(runs)s)
returning s.session_id, s.worker
"""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as its worker's Hello described it. `principal`: whose it is; nobody else, and no other worker, goes on
    with it."""

    session_id: UUID
    worker: str
    client: str
    principal: str
    routes: frozenset[str]
    replica: str


async def open_session(
    connection: Connection, session: SessionRow, *, lease: float, now: datetime | None = None
) -> int | None:
    """Makes the session, or begins its next stream. Answers the stream's number; None if it is another's."""
    return await _stream_number(connection, _OPEN, session, lease, now)


async def resume_session(
    connection: Connection, session: SessionRow, *, lease: float, now: datetime | None = None
) -> int | None:
    """Begins the next stream of a session that is there. None if it is gone (or another's)."""
    return await _stream_number(connection, _RESUME, session, lease, now)


async def _stream_number(
    connection: Connection, statement: str, session: SessionRow, lease: float, now: datetime | None
) -> int | None:
    values = {
        "session_id": session.session_id,
        "worker": session.worker,
        "client": session.client,
        "principal": session.principal,
        "routes": sorted(session.routes),
        "replica": session.replica,
        "lease": lease,
        "now": now,
    }
    row = await (await connection.execute(statement, values)).fetchone()
    return row[0] if row else None


async def extend_leases(
    connection: Connection, streams: dict[UUID, int], *, lease: float, now: datetime | None = None
) -> dict[UUID, int]:
    """Extends the lease of each session whose newest stream is the given one. Answers the newest stream of each that
    is there and not locked by somebody: another number means that the lease was not extended."""
    session_ids = sorted(streams)  # in one order everywhere, or two replicas could wait for each other
    cursor = await connection.execute(
        _EXTEND,
        {
            "session_ids": plain(session_ids),
            "streams": plain(streams[session_id] for session_id in session_ids),
            "lease": lease,
            "now": now,
        },
    )
    return dict(await cursor.fetchall())


async def holds_at_most(connection: Connection, session_id: UUID, runs: int) -> bool:
    """Whether this session holds at most so many runs."""
    return (await (await connection.execute(_HOLDS_MORE, (session_id, runs))).fetchone()) is None


async def lock_session(connection: Connection, session_id: UUID, stream: int) -> str | None:
    """Locks a session whose newest stream is this one. Answers its worker's name; None if it is not there."""
    row = await (await connection.execute(_LOCK, (session_id, stream))).fetchone()
    return row[0] if row else None


async def close_session(connection: Connection, session_id: UUID, stream: int) -> str | None:
    """Ends a session whose newest stream is this one. Answers its worker's name; None if it is not there."""
    row = await (await connection.execute(_CLOSE, (session_id, stream))).fetchone()
    return row[0] if row else None


async def end_expired_sessions(
    connection: Connection, *, sessions: int = 100, runs: int = 500, now: datetime | None = None
) -> dict[UUID, str]:
    """Ends up to so many sessions whose lease is over, except those that somebody hands runs to or takes results from
    just now: such as hold up to `runs` runs all together, and those that hold more than that each. Answers their
    workers' names. What they held is for the transaction's next statement to decide: this one's snapshot is older than
    its locks."""
    values = {"now": now, "sessions": sessions, "runs": runs}
    return dict(await (await connection.execute(_END_EXPIRED, values)).fetchall())


async def driver_connection(pooled: AsyncConnection) -> Connection:
    """The driver's own connection underneath a pooled one, in the same transaction."""
    connection = (await pooled.get_raw_connection()).driver_connection
    assert isinstance(connection, psycopg.AsyncConnection)
    return connection


async def database_now(connection: Connection) -> datetime:
    """What the database's clock says."""
    row = await (await connection.execute("select clock_timestamp()")).fetchone()
    assert row is not None
    instant: datetime = row[0]
    return instant


async def workers_of(connection: Connection, session_ids: Iterable[UUID]) -> dict[UUID, str]:
    """The workers' names of sessions that are there."""
    cursor = await connection.execute(
        "select session_id, worker from carillon.sessions where session_id = any(%s)", (list(session_ids),)
    )
    return dict(await cursor.fetchall())
