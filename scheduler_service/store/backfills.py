"""Rows of `backfills`, and how far the runs of each are.

A backfill's id and those of its runs are of one millisecond. So its runs stand together, in one partition, whatever
else there is; their origin tells them from others of that millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from scheduler_service.domain.backfill import Backfill, BackfillCounts, origin_of
from scheduler_service.domain.names import BackfillName, JobName
from scheduler_service.store.database import Transaction

OF_BACKFILL = "r.run_id >= :first_id and r.run_id < :end_id and r.trigger = 'BACKFILL' and r.origin = :origin"
"""Which runs (`r`) are a backfill's, given `range_of` it."""

_MAX_COUNTED = 100_000
_ID_OF_TIME = 80  # the bits of an id that are not its time

_COLUMNS = """
b.backfill_id, j.service, j.job, b.since, b.until, b.tenant_id, b.schedule, b.occurrences, b.runs, b.created_at,
  b.created_by, b.cancelled_at, b.cancelled_by"""
_NAMED = "where j.service = :service and j.job = :job"
_ONE = f"select {_COLUMNS} from carillon.backfills b join carillon.jobs j using (job_id) {_NAMED}"
_GET = text(f"{_ONE} and b.backfill_id = :backfill_id")
_LOCK = text(f"{_ONE} and b.backfill_id = :backfill_id for no key update of b")
_LIST = text(
    f"{_ONE} and (cast(:before as uuid) is null or b.backfill_id < :before) order by b.backfill_id desc limit :limit"
)
_INSERT = text("""
insert into carillon.backfills (backfill_id, job_id, since, until, tenant_id, schedule, occurrences, runs, created_at,
  created_by)
select :backfill_id, job_id, :since, :until, :tenant, :schedule, :occurrences, :runs, :now, :principal
from carillon.jobs where service = :service and job = :job""")
_MARK_CANCELLED = text("""
update carillon.backfills set cancelled_at = :now, cancelled_by = :principal
where backfill_id = :backfill_id and cancelled_at is null""")
_COUNT = text("""
select live.pending, live.running, ended.completed, ended.failed, ended.cancelled
from unnest(cast(:first_ids as uuid[]), cast(:end_ids as uuid[]), cast(:origins as text[]))
  with ordinality as b (first_id, end_id, origin, place)
cross join lateral (
  select count(*) - count(r.claim_id) as pending, count(r.claim_id) as running from carillon.live_runs r
  where r.run_id >= b.first_id and r.run_id < b.end_id and r.trigger = 'BACKFILL' and r.origin = b.origin) live
cross join lateral (
  select count(*) filter (where r.state = 'COMPLETED') as completed,
    count(*) filter (where r.state = 'FAILED') as failed, count(*) filter (where r.state = 'CANCELLED') as cancelled
  from carillon.runs r
  where r.run_id >= b.first_id and r.run_id < b.end_id and r.trigger = 'BACKFILL' and r.origin = b.origin) ended
order by b.place""")


@dataclass(frozen=True, slots=True)
class BackfillPage:
    """Some backfills, newest first, and whether older ones follow."""

    backfills: Sequence[Backfill]
    more: bool


def range_of(backfill_id: UUID) -> dict[str, Any]:
    """The parameters of `OF_BACKFILL`."""
    time = backfill_id.int >> _ID_OF_TIME
    return {
        "first_id": UUID(int=time << _ID_OF_TIME),
        "end_id": UUID(int=(time + 1) << _ID_OF_TIME),
        "origin": origin_of(backfill_id),
    }


async def insert_backfill(tx: Transaction, name: BackfillName, backfill: Backfill) -> None:
    await tx.connection.execute(
        _INSERT,
        _named(name)
        | {
            "since": backfill.since,
            "until": backfill.until,
            "tenant": backfill.tenant,
            "schedule": backfill.schedule,
            "occurrences": backfill.occurrences,
            "runs": backfill.runs,
            "now": tx.now,
            "principal": str(tx.principal),
        },
    )


async def get_backfill(tx: Transaction, name: BackfillName) -> Backfill | None:
    return await _one(tx, _GET, name)


async def lock_backfill(tx: Transaction, name: BackfillName) -> Backfill | None:
    """The backfill, locked against others who cancel it."""
    return await _one(tx, _LOCK, name)


async def list_backfills(tx: Transaction, job: JobName, *, before: UUID | None, limit: int) -> BackfillPage:
    """The newest backfills of a job, older than `before`. A page ends early rather than count over 100,000 runs."""
    values = {"service": job.service, "job": job.job, "before": before, "limit": limit + 1}
    found = [_backfill_of(row) for row in await tx.connection.execute(_LIST, values)]
    shown = _countable(found[:limit])
    return BackfillPage(await _counted(tx, shown), more=len(found) > len(shown))


async def mark_cancelled(tx: Transaction, backfill_id: UUID) -> None:
    """Says who cancelled it; the first one stays."""
    values = {"backfill_id": backfill_id, "now": tx.now, "principal": str(tx.principal)}
    await tx.connection.execute(_MARK_CANCELLED, values)


async def _one(tx: Transaction, statement: Any, name: BackfillName) -> Backfill | None:
    row = (await tx.connection.execute(statement, _named(name))).one_or_none()
    return None if row is None else (await _counted(tx, [_backfill_of(row)]))[0]


def _countable(backfills: Sequence[Backfill]) -> Sequence[Backfill]:
    room = _MAX_COUNTED
    for place, each in enumerate(backfills):
        room -= each.runs
        if room < 0 and place:
            return backfills[:place]
    return backfills


async def _counted(tx: Transaction, backfills: Sequence[Backfill]) -> list[Backfill]:
    """The same with how far their runs are, in one statement."""
    ranges = [range_of(each.name.backfill_id) for each in backfills if each.name is not None]
    values = {
        "first_ids": [each["first_id"] for each in ranges],
        "end_ids": [each["end_id"] for each in ranges],
        "origins": [each["origin"] for each in ranges],
    }
    rows = (await tx.connection.execute(_COUNT, values)).all()
    return [replace(each, counts=BackfillCounts(*row)) for each, row in zip(backfills, rows, strict=True)]


def _named(name: BackfillName) -> dict[str, Any]:
    return {"service": name.job.service, "job": name.job.job, "backfill_id": name.backfill_id}


def _backfill_of(row: Row[Any]) -> Backfill:
    return Backfill(
        name=BackfillName(JobName(row.service, row.job), row.backfill_id),
        since=row.since,
        until=row.until,
        tenant=row.tenant_id,
        schedule=row.schedule,
        occurrences=row.occurrences,
        runs=row.runs,
        counts=BackfillCounts(),
        created_at=row.created_at,
        created_by=row.created_by,
        cancelled_at=row.cancelled_at,
        cancelled_by=row.cancelled_by,
    )
