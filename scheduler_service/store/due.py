"""Due schedules: found and locked, set aside, and when the next one is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from scheduler_service.domain.schedule import OWES_NOTHING
from scheduler_service.domain.settling import Standing
from scheduler_service.domain.timing import CatchUp
from scheduler_service.domain.timing.catch_up import ON_TIME
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class DueSchedule:
    """A locked schedule, and what its runs take over from its job. `job_version` is the version of the job's row that
    this was read from."""

    standing: Standing
    settled_from: datetime
    tenant: str
    service: str
    job: str
    route: str
    endpoint: str
    max_attempts: int
    attempt_timeout: float
    cancel_grace: float
    job_version: str


STANDING_COLUMNS: LiteralString = """
  s.schedule_id, s.cron, s.time_zone, s.gap, s.repeat, s.phase, s.jitter, s.settled_to, j.owed_from,
  j.paused_at is not null or j.archived_at is not null, j.catch_up::text, j.catch_up_window"""
_COLUMNS: LiteralString = f"""{STANDING_COLUMNS},
  s.tenant_id, j.service, j.job, j.route, j.endpoint, j.max_attempts,
  extract(epoch from j.attempt_timeout)::float8, extract(epoch from j.cancel_grace)::float8, j.xmin::text"""

_NOW: LiteralString = "(select coalesce(%(now)s::timestamptz, clock_timestamp()))"
_DUE: LiteralString = f"""
select {_NOW}, {_COLUMNS}
from carillon.schedules s join carillon.jobs j using (job_id)
where s.next_run_at <= {_NOW}"""
_OLDEST_FIRST: LiteralString = """
order by s.next_run_at limit %(limit)s
for update of s skip locked"""
_IS_RECENT: LiteralString = f"and s.next_run_at > {_NOW} - %(on_time)s"
_TAKE_DUE: LiteralString = f"{_DUE} {_OLDEST_FIRST}"
_TAKE_RECENT: LiteralString = f"{_DUE} {_IS_RECENT} {_OLDEST_FIRST}"
_DUE_IDS: LiteralString = f"select {_NOW}, s.schedule_id from carillon.schedules s where s.next_run_at <= {_NOW}"
_TAKE_DUE_IDS: LiteralString = f"{_DUE_IDS} {_OLDEST_FIRST}"
_TAKE_RECENT_IDS: LiteralString = f"{_DUE_IDS} {_IS_RECENT} {_OLDEST_FIRST}"

_THESE: LiteralString = f"""
select %(now)s::timestamptz, {_COLUMNS}
from carillon.schedules s join carillon.jobs j using (job_id)
where s.schedule_id = any(%(schedule_ids)s::bigint[])"""
_BY_ID: LiteralString = """
order by s.schedule_id
for update of s"""
_LOCK_ARMED: LiteralString = f"{_THESE} and s.next_run_at is not null {_BY_ID}"
_LOCK_SET_ASIDE: LiteralString = f"""{_THESE} and s.set_aside_reason is not null
  and s.set_aside_reason not in {OWES_NOTHING} {_BY_ID}"""


async def take_due(
    connection: Connection, now: datetime | None, limit: int, only_recent: bool = False
) -> tuple[datetime, list[DueSchedule]] | None:
    """Locks up to `limit` due schedules that nobody else has locked, oldest first; `only_recent`: of those less than
    ON_TIME late. None if there is none; else the instant by which they are due, and the schedules."""
    parameters = {"now": now, "limit": limit, "on_time": ON_TIME}
    cursor = await connection.execute(_TAKE_RECENT if only_recent else _TAKE_DUE, parameters, binary=True)
    rows = await cursor.fetchall()
    return (rows[0][0], [_due_schedule(row) for row in rows]) if rows else None


async def take_due_ids(
    connection: Connection, now: datetime | None, limit: int, only_recent: bool = False
) -> tuple[datetime, list[int]] | None:
    """As `take_due`, but only their ids, which can be read whatever else stands in their rows, or their jobs'."""
    parameters = {"now": now, "limit": limit, "on_time": ON_TIME}
    cursor = await connection.execute(_TAKE_RECENT_IDS if only_recent else _TAKE_DUE_IDS, parameters, binary=True)
    rows = await cursor.fetchall()
    return (rows[0][0], [row[1] for row in rows]) if rows else None


async def lock_armed(connection: Connection, schedule_ids: Sequence[int], now: datetime) -> list[DueSchedule]:
    """Locks those of these schedules that are armed, waiting for whoever holds them."""
    return await _lock(connection, _LOCK_ARMED, schedule_ids, now)


async def lock_set_aside(connection: Connection, schedule_ids: Sequence[int], now: datetime) -> list[DueSchedule]:
    """Locks those of these schedules that are set aside, although they have an expression; waits for whoever holds
    them."""
    return await _lock(connection, _LOCK_SET_ASIDE, schedule_ids, now)


async def _lock(
    connection: Connection, statement: LiteralString, schedule_ids: Sequence[int], now: datetime
) -> list[DueSchedule]:
    parameters = {"schedule_ids": arrays.plain(schedule_ids), "now": now}
    cursor = await connection.execute(statement, parameters, binary=True)
    return [_due_schedule(row) for row in await cursor.fetchall()]


_CATCH_UPS = {policy.name: policy for policy in CatchUp}


def standing_of(row: tuple[Any, ...]) -> Standing:
    """Of a row that begins with STANDING_COLUMNS."""
    return Standing(*(*row[:10], _CATCH_UPS[row[10]], row[11]))


def _due_schedule(row: tuple[Any, ...]) -> DueSchedule:
    return DueSchedule(
        standing=standing_of(row[1:13]),
        settled_from=row[8],
        tenant=row[13],
        service=row[14],
        job=row[15],
        route=row[16],
        endpoint=row[17],
        max_attempts=row[18],
        attempt_timeout=row[19],
        cancel_grace=row[20],
        job_version=row[21],
    )


_SET_ASIDE: LiteralString = """
update carillon.schedules s set next_run_at = null, set_aside_reason = a.reason
from unnest(%(schedules)s::bigint[], %(reasons)s::text[]) as a(schedule_id, reason)
where s.schedule_id = a.schedule_id"""


async def set_aside(connection: Connection, reasons: dict[int, str]) -> None:
    """Disarms schedules that cannot be settled, until they are changed; each with the reason."""
    parameters = {"schedules": arrays.plain(reasons), "reasons": arrays.texts(reasons.values())}
    await connection.execute(_SET_ASIDE, parameters)


# Not of their difference, which PostgreSQL 16 has none of for an instant at infinity.
_SECONDS_TO_NEXT: LiteralString = """
select (extract(epoch from next_run_at) - extract(epoch from clock_timestamp()))::float8
from carillon.schedules where next_run_at is not null order by next_run_at limit 1"""


async def seconds_to_next(connection: Connection) -> float | None:
    """How long until the earliest schedule is due; negative if one is due; None if none is armed."""
    row = await (await connection.execute(_SECONDS_TO_NEXT)).fetchone()
    return row[0] if row else None
