"""What a schedule owes up to an instant, as the runs to make, the gaps to record, and where it then stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from uuid import UUID

from scheduler_service.domain.run import EPOCH, TriggerSource, scheduled_run_id
from scheduler_service.domain.timing import (
    CatchUp,
    Due,
    GapPolicy,
    Missed,
    Occurrence,
    RepeatPolicy,
    Settlement,
    Timing,
    jitter_offset,
    next_occurrence,
    occurrences,
    settle,
)
from scheduler_service.domain.timing.catch_up import stretch

_NONE = timedelta()

LIMIT = 100
"""Runs of one schedule that one settlement makes; what is left is due at once."""


_GAPS = {policy.name: policy for policy in GapPolicy}
_REPEATS = {policy.name: policy for policy in RepeatPolicy}


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class Standing:
    """A schedule as it stands: its timing and the policies of its job. `halted`: its job is paused or archived."""

    schedule_id: int
    cron: str
    time_zone: str
    gap: str
    repeat: str
    phase: timedelta
    jitter: timedelta
    settled_to: datetime
    owed_from: datetime
    halted: bool
    catch_up: CatchUp
    window: timedelta


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class OwedRun:
    """A run to make for an occurrence. It may start at `run_after`: the nominal instant plus jitter."""

    run_id: UUID
    trigger: TriggerSource
    occurrence: Occurrence
    run_after: datetime


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class Decision:
    """What settles a schedule. `next_run_at` is None where nothing will ever be due again, and in the past where
    more is owed than one settlement makes."""

    runs: tuple[OwedRun, ...]
    missed: tuple[Missed, ...]
    settled_to: datetime
    next_run_at: datetime | None


def decide(standing: Standing, now: datetime, oldest: datetime) -> Decision:
    """What is due at `now`, jitter included. Nothing is caught up from before `oldest`, where records would have no
    partition. Refuses (TimingError, a ValueError) what cannot be evaluated."""
    timing = _timing(standing)
    since = max(standing.settled_to, standing.owed_from, EPOCH)
    if standing.halted:
        return _moved_on(standing, timing, max(since, now))
    # Lateness counts from when an occurrence was to start, so that a jitter of minutes is not taken for an outage.
    started_until = now - _offset(standing, timing, next_occurrence(timing, since)) if standing.jitter else now
    settlement = _settlement(timing, since, started_until, standing.catch_up, standing.window, oldest)
    runs = tuple(_owed(standing, timing, due) for due in settlement.due)
    following = _start(standing, timing, settlement.next)
    return Decision(runs, settlement.missed, settlement.settled_to, following)


def decide_all(standing: Standing, now: datetime, oldest: datetime) -> Decision:
    """As `decide`, and also the occurrences up to `now` that only wait for their jitter: what a revision that ends
    now still owes."""
    decision = decide(standing, now, oldest)
    if standing.halted or (decision.next_run_at is not None and decision.next_run_at <= now):
        return decision
    timing = _timing(standing)
    waiting = [_owed(standing, timing, Due(each, late=False)) for each in occurrences(timing, decision.settled_to, now)]
    if not waiting:
        return decision
    reached = waiting[-1].occurrence.instant
    following = _start(standing, timing, next_occurrence(timing, reached))
    return Decision((*decision.runs, *waiting), decision.missed, reached, following)


def overlooked(standing: Standing, now: datetime) -> Decision:
    """What a schedule that was set aside owed up to `now`: missed, all of it. Refuses (TimingError) what cannot be
    evaluated."""
    since = max(standing.settled_to, standing.owed_from, EPOCH)
    missed = () if standing.halted else stretch(_timing(standing), since, now, "set_aside")
    return Decision((), missed, missed[-1].last if missed else standing.settled_to, None)


def next_start(standing: Standing) -> datetime | None:
    """When the first occurrence after where it stands is to start, jitter included; in the past if it is overdue."""
    return first_start(standing, max(standing.settled_to, standing.owed_from, EPOCH))


def first_start(standing: Standing, after: datetime) -> datetime | None:
    """When the first occurrence after an instant is to start, jitter included."""
    timing = _timing(standing)
    return _start(standing, timing, next_occurrence(timing, after))


@lru_cache(maxsize=4_096)
def _settlement(
    timing: Timing, since: datetime, until: datetime, catch_up: CatchUp, longest: timedelta, oldest: datetime
) -> Settlement:
    """Remembered, because those that share a timing come due at the same instant, in the same batch."""
    window = max(min(longest, until - oldest), timedelta())
    return settle(timing, since, until, catch_up=catch_up, window=window, limit=LIMIT)


def _moved_on(standing: Standing, timing: Timing, to: datetime) -> Decision:
    return Decision((), (), to, _start(standing, timing, next_occurrence(timing, to)))


def _owed(standing: Standing, timing: Timing, due: Due) -> OwedRun:
    instant = due.occurrence.instant
    return OwedRun(
        run_id=scheduled_run_id(standing.schedule_id, instant),
        trigger=TriggerSource.CATCH_UP if due.late else TriggerSource.SCHEDULE,
        occurrence=due.occurrence,
        run_after=instant + _offset(standing, timing, due.occurrence),
    )


def _start(standing: Standing, timing: Timing, occurrence: Occurrence | None) -> datetime | None:
    return None if occurrence is None else occurrence.instant + _offset(standing, timing, occurrence)


def _offset(standing: Standing, timing: Timing, occurrence: Occurrence | None) -> timedelta:
    if not standing.jitter or occurrence is None:
        return _NONE
    following = next_occurrence(timing, occurrence.instant)
    return jitter_offset(str(standing.schedule_id), standing.jitter, occurrence, following)


def _timing(standing: Standing) -> Timing:
    return _timing_of(standing.cron, standing.time_zone, standing.gap, standing.repeat, standing.phase)


def oldest_partition(now: datetime) -> datetime:
    """The start of the month before: where the oldest partition that is sure to be there begins."""
    month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return month.replace(year=month.year - 1, month=12) if month.month == 1 else month.replace(month=month.month - 1)


# Asked for every run: by words, because an enum's hash is a call of Python's.
@lru_cache(maxsize=32_768)
def _timing_of(cron: str, time_zone: str, gap: str, repeat: str, phase: timedelta) -> Timing:
    return Timing.of(cron, time_zone, _GAPS[gap], _REPEATS[repeat], phase)
