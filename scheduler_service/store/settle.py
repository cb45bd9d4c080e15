"""The settlement of due schedules: what was decided for them, written by one statement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from scheduler_service.domain.attempt import ClaimedRun
from scheduler_service.domain.settling import Decision
from scheduler_service.domain.timing import tzdata_version
from scheduler_service.store import arrays
from scheduler_service.store.buffering import KeptOut, place_kept_out
from scheduler_service.store.claim import MOST_BYTES, bytes_of, labels_of
from scheduler_service.store.connection import Connection
from scheduler_service.store.due import DueSchedule
from scheduler_service.store.owed_runs import (
    LIVE_COLUMNS,
    LIVE_VALUES_AFTER,
    LIVE_VALUES_BEFORE,
    RUNS,
    PlacedRun,
    run_parameters,
)


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class Settled:
    """A schedule with what was decided, and for each of its runs the session that is to have it at once, if any."""

    schedule: DueSchedule
    decision: Decision
    seats: tuple[UUID | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a settlement wrote: runs that became live (`claimed` of them by session and claim, and the buffered of
    `kept_out` behind others), and what became of those that found a live run."""

    live: int = 0
    claimed: dict[tuple[UUID, int], list[ClaimedRun]] = field(default_factory=dict)
    kept_out: KeptOut = field(default_factory=KeptOut)

    @property
    def skipped(self) -> int:
        return self.kept_out.skipped

    def __add__(self, other: Made) -> Made:
        return Made(self.live + other.live, self.claimed | other.claimed, self.kept_out + other.kept_out)


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

_LIVE_VALUES: LiteralString = f"""
{LIVE_VALUES_BEFORE} j.overlap <> 'ALLOW_ALL', false, {LIVE_VALUES_AFTER}"""

_ONE_PER_SCHEDULE: LiteralString = "on conflict (schedule_id) where exclusive and not blocked do nothing"

_SETTLE_PENDING: LiteralString = f"""
{_MOVED} {_MISSED}
inserted as (
  insert into carillon.live_runs ({LIVE_COLUMNS})
  select {_LIVE_VALUES} from {RUNS} {_OF_ITS_SCHEDULE}
  {_ONE_PER_SCHEDULE}
  returning run_id
)
select uuid_send(run_id) from inserted"""

# What is larger is pending first, and claimed a few at a time.
_SEATED_BYTES = MOST_BYTES // 500

_SETTLE_CLAIMED: LiteralString = f"""
{_MOVED} {_MISSED}
held as materialized (
  select session_id, nextval('carillon.claim_ids') as claim_id
  from (select session_id from carillon.sessions where session_id = any(%(sessions)s::uuid[])
        order by session_id for key share) locked
),
inserted as (
  insert into carillon.live_runs ({LIVE_COLUMNS}, session_id, claim_id, claimed_at, deadline)
  select {_LIVE_VALUES}, h.session_id, h.claim_id,
    case when h.claim_id is not null then %(now)s end,
    case when h.claim_id is not null then %(now)s + j.attempt_timeout end
  from {RUNS} {_OF_ITS_SCHEDULE}
  left join held h on h.session_id = r.session_id
    and {bytes_of("j.config")} + {bytes_of("s.config")} <= {_SEATED_BYTES}
  {_ONE_PER_SCHEDULE}
  returning run_id, claim_id, payload, labels
)
select uuid_send(run_id), claim_id, case when claim_id is not null then payload::text end,
  case when claim_id is not null then labels::text end
from inserted"""


async def settle(connection: Connection, settled: Sequence[Settled], now: datetime) -> Made:
    """Writes what was decided for schedules locked in this transaction: runs, gaps, and where each now stands.

    A run with a seat is claimed by that session, unless the session has gone: then it is pending, as are the others.
    Where a schedule may have only one and has one, its job's overlap decides.
    """
    runs = [
        PlacedRun(place, settled[place - 1].schedule, run, seat)
        for place, each in enumerate(settled, start=1)
        for run, seat in zip(each.decision.runs, each.seats or (None,) * len(each.decision.runs), strict=True)
    ]
    seats = {each.seat for each in runs} - {None}
    parameters = _schedule_parameters(settled, now) | run_parameters(runs) | _gap_parameters(settled)
    if seats:
        parameters["sessions"] = arrays.uuids(seats)
    query = _SETTLE_CLAIMED if seats else _SETTLE_PENDING
    rows = await (await connection.execute(query, parameters, binary=True)).fetchall()
    claimed = _by_claim(rows, runs) if seats else {}
    if len(rows) == len(runs):
        return Made(len(rows), claimed)
    live = {row[0] for row in rows}
    kept_out = await place_kept_out(connection, [each for each in runs if each.run.run_id.bytes not in live], now)
    return Made(len(rows) + kept_out.buffered, claimed, kept_out)


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


def _gap_parameters(settled: Sequence[Settled]) -> dict[str, Any]:
    gaps = [(place, gap) for place, each in enumerate(settled, start=1) for gap in each.decision.missed]
    return {
        "gap_places": arrays.plain(place for place, _ in gaps),
        "first_at": arrays.instants(gap.first for _, gap in gaps),
        "last_at": arrays.instants(gap.last for _, gap in gaps),
        "occurrences": arrays.plain(gap.count for _, gap in gaps),
        "reasons": arrays.plain(gap.reason.upper() for _, gap in gaps),
    }


def _by_claim(rows: Iterable[tuple[Any, ...]], runs: Sequence[PlacedRun]) -> dict[tuple[UUID, int], list[ClaimedRun]]:
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


def _claimed_run(placed: PlacedRun, payload: str, labels: str) -> ClaimedRun:
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
