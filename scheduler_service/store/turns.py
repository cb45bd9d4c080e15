"""Turns: of a schedule's exclusive live runs one has the turn (it is not blocked), and the others wait for it to end.

The order of turns: by trigger (SCHEDULE, CATCH_UP, MANUAL, BACKFILL, REPAIR), then by nominal instant, then by id. A
run for which others wait is `followed`: that tells whoever ends it to give its turn to the next, in the same
transaction. docs/adr/0003-the-run-with-the-turn-knows-that-others-wait.md says why nobody is forgotten.

The order of locks: the schedule (by whoever adds a run to it), then its run with the turn, then those that wait; of
several schedules, first all the runs with a turn, by id. Who locks many runs finds them first: one that gets its turn
in between is locked out of order. Should two transactions meet so, the database ends one of them; completion, the
reaper and calls (rpc/calls.py) then do theirs again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

import psycopg

from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection

# Waits for whoever is ending the run with the turn: that one is then gone, and not returned. Locked even if it is
# marked, because who ends it may have looked for the next one before our blocked ones were there to be seen. Lateral,
# here and below, so that each row is found by an index, and locked in the order of ids; and `is not distinct from`
# keeps the planner off the partial indexes, which were small when it last looked, and which it would read for each id.
_MARK: LiteralString = """
with found as materialized (
  select h.run_id from unnest(%(schedules)s::bigint[]) as s(schedule_id)
  cross join lateral (
    select l.run_id from carillon.live_runs l
    where l.schedule_id = s.schedule_id and l.exclusive and not l.blocked
    offset 0
  ) h
  where exists (select from carillon.live_runs b where b.schedule_id = s.schedule_id and b.blocked offset 0)
  order by h.run_id
),
held as materialized (
  select h.* from found f
  cross join lateral (
    select l.run_id, l.schedule_id, l.followed from carillon.live_runs l
    where l.run_id = f.run_id and l.blocked is not distinct from false
    for no key update
  ) h
),
marked as (
  update carillon.live_runs l set followed = true from held h where l.run_id = h.run_id and not h.followed
)
select schedule_id from held"""

_UNBLOCK: LiteralString = """
with first as materialized (
  select s.schedule_id, b.run_id, h.run_id is not null as is_held
  from unnest(%(schedules)s::bigint[]) as s(schedule_id)
  cross join lateral (
    select l.run_id from carillon.live_runs l where l.schedule_id = s.schedule_id and l.blocked
    order by l.trigger, l.scheduled_for, l.run_id limit 1
  ) b
  left join lateral (
    select l.run_id from carillon.live_runs l
    where l.schedule_id = s.schedule_id and l.exclusive and not l.blocked
    offset 0
  ) h on true
  order by b.run_id
),
chosen as materialized (
  select f.schedule_id, c.run_id from first f
  left join lateral (
    select l.run_id from carillon.live_runs l
    where not f.is_held and l.run_id = f.run_id and l.blocked is not distinct from true
    for update
  ) c on true
),
unblocked as (
  update carillon.live_runs l set blocked = false,
    followed = exists (select from carillon.live_runs b
                       where b.schedule_id = l.schedule_id and b.blocked and b.run_id <> l.run_id)
  from chosen c where l.run_id = c.run_id
)
select schedule_id, run_id is not null from chosen"""


async def arrange(connection: Connection, schedule_ids: Iterable[int]) -> int:
    """Sees to it that each of these schedules that has blocked runs has exactly one with the turn, which is marked as
    followed while others wait. Answers how many runs got their turn: wake Topic.PENDING for them after the commit.

    Call it in the transaction that made blocked runs of these schedules, whose rows it holds locked, or that ended
    their runs with the turn.
    """
    wanted = set(schedule_ids)
    while wanted:
        async with connection.transaction() as savepoint:
            remaining = wanted - await _mark(connection, wanted)
            # With a snapshot of its own: it sees what was committed by those whom the first statement waited for.
            got_it = await _unblock(connection, remaining) if remaining else {}
            if all(got_it.values()):
                return len(got_it)
            # The next one was cancelled just then, or another got the turn from whoever was waited for. All again,
            # with the locks let go: that one would be locked out of order.
            raise psycopg.Rollback(savepoint)
    return 0


async def _mark(connection: Connection, schedule_ids: Iterable[int]) -> set[int]:
    """Those among which others wait, and that have a run with the turn, which is locked and marked now."""
    cursor = await connection.execute(_MARK, {"schedules": arrays.plain(schedule_ids)}, binary=True)
    return {row[0] for row in await cursor.fetchall()}


async def _unblock(connection: Connection, schedule_ids: Iterable[int]) -> dict[int, bool]:
    """Those that have blocked runs, and whether one of these got the turn."""
    cursor = await connection.execute(_UNBLOCK, {"schedules": arrays.plain(schedule_ids)}, binary=True)
    return dict(await cursor.fetchall())


# From one schedule to the next by the index on blocked runs, whatever number of them each has.
_LOOK: LiteralString = """
with recursive waiting(schedule_id, place) as (
  (select b.schedule_id, 1 from carillon.live_runs b where b.blocked and b.schedule_id > %(after)s
   order by b.schedule_id limit 1)
  union all
  select (select b.schedule_id from carillon.live_runs b where b.blocked and b.schedule_id > w.schedule_id
          order by b.schedule_id limit 1), w.place + 1
  from waiting w where w.schedule_id is not null and w.place < %(limit)s
)
select w.schedule_id, exists (select from carillon.live_runs h
                              where h.schedule_id = w.schedule_id and h.exclusive and not h.blocked)
from waiting w where w.schedule_id is not null order by w.schedule_id"""

_LOCK: LiteralString = """
select schedule_id from carillon.schedules where schedule_id = any(%(schedules)s::bigint[])
order by schedule_id for update skip locked"""


async def find_stranded(connection: Connection, after: int, limit: int) -> tuple[list[int], int]:
    """Looks at up to `limit` schedules with blocked runs, those after a schedule_id. Answers which of them have no run
    with the turn, and after which one to look next: 0 to begin again."""
    cursor = await connection.execute(_LOOK, {"after": after, "limit": limit}, binary=True)
    rows = await cursor.fetchall()
    following = rows[-1][0] if len(rows) == limit else 0
    return [schedule_id for schedule_id, is_held in rows if not is_held], following


async def release_stranded(connection: Connection, schedule_ids: Iterable[int]) -> int:
    """Gives the turn to the first blocked run of each of these schedules that has none with the turn; those that
    somebody else has locked are left for later. Answers how many got it. In a transaction of its own."""
    async with connection.transaction():
        cursor = await connection.execute(_LOCK, {"schedules": arrays.plain(schedule_ids)}, binary=True)
        return await arrange(connection, [row[0] for row in await cursor.fetchall()])
