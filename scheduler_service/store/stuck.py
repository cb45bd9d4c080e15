"""Live runs that no session's end leads to: found first, without a lock, then locked by their ids.

Found and locked apart, so that one row that cannot even be read keeps no other from being mended: the caller halves the
ids. Nobody is waited for: a row that somebody has locked is found again at the next look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from scheduler_service.domain.returns import HeldRun
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.reap import HELD, locked
from scheduler_service.store.sessions import workers_of
from scheduler_service.store.turns import arrange

# Shorter than deadlock_timeout: whoever completes runs meanwhile is never the one that has to give way.
_PATIENCE: LiteralString = "select set_config('lock_timeout', '500ms', true)"

_WITHOUT: LiteralString = "r.run_id <> all(%(without)s::uuid[])"
_IN_ORDER: LiteralString = "order by r.run_id limit %(limit)s"


@dataclass(frozen=True, slots=True)
class Stuck:
    """A way for runs to be stuck: `find` answers ids, `holds` is the condition under the lock. Both take `now`."""

    find: LiteralString
    holds: LiteralString


def _where(holds: LiteralString) -> Stuck:
    return Stuck(f"select r.run_id from carillon.live_runs r where {holds} and {_WITHOUT} {_IN_ORDER}", holds)


OVERDUE = _where("r.session_id is not null and least(r.deadline, r.run_deadline) <= %(now)s")
"""In a worker's hands, with the attempt's or the run's deadline before `now`: the one look that reads them all."""
RUN_OVERDUE = _where("r.session_id is null and r.run_deadline <= %(now)s")
"""That nobody holds, and whose time is over."""
# A grace that somebody wrote by hand may be too long for a timestamp.
GRACE_OVER = _where("""r.cancel_requested_at is not null
  and (r.session_id is null or r.cancel_requested_at + least(r.cancel_grace, interval '1 year') <= %(now)s)""")
"""That were asked to stop, and whose time for that is over, or that nobody holds any more."""
# From one session to the next by the index on what they hold, however many runs each has; the same share of each, so
# that those of a few runs do not wait for one of very many.
SESSION_GONE = Stuck(
    f"""
with recursive holders(session_id) as (
  (select r.session_id from carillon.live_runs r where r.session_id is not null order by r.session_id limit 1)
  union all
  select (select r.session_id from carillon.live_runs r where r.session_id > h.session_id
          order by r.session_id limit 1)
  from holders h where h.session_id is not null
),
gone as materialized (
  select h.session_id from holders h
  where h.session_id is not null and %(now)s::timestamptz is not null
    and not exists (select from carillon.sessions s where s.session_id = h.session_id)
)
select f.run_id from gone g
cross join lateral (
  select r.run_id from carillon.live_runs r where r.session_id = g.session_id and {_WITHOUT}
  limit (select greatest(1, %(limit)s / greatest(1, count(*))) from gone)
) f
limit %(limit)s""",
    "r.session_id is not null and %(now)s::timestamptz is not null",
)
"""Whose session is not there. The condition under the lock is `without_session`: a session is no part of the row."""


async def be_patient_briefly(connection: Connection) -> None:
    """For this transaction: what waits for a lock for over half a second fails with LockNotAvailable."""
    await connection.execute(_PATIENCE)


async def find(
    connection: Connection, kind: Stuck, now: datetime, *, without: Iterable[UUID], limit: int
) -> list[UUID]:
    """Up to `limit` runs that are stuck so, but for some."""
    values = {"now": now, "without": arrays.uuids(without), "limit": limit}
    return [row[0] for row in await (await connection.execute(kind.find, values)).fetchall()]


async def lock(
    connection: Connection,
    kind: Stuck,
    run_ids: Sequence[UUID],
    now: datetime,
    workers: Mapping[UUID, str] | None = None,
) -> list[HeldRun]:
    """Locks those of these runs that are stuck so still, and that nobody else has locked. `workers`: whose sessions
    those were that are gone."""
    statement: LiteralString = f"""{HELD}
where r.run_id = any(%(run_ids)s::uuid[]) and {kind.holds} order by r.run_id for update of r skip locked"""
    return await locked(connection, statement, workers, run_ids=arrays.uuids(run_ids), now=now)


async def without_session(connection: Connection, runs: Sequence[HeldRun]) -> list[HeldRun]:
    """Those of these locked runs whose session is not there."""
    there = await workers_of(connection, {run.session_id for run in runs if run.session_id is not None})
    return [run for run in runs if run.session_id not in there]


_STILL_LIVE: LiteralString = """
select l.run_id from unnest(%(run_ids)s::uuid[]) as w(run_id) join carillon.live_runs l on l.run_id = w.run_id"""


async def still_live(connection: Connection, run_ids: Iterable[UUID]) -> set[UUID]:
    """Those of these runs that have not ended."""
    rows = await connection.execute(_STILL_LIVE, {"run_ids": arrays.uuids(run_ids)})
    return {row[0] for row in await rows.fetchall()}


async def still_held(connection: Connection, run_ids: Iterable[UUID]) -> set[UUID]:
    """Those of these runs that a session holds."""
    statement = f"{_STILL_LIVE} where l.session_id is not null"
    rows = await connection.execute(statement, {"run_ids": arrays.uuids(run_ids)})
    return {row[0] for row in await rows.fetchall()}


# A record never goes, so that nothing has to be locked before it is decided.
_RECORDED: LiteralString = """
select l.run_id, exists (select from carillon.runs e where e.run_id = l.run_id)
from carillon.live_runs l where l.run_id > %(after)s order by l.run_id limit %(limit)s"""
_REMOVE: LiteralString = """
delete from carillon.live_runs l
using (
  select r.run_id from carillon.live_runs r where r.run_id = any(%(run_ids)s::uuid[])
  order by r.run_id for update skip locked
) locked
where l.run_id = locked.run_id
returning l.run_id, l.tenant_id, l.session_id, l.claim_id, l.attempt, case when l.followed then l.schedule_id end"""


@dataclass(frozen=True, slots=True)
class Removed:
    """A live row that is removed, since its run had ended."""

    run_id: UUID
    tenant: str
    session_id: UUID | None
    claim_id: int | None
    attempt: int


async def find_recorded(connection: Connection, after: UUID, limit: int) -> tuple[list[UUID], UUID]:
    """Looks at up to `limit` live runs, those after an id. Answers which of them have a record, and after which id to
    look next: 0 to begin again."""
    rows = await (await connection.execute(_RECORDED, {"after": after, "limit": limit})).fetchall()
    following = rows[-1][0] if len(rows) == limit else UUID(int=0)
    return [run_id for run_id, is_recorded in rows if is_recorded], following


async def remove_recorded(connection: Connection, run_ids: Sequence[UUID]) -> list[Removed]:
    """Removes live runs that have a record, and gives their turns to those that wait for them."""
    cursor = await connection.execute(_REMOVE, {"run_ids": arrays.uuids(run_ids)})
    rows = await cursor.fetchall()
    await arrange(connection, {row[5] for row in rows if row[5] is not None})
    return [Removed(*row[:5]) for row in rows]
