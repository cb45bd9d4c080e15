"""What becomes of owed runs whose schedule has a live run already: skipped, or buffered, or the others stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from psycopg.types.json import Jsonb

from scheduler_service.domain.overlap import SUPERSEDED, Answer, Overlap, Situation, resolve, skipped
from scheduler_service.domain.record import RunError
from scheduler_service.domain.run import TriggerSource
from scheduler_service.domain.timing import tzdata_version
from scheduler_service.store import arrays
from scheduler_service.store.cancel import end_pending_runs
from scheduler_service.store.connection import Connection
from scheduler_service.store.owed_runs import (
    LIVE_COLUMNS,
    LIVE_VALUES_AFTER,
    LIVE_VALUES_BEFORE,
    RUNS,
    PlacedRun,
    run_parameters,
    schedule_ids,
)
from scheduler_service.store.turns import arrange


@dataclass(frozen=True, slots=True)
class KeptOut:
    """What became of runs that found a live one: `buffered` became live behind it, `skipped` were recorded. Of earlier
    occurrences `stopped` were asked to stop, and `cancelled`, which no worker held, have ended."""

    buffered: int = 0
    skipped: int = 0
    stopped: int = 0
    cancelled: int = 0

    def __add__(self, other: KeptOut) -> KeptOut:
        return KeptOut(
            self.buffered + other.buffered,
            self.skipped + other.skipped,
            self.stopped + other.stopped,
            self.cancelled + other.cancelled,
        )


# A schedule that was not moved is left out: it is decided again.
_SITUATIONS: LiteralString = """
select k.schedule_id, j.overlap::text, h.trigger::text,
  exists (select from carillon.live_runs b
          where b.schedule_id = k.schedule_id and b.blocked and b.trigger = 'SCHEDULE')
from unnest(%(schedules)s::bigint[], %(settled_to)s::timestamptz[]) as k(schedule_id, settled_to)
join carillon.schedules s on s.schedule_id = k.schedule_id and s.settled_to >= k.settled_to
join carillon.jobs j on j.job_id = s.job_id
left join lateral (
  select l.trigger from carillon.live_runs l where l.schedule_id = k.schedule_id and l.exclusive and not l.blocked
  offset 0
) h on true"""

_OF_ITS_SCHEDULE: LiteralString = """
join carillon.schedules s on s.schedule_id = (%(schedules)s::bigint[])[r.place]
join carillon.jobs j on j.job_id = s.job_id"""

_RECORD_SKIPPED: LiteralString = f"""
insert into carillon.runs (run_id, schedule_id, revision, job_id, tenant_id, state, trigger,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, finished_at,
  triggered_by, origin, labels, payload, attempt, max_attempts, error)
select r.run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, 'SKIPPED', r.trigger,
  r.scheduled_for, r.scheduled_local, r.fold, s.time_zone, %(tzdata)s, r.run_after, %(now)s, %(now)s,
  '', '', j.labels || s.labels, j.config || s.config, 0, j.max_attempts, %(error)s
from {RUNS} {_OF_ITS_SCHEDULE}"""

_INSERT_BLOCKED: LiteralString = f"""
insert into carillon.live_runs ({LIVE_COLUMNS})
select {LIVE_VALUES_BEFORE} true, true, {LIVE_VALUES_AFTER}
from {RUNS} {_OF_ITS_SCHEDULE}"""

# Found by the two indexes that know live runs by schedule. The runs with the turn are locked by then.
_LOCK_OTHERS: LiteralString = """
with found as materialized (
  select o.run_id
  from unnest(%(schedules)s::bigint[], %(newest)s::uuid[]) as n(schedule_id, run_id)
  cross join lateral (
    (select l.run_id, l.trigger from carillon.live_runs l
     where l.schedule_id = n.schedule_id and l.exclusive and not l.blocked offset 0)
    union all
    select l.run_id, l.trigger from carillon.live_runs l
    where l.schedule_id = n.schedule_id and l.blocked and l.trigger = 'SCHEDULE'
  ) o
  where o.trigger = 'SCHEDULE' and o.run_id <> n.run_id
  order by o.run_id
)
select o.* from found f
cross join lateral (
  select l.run_id, l.claim_id is not null, l.cancel_requested_at is not null from carillon.live_runs l
  where l.run_id = f.run_id for update
) o"""

_ASK_TO_STOP: LiteralString = """
update carillon.live_runs set cancel_requested_at = %(now)s, cancel_reason = %(reason)s, cancelled_by = %(by)s
where run_id = any(%(run_ids)s::uuid[])"""

_BY = "overlap"


async def place_kept_out(connection: Connection, runs: Sequence[PlacedRun], now: datetime) -> KeptOut:
    """Decides and writes what becomes of these, whose schedules are locked, and moved to where they then stand."""
    answers = await _answers(connection, runs)
    left_out = [run for run, answer in answers if answer is Answer.SKIP]
    buffered = [run for run, answer in answers if answer is not Answer.SKIP]
    superseding = {run.schedule.standing.schedule_id: run for run, answer in answers if answer is Answer.CANCEL}
    for error, runs_of_it in _by_error(left_out, now).items():
        await _write(connection, _RECORD_SKIPPED, runs_of_it, now, error=Jsonb(error.to_document()))
    stopped = cancelled = 0
    if buffered:
        await _write(connection, _INSERT_BLOCKED, buffered, now)
        await arrange(connection, schedule_ids(buffered))
        if superseding:
            stopped, cancelled = await _stop_others(connection, superseding, now)
    return KeptOut(len(buffered), len(left_out), stopped, cancelled)


def _by_error(runs: Sequence[PlacedRun], now: datetime) -> dict[RunError, list[PlacedRun]]:
    """One for all of them, but after an outage, when it says how late each is."""
    found: dict[RunError, list[PlacedRun]] = {}
    for run in runs:
        found.setdefault(skipped(now - run.run.run_after), []).append(run)
    return found


async def _answers(connection: Connection, runs: Sequence[PlacedRun]) -> list[tuple[PlacedRun, Answer]]:
    by_schedule: dict[int, list[PlacedRun]] = {}
    for run in runs:
        by_schedule.setdefault(run.schedule.standing.schedule_id, []).append(run)
    parameters = {
        "schedules": arrays.plain(by_schedule),
        "settled_to": arrays.instants(each[-1].run.occurrence.instant for each in by_schedule.values()),
    }
    rows = await (await connection.execute(_SITUATIONS, parameters, binary=True)).fetchall()
    answers: list[tuple[PlacedRun, Answer]] = []
    for schedule_id, overlap, holder, occurrence_waits in rows:
        situation = Situation(TriggerSource(holder) if holder else None, occurrence_waits)
        kept_out = by_schedule[schedule_id]
        triggers = [each.run.trigger for each in kept_out]
        answers += zip(kept_out, resolve(Overlap(overlap), situation, triggers), strict=True)
    return answers


async def _write(
    connection: Connection, query: LiteralString, runs: Sequence[PlacedRun], now: datetime, **more: object
) -> None:
    places = {schedule_id: place for place, schedule_id in enumerate(schedule_ids(runs), start=1)}
    placed = [PlacedRun(places[each.schedule.standing.schedule_id], each.schedule, each.run, None) for each in runs]
    parameters = {"now": now, "tzdata": tzdata_version(), "schedules": arrays.plain(places)}
    await connection.execute(query, parameters | run_parameters(placed) | more)


async def _stop_others(connection: Connection, newest: Mapping[int, PlacedRun], now: datetime) -> tuple[int, int]:
    """Stops every live occurrence of these runs' schedules but themselves: those in a worker's hands are asked to, the
    others end at once. Answers how many of each. Turns must be arranged: who ends one of them has to wait."""
    parameters = {
        "schedules": arrays.plain(newest),
        "newest": arrays.uuids(each.run.run_id for each in newest.values()),
    }
    others = await (await connection.execute(_LOCK_OTHERS, parameters, binary=True)).fetchall()
    to_ask = [run_id for run_id, held, asked in others if held and not asked]
    to_end = [run_id for run_id, held, _ in others if not held]
    if to_ask:
        asking = {"run_ids": arrays.uuids(to_ask), "now": now, "reason": SUPERSEDED.message, "by": _BY}
        await connection.execute(_ASK_TO_STOP, asking)
    if to_end:
        await end_pending_runs(connection, to_end, SUPERSEDED, now)
    return len(to_ask), len(to_end)
