"""The floor: PostgreSQL doing the same durable writes on the same tables, in batches, with nothing around it.

Two connections, as the engine has: one writes runs (or claims them), the other ends them as they come.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.place import FLOOR_ROUTE, Place
from scheduler_service.domain.run import scheduled_run_id
from scheduler_service.store.arrays import plain, uuids
from scheduler_service.store.database import Database

BATCH = 500
Connection = psycopg.AsyncConnection[Any]

_INSERT = """
with moved as (
  update carillon.schedules s set settled_to = s.next_run_at, next_run_at = s.next_run_at + interval '1 h'
  from unnest(%(schedules)s::bigint[]) as m(schedule_id) where s.schedule_id = m.schedule_id
)
insert into carillon.live_runs (run_id, schedule_id, revision, job_id, tenant_id, route, trigger, exclusive,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, labels, payload, max_attempts,
  attempt_timeout, run_timeout, cancel_grace, session_id, claim_id, claimed_at, deadline)
select r.run_id, r.schedule_id, 1, %(job_id)s, '-', %(route)s, 'SCHEDULE', false, now(), now() at time zone 'UTC', 0,
  'UTC', '2025b', now(), now(), '{"job_type": "bench"}', '{"size": 10, "brand": "x"}', 3, '1 h', '1 d', '30 s',
  %(session)s, 1, now(), now()
from unnest(%(run_ids)s::uuid[], %(schedules)s::bigint[]) as r(run_id, schedule_id)"""

_CLAIM = """
with picked as (
  select run_id from carillon.live_runs where route = %(route)s and session_id is null and not blocked
    and run_after <= now()
  order by run_after, run_id limit %(limit)s for update skip locked
)
update carillon.live_runs l set session_id = %(session)s, claim_id = 1, claimed_at = now(), deadline = now()
from picked p where l.run_id = p.run_id
returning l.run_id"""

_END = """
with ended as (
  delete from carillon.live_runs l using unnest(%(run_ids)s::uuid[]) as r(run_id) where l.run_id = r.run_id
  returning l.*
)
insert into carillon.runs (run_id, schedule_id, revision, job_id, tenant_id, state, trigger,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, started_at, finished_at, duration,
  triggered_by, origin, labels, payload, attempt, max_attempts, worker, metrics, claim_id, result_digest)
select run_id, schedule_id, revision, job_id, tenant_id, 'COMPLETED', trigger,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, claimed_at, clock_timestamp(),
  interval '10 ms', triggered_by, origin, labels, payload, attempt, max_attempts, 'bench', '{"sent": 1}', claim_id,
  decode('00112233445566778899aabbccddeeff', 'hex')
from ended"""


class Floor:
    """Two connections of the engine's role, as the engine opens them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._session = place.session()

    async def start(self) -> None:
        database = Database(self._place.api_url, self._place.engine_url)
        self._writes, self._ends = await database.hot_connection(), await database.hot_connection()

    async def stop(self) -> None:
        await self._writes.close()
        await self._ends.close()

    async def flow(self, schedules: list[int]) -> None:
        """Makes a claimed run of each schedule, and ends it."""
        at = self._place_now()
        made = [(scheduled_run_id(each, at), each) for each in schedules]
        batches = [made[at : at + BATCH] for at in range(0, len(made), BATCH)]
        await self._both(self._insert(batch) for batch in batches)

    async def drain(self, count: int) -> None:
        """Claims what is pending, and ends it."""
        await self._both(self._claim() for _ in range(-(-count // BATCH)))

    def _place_now(self) -> Any:
        row = self._place.admin.execute("select now()").fetchone()
        assert row is not None
        return row[0]

    async def _both(self, writes: Any) -> None:
        written: asyncio.Queue[list[UUID] | None] = asyncio.Queue()
        ending = asyncio.create_task(self._end_all(written))
        for write in writes:
            written.put_nowait(await write)
        written.put_nowait(None)
        await ending

    async def _insert(self, batch: list[tuple[UUID, int]]) -> list[UUID]:
        run_ids = [run_id for run_id, _ in batch]
        values = {
            "run_ids": uuids(run_ids),
            "schedules": plain(schedule for _, schedule in batch),
            "job_id": self._place.job_id,
            "route": FLOOR_ROUTE,
            "session": self._session,
        }
        await self._writes.execute(_INSERT, values)
        return run_ids

    async def _claim(self) -> list[UUID]:
        values = {"route": FLOOR_ROUTE, "session": self._session, "limit": BATCH}
        cursor = await self._writes.execute(_CLAIM, values, binary=True)
        return [row[0] for row in await cursor.fetchall()]

    async def _end_all(self, written: asyncio.Queue[list[UUID] | None]) -> None:
        while (run_ids := await written.get()) is not None:
            for at in range(0, len(run_ids), BATCH):
                batch = sorted(islice(run_ids, at, at + BATCH))
                await self._ends.execute(_END, {"run_ids": uuids(batch)})
