"""Owed runs on their way into the database: as arrays, and as the columns of what they become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from scheduler_service.domain.settling import OwedRun
from scheduler_service.store import arrays
from scheduler_service.store.due import DueSchedule


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class PlacedRun:
    """A run with its schedule, and that one's place in the arrays, counted from 1."""

    place: int
    schedule: DueSchedule
    run: OwedRun
    seat: UUID | None


RUNS: LiteralString = """
unnest(%(places)s::int[], %(run_ids)s::uuid[], %(triggers)s::carillon.trigger_source[],
       %(scheduled_for)s::timestamptz[], %(scheduled_local)s::timestamp[], %(folds)s::smallint[],
       %(run_after)s::timestamptz[], %(seats)s::uuid[])
  as r(place, run_id, trigger, scheduled_for, scheduled_local, fold, run_after, session_id)"""

LIVE_COLUMNS: LiteralString = """
  run_id, schedule_id, revision, job_id, tenant_id, route, priority, trigger, exclusive, blocked,
  scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, labels, payload,
  max_attempts, attempt_timeout, run_timeout, cancel_grace"""

# After `r.trigger` come `exclusive` and `blocked`, which depend.
LIVE_VALUES_BEFORE: LiteralString = """
  r.run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, j.route,
  case r.trigger when 'SCHEDULE' then 0 else 1 end, r.trigger,"""

LIVE_VALUES_AFTER: LiteralString = """
  r.scheduled_for, r.scheduled_local, r.fold, s.time_zone, %(tzdata)s, r.run_after, %(now)s,
  j.labels || s.labels, j.config || s.config,
  j.max_attempts, j.attempt_timeout, j.run_timeout, j.cancel_grace"""


def run_parameters(runs: Sequence[PlacedRun]) -> dict[str, Any]:
    """The arrays of RUNS."""
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


def schedule_ids(runs: Iterable[PlacedRun]) -> list[int]:
    """Whose they are, each once, in the order of the runs."""
    return list(dict.fromkeys(each.schedule.standing.schedule_id for each in runs))
