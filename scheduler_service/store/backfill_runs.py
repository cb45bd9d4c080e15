"""The runs of a backfill: for which occurrences there are some already, making them, and cancelling them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow
from sqlalchemy import text

from scheduler_service.domain.backfill import Wanted, origin_of
from scheduler_service.domain.fields import compact_json
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.run import new_run_id
from scheduler_service.domain.timing import tzdata_version
from scheduler_service.store import arrays
from scheduler_service.store.backfills import OF_BACKFILL, range_of
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Transaction


@dataclass(frozen=True, slots=True)
class InScope:
    """A schedule that a backfill is about, and its newest revision."""

    schedule_id: int
    name: ScheduleName
    revision: int


@dataclass(frozen=True, slots=True)
class PayloadSizes:
    """What runs would have as payload, as bytes of JSON: the longest one, and all together."""

    longest: int
    total: int


_IN_SCOPE = text("""
select schedule_id, tenant_id, schedule, revision from carillon.schedules
where job_id = :job_id and deleted_at is null and (:tenant = '*' or tenant_id = :tenant)
  and (:schedule = '' or schedule = :schedule)
limit :limit""")
_LOCK_SCHEDULES = text("""
select schedule_id, revision from carillon.schedules
where schedule_id = any(cast(:schedule_ids as bigint[])) and deleted_at is null
order by schedule_id for no key update""")
_UNSETTLED = text("""
select schedule_id from carillon.schedules
where schedule_id = any(cast(:schedule_ids as bigint[])) and next_run_at - jitter <= :now and settled_to < :until
order by schedule_id""")


async def schedules_in_scope(
    tx: Transaction, job_id: int, job: JobName, tenant: str, schedule: str, *, limit: int
) -> list[InScope]:
    """Up to `limit` schedules of a job, in no order: a tenant's or everyone's (`*`), of one id or of any (empty)."""
    values = {"job_id": job_id, "tenant": tenant, "schedule": schedule, "limit": limit}
    rows = await tx.connection.execute(_IN_SCOPE, values)
    return [InScope(row.schedule_id, ScheduleName(job, row.tenant_id, row.schedule), row.revision) for row in rows]


async def lock_schedules(tx: Transaction, schedule_ids: Iterable[int]) -> dict[int, int]:
    """Locks those of these schedules that are not deleted, against the tick and other backfills; answers the newest
    revision of each."""
    rows = await tx.connection.execute(_LOCK_SCHEDULES, {"schedule_ids": list(schedule_ids)})
    return {row.schedule_id: row.revision for row in rows}


async def unsettled(tx: Transaction, schedule_ids: Iterable[int], until: datetime) -> list[int]:
    """Those of these schedules that owe something before `until` that is not settled yet."""
    values = {"schedule_ids": list(schedule_ids), "now": tx.now, "until": until}
    return list((await tx.connection.execute(_UNSETTLED, values)).scalars())


# Each look is a sub-select of a single value: that is always an index scan for each, in the one partition of its id,
# where an EXISTS may be turned into a walk through all runs of all partitions.
_STANDS: LiteralString = """
coalesce((select true from carillon.live_runs l where l.run_id = w.run_id),
         (select r.state = 'COMPLETED' from carillon.runs r where r.run_id = w.run_id), false)"""
_RUN_STANDS: LiteralString = f"""
select w.place::int from unnest(%(run_ids)s::uuid[]) with ordinality as w(run_id, place) where {_STANDS}"""
_REMEDY_STANDS: LiteralString = f"""
select w.schedule_id, w.scheduled_for from carillon.remedies w
where w.schedule_id = any(%(schedules)s::bigint[]) and w.scheduled_for >= %(since)s and w.scheduled_for < %(until)s
  and {_STANDS}"""


async def not_passed_over(tx: Transaction, wanted: Sequence[Wanted], since: datetime, until: datetime) -> list[Wanted]:
    """Those occurrences in `[since, until)` whose run is neither live nor completed, nor any that was made for them
    afterwards."""
    connection = await tx.driver_connection()
    run_ids = arrays.uuids(each.scheduled_run_id for each in wanted)
    run_stands = {place for (place,) in await _rows(connection, _RUN_STANDS, {"run_ids": run_ids})}
    schedules = arrays.plain({each.part.schedule_id for each in wanted})
    # Matched here: a join of two such lists has no estimate, and may compare each with each.
    remedy_stands = set(
        await _rows(connection, _REMEDY_STANDS, {"schedules": schedules, "since": since, "until": until})
    )
    return [
        each
        for place, each in enumerate(wanted, start=1)
        if place not in run_stands and (each.part.schedule_id, each.occurrence.instant) not in remedy_stands
    ]


async def _rows(connection: Connection, query: LiteralString, parameters: dict[str, Any]) -> list[TupleRow]:
    return await (await connection.execute(query, parameters, binary=True)).fetchall()


_SIZES: LiteralString = """
select coalesce(max(p.bytes), 0), coalesce(sum(p.bytes * p.runs), 0)::bigint
from (
  select octet_length((j.config || s.config || %(payload)s::jsonb)::text) as bytes, w.runs
  from unnest(%(schedules)s::bigint[], %(runs)s::bigint[]) as w(schedule_id, runs)
  join carillon.schedules s using (schedule_id) join carillon.jobs j using (job_id)
) p"""


async def payload_sizes(tx: Transaction, runs: Mapping[int, int], payload: Mapping[str, Any]) -> PayloadSizes:
    """What so many runs of these schedules have with this payload put over job and schedule."""
    connection = await tx.driver_connection()
    parameters = {
        "schedules": arrays.plain(runs),
        "runs": arrays.plain(runs.values()),
        "payload": compact_json(dict(payload)),
    }
    row = await (await connection.execute(_SIZES, parameters)).fetchone()
    assert row is not None
    return PayloadSizes(*row)


_INSERT: LiteralString = """
with made as (
  insert into carillon.live_runs (run_id, schedule_id, revision, job_id, tenant_id, route, trigger, exclusive, blocked,
    priority, scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, triggered_by, origin,
    labels, payload, max_attempts, attempt_timeout, run_timeout, cancel_grace)
  select w.run_id, s.schedule_id, w.revision, s.job_id, s.tenant_id, j.route, 'BACKFILL', j.overlap <> 'ALLOW_ALL',
    j.overlap <> 'ALLOW_ALL', 1, w.scheduled_for, w.scheduled_local, w.fold, w.time_zone, %(tzdata)s, %(now)s, %(now)s,
    %(triggered_by)s, %(origin)s, j.labels || s.labels, j.config || s.config || %(payload)s::jsonb,
    j.max_attempts, j.attempt_timeout, j.run_timeout, j.cancel_grace
  from unnest(%(run_ids)s::uuid[], %(schedules)s::bigint[], %(revisions)s::int[], %(instants)s::timestamptz[],
              %(local_times)s::timestamp[], %(folds)s::smallint[], %(time_zones)s::text[])
    as w(run_id, schedule_id, revision, scheduled_for, scheduled_local, fold, time_zone)
  join carillon.schedules s using (schedule_id) join carillon.jobs j using (job_id)
  returning run_id, schedule_id, scheduled_for
)
insert into carillon.remedies (run_id, schedule_id, scheduled_for, backfill_id, created_at)
select run_id, schedule_id, scheduled_for, %(backfill_id)s, %(now)s from made"""


async def insert_runs(tx: Transaction, backfill_id: UUID, wanted: Sequence[Wanted], payload: Mapping[str, Any]) -> None:
    """Makes a run for each of these occurrences, due now, behind what is due by itself; where the job has its runs one
    at a time, they are blocked, and `turns.arrange` says whose turn it is. All ids are of now, which must be the time
    of the backfill's own, and in the order of the occurrences."""
    connection = await tx.driver_connection()
    parameters = {
        "backfill_id": backfill_id,
        "origin": origin_of(backfill_id),
        "now": tx.now,
        "tzdata": tzdata_version(),
        "triggered_by": str(tx.principal),
        "payload": compact_json(dict(payload)),
        "run_ids": arrays.uuids(sorted(new_run_id(tx.now) for _ in wanted)),
        "schedules": arrays.plain(each.part.schedule_id for each in wanted),
        "revisions": arrays.plain(each.part.revision for each in wanted),
        "instants": arrays.instants(each.occurrence.instant for each in wanted),
        "local_times": arrays.local_times(each.occurrence.local for each in wanted),
        "folds": arrays.plain(each.occurrence.fold for each in wanted),
        "time_zones": arrays.texts(each.part.timing.time_zone for each in wanted),
    }
    await connection.execute(_INSERT, parameters)


# First those with the turn, then those that wait for it, as whoever ends a run and unblocks the next one does.
_LOCK_UNBLOCKED = text(
    f"select from carillon.live_runs r where {OF_BACKFILL} and not r.blocked order by r.run_id for update"
)
_LOCK_LIVE = text(f"select r.run_id from carillon.live_runs r where {OF_BACKFILL} order by r.run_id for update")
_REQUEST_CANCELS = text(f"""
update carillon.live_runs r set cancel_requested_at = :now, cancel_reason = :reason, cancelled_by = :principal
where {OF_BACKFILL} and r.claim_id is not null and r.cancel_requested_at is null""")


async def lock_live(tx: Transaction, backfill_id: UUID) -> list[UUID]:
    """Locks the live runs of a backfill, and answers them: none is claimed, returned or ended by others until the
    transaction ends."""
    await tx.connection.execute(_LOCK_UNBLOCKED, range_of(backfill_id))
    return list((await tx.connection.execute(_LOCK_LIVE, range_of(backfill_id))).scalars())


async def request_cancels(tx: Transaction, backfill_id: UUID, reason: str) -> int:
    """Marks those of its runs that a worker holds as to be stopped, once. `reason`: what their records will say.
    Answers how many."""
    values = range_of(backfill_id) | {"now": tx.now, "reason": reason, "principal": str(tx.principal)}
    return (await tx.connection.execute(_REQUEST_CANCELS, values)).rowcount
