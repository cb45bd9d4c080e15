"""Rows of `time_zone_rules`, and schedules that are to be armed anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

from scheduler_service.domain.schedule import OWES_NOTHING
from scheduler_service.domain.settling import Standing
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.due import STANDING_COLUMNS, standing_of


@dataclass(frozen=True, slots=True)
class Rules:
    """The tzdata release by which next times were computed last, and for how long that has been so."""

    version: str
    age: timedelta


_RULES: LiteralString = "select version, clock_timestamp() - in_force_from from carillon.time_zone_rules"
_PUT_IN_FORCE: LiteralString = """
insert into carillon.time_zone_rules as r (version, in_force_from) values (%(version)s, clock_timestamp())
on conflict (only_row) do update set version = excluded.version, in_force_from = excluded.in_force_from
where r.version = %(before)s"""


async def rules(connection: Connection) -> Rules | None:
    """None where nobody has said yet."""
    row = await (await connection.execute(_RULES)).fetchone()
    return None if row is None else Rules(*row)


async def put_rules_in_force(connection: Connection, version: str, before: str) -> None:
    """Says by which release next times were computed, unless somebody has said something else than `before`."""
    await connection.execute(_PUT_IN_FORCE, {"version": version, "before": before})


# An interval is the same by every release, and so is UTC.
BY_ZONE: LiteralString = "s.next_run_at is not null and s.cron not like '@every%%' and s.time_zone <> 'UTC'"
SET_ASIDE: LiteralString = f"""
  s.set_aside_reason is not null and s.set_aside_reason not in {OWES_NOTHING}
  and s.enabled and s.paused_at is null and s.deleted_at is null"""
UNARMED: LiteralString = """
  s.next_run_at is null and s.set_aside_reason is null
  and s.enabled and s.paused_at is null and s.deleted_at is null"""

_AFTER: LiteralString = """
select s.schedule_id from carillon.schedules s where s.schedule_id > %(after)s and {kind}
order by s.schedule_id limit %(limit)s"""
_STILL: LiteralString = """
select s.schedule_id from carillon.schedules s where s.schedule_id = any(%(schedule_ids)s::bigint[]) and {kind}
order by s.schedule_id"""
_LOCK: LiteralString = f"""
select {STANDING_COLUMNS}, s.next_run_at
from carillon.schedules s join carillon.jobs j using (job_id)
where s.schedule_id = any(%(schedule_ids)s::bigint[]) and {{kind}}
for update of s skip locked"""
_ARM: LiteralString = """
update carillon.schedules s set next_run_at = a.next_run_at, set_aside_reason = null
from unnest(%(schedules)s::bigint[], %(next_run_at)s::timestamptz[]) as a(schedule_id, next_run_at)
where s.schedule_id = a.schedule_id"""


async def after(connection: Connection, kind: LiteralString, schedule_id: int, limit: int) -> list[int]:
    """The next schedules of a kind, BY_ZONE or SET_ASIDE, after this one."""
    rows = await connection.execute(_AFTER.format(kind=kind), {"after": schedule_id, "limit": limit})
    return [row[0] for row in await rows.fetchall()]


# No index has them, because there are none: so many rows at a time are walked through.
_UNARMED_AMONG: LiteralString = f"""
with among as materialized (
  select s.schedule_id, {UNARMED} as is_unarmed
  from carillon.schedules s where s.schedule_id > %(after)s order by s.schedule_id limit %(rows)s
)
select coalesce(array_agg(schedule_id order by schedule_id) filter (where is_unarmed), '{{}}'),
  max(schedule_id), count(*)
from among"""


async def unarmed_among(connection: Connection, schedule_id: int, rows: int) -> tuple[list[int], int]:
    """Which of the next `rows` schedules after this one nobody would tick although they are enabled, and after which
    one to look next: 0 to begin again."""
    cursor = await connection.execute(_UNARMED_AMONG, {"after": schedule_id, "rows": rows})
    row = await cursor.fetchone()
    assert row is not None
    unarmed, last, count = row
    return unarmed, last if count == rows else 0


async def still(connection: Connection, kind: LiteralString, schedule_ids: Iterable[int]) -> list[int]:
    """Those of these schedules that are of the kind."""
    rows = await connection.execute(_STILL.format(kind=kind), {"schedule_ids": arrays.plain(schedule_ids)})
    return [row[0] for row in await rows.fetchall()]


async def lock_ids_free(connection: Connection, kind: LiteralString, schedule_ids: Sequence[int]) -> list[int]:
    """As `lock_free`, but only their ids, which can be read whatever else stands in their rows, or their jobs'."""
    statement: LiteralString = f"{_STILL.format(kind=kind)} for update of s skip locked"
    rows = await connection.execute(statement, {"schedule_ids": arrays.plain(schedule_ids)})
    return [row[0] for row in await rows.fetchall()]


async def lock_free(
    connection: Connection, kind: LiteralString, schedule_ids: Sequence[int]
) -> list[tuple[Standing, datetime | None]]:
    """Locks those of these schedules that are of the kind and that nobody else has locked. Answers each with when it is
    armed for."""
    rows = await connection.execute(_LOCK.format(kind=kind), {"schedule_ids": arrays.plain(schedule_ids)}, binary=True)
    return [(standing_of(row), row[-1]) for row in await rows.fetchall()]


async def arm(connection: Connection, next_run_at: Mapping[int, datetime | None]) -> None:
    """Arms locked schedules for these times; None: never."""
    parameters = {"schedules": arrays.plain(next_run_at), "next_run_at": arrays.instants(next_run_at.values())}
    await connection.execute(_ARM, parameters)
