"""Due schedules and their settlement: locked by one statement, settled by another, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from scheduler_service.domain.attempt import ClaimedRun
from scheduler_service.domain.overlap import SKIPPED
from scheduler_service.domain.settling import Decision, OwedRun, Standing
from scheduler_service.domain.timing import CatchUp, tzdata_version
from scheduler_service.store import arrays
from scheduler_service.store.claim import labels_of

Connection = psycopg.AsyncConnection[TupleRow]


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


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class Settled:
    """A schedule with what was decided, and for each of its runs the session that is to have it at once, if any."""

    schedule: DueSchedule
    decision: Decision
    seats: tuple[UUID | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a settlement wrote: runs that became live (`claimed` of them by session and claim), and the rest."""

    live: int
    skipped: int
    claimed: dict[tuple[UUID, int], list[ClaimedRun]]


_COLUMNS: LiteralString = """
  s.schedule_id, s.cron, s.time_zone, s.gap, s.repeat, s.phase, s.jitter, s.settled_to, j.owed_from,
  j.paused_at is not null or j.archived_at is not null, j.catch_up::text, j.catch_up_window,
  s.tenant_id, j.service, j.job, j.route, j.endpoint, j.max_attempts,
  extract(epoch from j.attempt_timeout)::float8, extract(epoch from j.cancel_grace)::float8, j.xmin::text"""

_TAKE_DUE: LiteralString = f"""
select (select coalesce(%(now)s::timestamptz, clock_timestamp())), {_COLUMNS}
from carillon.schedules s join carillon.jobs j using (job_id)
where s.next_run_at <= (select coalesce(%(now)s::timestamptz, clock_timestamp()))
order by s.next_run_at limit %(limit)s
for update of s skip locked"""

_LOCK: LiteralString = f"""
select %(now)s::timestamptz, {_COLUMNS}
from carillon.schedules s join carillon.jobs j using (job_id)
where s.schedule_id = any(%(schedule_ids)s::bigint[]) and s.next_run_at is not null
order by s.schedule_id
for update of s"""


async def take_due(
    connection: Connection, now: datetime | None, limit: int
) -> tuple[datetime, list[DueSchedule]] | None:
    """Locks up to `limit` due schedules that nobody else has locked. None if there is none; else the instant by which
    they are due, and the schedules."""
    cursor = await connection.execute(_TAKE_DUE, {"now": now, "limit": limit}, binary=True)
    rows = await cursor.fetchall()
    return (rows[0][0], [_due_schedule(row) for row in rows]) if rows else None


async def lock_armed(connection: Connection, schedule_ids: Sequence[int], now: datetime) -> list[DueSchedule]:
    """Locks those of these schedules that are armed, waiting for whoever holds them."""
    cursor = await connection.execute(_LOCK, {"schedule_ids": arrays.plain(schedule_ids), "now": now}, binary=True)
    return [_due_schedule(row) for row in await cursor.fetchall()]


_CATCH_UPS = {policy.name: policy for policy in CatchUp}


def _due_schedule(row: tuple[Any, ...]) -> DueSchedule:
    return DueSchedule(
        standing=Standing(*(*row[1:11], _CATCH_UPS[row[11]], row[12])),
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


# Each schedule is matched by where it stood (compare-and-swap) and by the version of its job's row: the lock on a
# schedule does not hold its job still, and a job that was changed meanwhile is decided again.
_MOVED: LiteralString = """
with moved as (
  update carillon.schedules s set settled_to = m.settled_to, next_run_at = m.next_run_at
  from unnest(%(schedules)s::bigint[], %(settled_from)s::timestamptz[], %(job_versions)s::xid[],
              %(settled_to)s::timestamptz[], %(next_run_at)s::timestamptz[])
       as m(schedule_id, settled_from, job_version, settled_to, next_run_at)
  join carillon.jobs j on j.xmin = m.job_version
  where s.schedule_id = m.schedule_id and s.settled_to = m.settled_from and s.job_id = j.job_id
),"""

# The place of a run's schedule in the arrays above: a join with `moved` would compare each with each.
_OF_ITS_SCHEDULE: LiteralString = """
  join carillon.schedules s on s.schedule_id = (%(schedules)s::bigint[])[r.place]
    and s.settled_to = (%(settled_from)s::timestamptz[])[r.place]
  join carillon.jobs j on j.job_id = s.job_id and j.xmin = (%(job_versions)s::xid[])[r.place]"""

_MISSED: LiteralString = f"""
missed as (
  insert into carillon.gaps (schedule_id, first_at, last_at, occurrences, reason, revision, recorded_at)
  select s.schedule_id, r.first_at, r.last_at, r.occurrences, r.reason, s.revision, %(now)s
  from unnest(%(gap_places)s::int[], %(first_at)s::timestamptz[], %(last_at)s::timestamptz[],
              %(occurrences)s::bigint[], %(reasons)s::text[])
       as r(place, first_at, last_at, occurrences, reason) {_OF_ITS_SCHEDULE}
),"""

_RUNS: LiteralString = """
unnest(%(places)s::int[], %(run_ids)s::uuid[], %(triggers)s::carillon.trigger_source[],
       %(scheduled_for)s::timestamptz[], %(scheduled_local)s::timestamp[], %(folds)s::smallint[],
       %(run_after)s::timestamptz[], %(seats)s::uuid[])
  as r(place, run_id, trigger, scheduled_for, scheduled_local, fold, run_after, session_id)"""

_LIVE_COLUMNS: LiteralString = """
  run_id, schedule_id, revision, job_id, tenant_id, route, trigger, exclusive,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, labels, payload,
  max_attempts, retry_delay, attempt_timeout, run_timeout, cancel_grace"""

_LIVE_VALUES: LiteralString = """
  r.run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, j.route, r.trigger, j.overlap <> 'ALLOW_ALL',
  r.scheduled_for, r.scheduled_local, r.fold, s.time_zone, %(tzdata)s, r.run_after, %(now)s,
  j.labels || s.labels, j.config || s.config,
  j.max_attempts, j.retry_delay, j.attempt_timeout, j.run_timeout, j.cancel_grace"""

_ONE_PER_SCHEDULE: LiteralString = "on conflict (schedule_id) where exclusive and not blocked do nothing"

_SETTLE_PENDING: LiteralString = f"""
{_MOVED} {_MISSED}
inserted as (
  insert into carillon.live_runs ({_LIVE_COLUMNS})
  select {_LIVE_VALUES} from {_RUNS} {_OF_ITS_SCHEDULE}
  {_ONE_PER_SCHEDULE}
  returning run_id
)
select uuid_send(run_id) from inserted"""

_SETTLE_CLAIMED: LiteralString = f"""
{_MOVED} {_MISSED}
held as materialized (
  select session_id, nextval('carillon.claim_ids') as claim_id
  from (select session_id from carillon.sessions where session_id = any(%(sessions)s::uuid[])
        order by session_id for key share) locked
),
inserted as (
  insert into carillon.live_runs ({_LIVE_COLUMNS}, session_id, claim_id, claimed_at, deadline)
  select {_LIVE_VALUES}, h.session_id, h.claim_id,
    case when h.claim_id is not null then %(now)s end,
    case when h.claim_id is not null then %(now)s + j.attempt_timeout end
  from {_RUNS} {_OF_ITS_SCHEDULE}
  left join held h on h.session_id = r.session_id
  {_ONE_PER_SCHEDULE}
  returning run_id, claim_id, payload, labels
)
select uuid_send(run_id), claim_id, case when claim_id is not null then payload::text end,
  case when claim_id is not null then labels::text end
from inserted"""

# What the unique index kept from becoming live. Where a schedule was not moved, it is decided again instead.
_RECORD_SKIPPED: LiteralString = f"""
insert into carillon.runs (run_id, schedule_id, revision, job_id, tenant_id, state, trigger,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, finished_at,
  triggered_by, origin, labels, payload, attempt, max_attempts, error)
select r.run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, 'SKIPPED', r.trigger,
  r.scheduled_for, r.scheduled_local, r.fold, s.time_zone, %(tzdata)s, r.run_after, %(now)s, %(now)s,
  '', '', j.labels || s.labels, j.config || s.config, 0, j.max_attempts, %(error)s
from {_RUNS}
join carillon.schedules s on s.schedule_id = (%(schedules)s::bigint[])[r.place] and s.settled_to >= r.scheduled_for
join carillon.jobs j using (job_id)"""


async def settle(connection: Connection, settled: Sequence[Settled], now: datetime) -> Made:
    """Writes what was decided for schedules locked in this transaction: runs, gaps, and where each now stands.

    A run with a seat is claimed by that session, unless the session has gone: then it is pending, as are the others.
    A run whose schedule may have only one, and has one, is recorded as SKIPPED.
    """
    runs = [
        _Placed(place, settled[place - 1].schedule, run, seat)
        for place, each in enumerate(settled, start=1)
        for run, seat in zip(each.decision.runs, each.seats or (None,) * len(each.decision.runs), strict=True)
    ]
    seats = {each.seat for each in runs} - {None}
    parameters = _schedule_parameters(settled, now) | _run_parameters(runs) | _gap_parameters(settled)
    if seats:
        parameters["sessions"] = arrays.uuids(seats)
    query = _SETTLE_CLAIMED if seats else _SETTLE_PENDING
    rows = await (await connection.execute(query, parameters, binary=True)).fetchall()
    skipped = 0
    if len(rows) < len(runs):
        live = {row[0] for row in rows}
        skipped = await _record_skipped(
            connection, parameters, [each for each in runs if each.run.run_id.bytes not in live]
        )
    return Made(len(rows), skipped, _by_claim(rows, runs) if seats else {})


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class _Placed:
    """A run with its schedule, and that one's place in the arrays, counted from 1."""

    place: int
    schedule: DueSchedule
    run: OwedRun
    seat: UUID | None


async def _record_skipped(connection: Connection, parameters: dict[str, Any], runs: Sequence[_Placed]) -> int:
    parameters = parameters | _run_parameters(runs) | {"error": Jsonb(SKIPPED.to_document())}
    return (await connection.execute(_RECORD_SKIPPED, parameters)).rowcount


def _schedule_parameters(settled: Sequence[Settled], now: datetime) -> dict[str, Any]:
    return {
        "now": now,
        "tzdata": tzdata_version(),
        "schedules": arrays.plain(each.schedule.standing.schedule_id for each in settled),
        "settled_from": arrays.instants(each.schedule.settled_from for each in settled),
        "job_versions": arrays.plain(each.schedule.job_version for each in settled),
        "settled_to": arrays.instants(each.decision.settled_to for each in settled),
        "next_run_at": arrays.instants(each.decision.next_run_at for each in settled),
    }


def _run_parameters(runs: Sequence[_Placed]) -> dict[str, Any]:
    return {
        "places": arrays.plain(each.place for each in runs),
        "run_ids": arrays.uuids(each.run.run_id for each in runs),
        "triggers": arrays.plain(each.run.trigger for each in runs),
        "scheduled_for": arrays.instants(each.run.occurrence.instant for each in runs),
        "scheduled_local": arrays.local_times(each.run.occurrence.local for each in runs),
        "folds": arrays.plain(each.run.occurrence.fold for each in runs),
        "run_after": arrays.instants(each.run.run_after for each in runs),
        "seats": arrays.uuids(each.seat for each in runs),
    }


def _gap_parameters(settled: Sequence[Settled]) -> dict[str, Any]:
    gaps = [(place, gap) for place, each in enumerate(settled, start=1) for gap in each.decision.missed]
    return {
        "gap_places": arrays.plain(place for place, _ in gaps),
        "first_at": arrays.instants(gap.first for _, gap in gaps),
        "last_at": arrays.instants(gap.last for _, gap in gaps),
        "occurrences": arrays.plain(gap.count for _, gap in gaps),
        "reasons": arrays.plain(gap.reason.upper() for _, gap in gaps),
    }


def _by_claim(rows: Iterable[tuple[Any, ...]], runs: Sequence[_Placed]) -> dict[tuple[UUID, int], list[ClaimedRun]]:
    placed = {each.run.run_id.bytes: each for each in runs}
    claims: dict[int, list[ClaimedRun]] = {}
    sessions: dict[int, UUID | None] = {}
    for run_id, claim_id, payload, labels in rows:
        if claim_id is not None:
            each = placed[run_id]
            if claim_id not in claims:
                claims[claim_id], sessions[claim_id] = [], each.seat
            claims[claim_id].append(_claimed_run(each, payload, labels))
    return {(session, claim_id): claims[claim_id] for claim_id, session in sessions.items() if session is not None}


def _claimed_run(placed: _Placed, payload: str, labels: str) -> ClaimedRun:
    schedule, run = placed.schedule, placed.run
    return ClaimedRun(
        run_id=run.run_id,
        attempt=1,
        max_attempts=schedule.max_attempts,
        service=schedule.service,
        job=schedule.job,
        tenant=schedule.tenant,
        endpoint=schedule.endpoint,
        payload=payload,
        attempt_timeout=schedule.attempt_timeout,
        cancel_grace=schedule.cancel_grace,
        scheduled_for=run.occurrence.instant,
        trigger=run.trigger,
        labels=labels_of(labels),
    )


_SET_ASIDE: LiteralString = """
update carillon.schedules s set next_run_at = null, set_aside_reason = a.reason
from unnest(%(schedules)s::bigint[], %(reasons)s::text[]) as a(schedule_id, reason)
where s.schedule_id = a.schedule_id"""


async def set_aside(connection: Connection, reasons: dict[int, str]) -> None:
    """Disarms schedules that cannot be settled, until they are changed; each with the reason."""
    parameters = {"schedules": arrays.plain(reasons), "reasons": arrays.texts(reasons.values())}
    await connection.execute(_SET_ASIDE, parameters)


_SECONDS_TO_NEXT: LiteralString = """
select extract(epoch from next_run_at - clock_timestamp())::float8
from carillon.schedules where next_run_at is not null order by next_run_at limit 1"""


async def seconds_to_next(connection: Connection) -> float | None:
    """How long until the earliest schedule is due; negative if one is due; None if none is armed."""
    row = await (await connection.execute(_SECONDS_TO_NEXT)).fetchone()
    return row[0] if row else None
