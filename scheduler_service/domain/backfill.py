"""Backfills: which occurrences of a range of the past become runs.

A backfill acts as if its schedules had been running all the time. It takes the timing that was in force at each
instant, whether or not the schedule was enabled, paused or its job halted then; and from before a schedule's first
revision, the timing of that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.names import BackfillName, ScheduleName
from scheduler_service.domain.run import scheduled_run_id
from scheduler_service.domain.timeline import Stretch
from scheduler_service.domain.timing import Cron, Occurrence, Timing, TimingError, count, occurrences

MAX_RUNS = 10_000
"""What one backfill makes."""
MAX_SCHEDULES = 10_000
MAX_OCCURRENCES = 100_000
"""What one backfill looks through for what is missing; each is asked for in the record."""
_MAX_DAYS = 1_000_000
"""What counting looks through, at about 3 µs a day: of each timing that differs, the days of the range."""

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class BackfillCounts:
    """How far a backfill's runs are."""

    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class Backfill:
    """A backfill as it is now. `tenant` is `*` for everyone's schedules, `schedule` empty for all. `name` and
    `created_at` are None for one that was only counted."""

    name: BackfillName | None
    since: datetime
    until: datetime
    tenant: str
    schedule: str
    occurrences: int
    runs: int
    counts: BackfillCounts
    created_at: datetime | None = None
    created_by: str = ""
    cancelled_at: datetime | None = None
    cancelled_by: str = ""

    @property
    def passed_over(self) -> int:
        return self.occurrences - self.runs


def origin_of(backfill_id: UUID) -> str:
    """Where a backfill's runs say that they come from."""
    return f"backfills/{backfill_id}"


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch `(after, until]` of one schedule with one timing."""

    schedule_id: int
    revision: int
    timing: Timing
    after: datetime
    until: datetime


@dataclass(slots=True)  # not frozen: made for every occurrence, where freezing costs four times the making
class Wanted:
    """An occurrence of the range, and the part that it is of."""

    part: Part
    occurrence: Occurrence

    @property
    def scheduled_run_id(self) -> UUID:
        return scheduled_run_id(self.part.schedule_id, self.occurrence.instant)


def wanted_in(
    timelines: Mapping[int, Sequence[Stretch]], names: Mapping[int, ScheduleName], since: datetime, until: datetime
) -> list[Wanted]:
    """The occurrences in `[since, until)` of schedules by id, the oldest first. `timelines` begin with each one's first
    revision. They are counted before any is made; too many, and a timing that cannot be evaluated, are InvalidInput.
    """
    parts = [
        part
        for schedule_id, stretches in timelines.items()
        for part in _parts(schedule_id, names[schedule_id], stretches, since - _TICK, until - _TICK)
    ]
    _refuse_too_many(parts)
    made: dict[tuple[Timing, datetime, datetime], list[Occurrence]] = {}
    wanted: list[Wanted] = []
    for part in parts:
        alike = (part.timing, part.after, part.until)
        if alike not in made:
            made[alike] = list(occurrences(*alike))
        wanted += [Wanted(part, occurrence) for occurrence in made[alike]]
    wanted.sort(key=lambda each: (each.occurrence.instant, each.part.schedule_id))
    return wanted


def refuse_too_many_runs(runs: int) -> None:
    """Refuses what is more than one backfill makes."""
    if runs > MAX_RUNS:
        raise _too_many(f"{runs:,} runs would be made; one backfill makes at most {MAX_RUNS:,}")


def _parts(
    schedule_id: int, name: ScheduleName, stretches: Sequence[Stretch], after: datetime, until: datetime
) -> Iterable[Part]:
    """What of a timeline is in `(after, until]`, its first stretch extended into the past."""
    for index, stretch in enumerate(stretches):
        begin = after if index == 0 else max(after, stretch.after)
        end = min(until, stretch.until)
        if begin < end:
            yield Part(schedule_id, stretch.revision, _timing(name, stretch), begin, end)


def _timing(name: ScheduleName, stretch: Stretch) -> Timing:
    try:
        return stretch.in_force.timing
    except TimingError as error:
        raise InvalidInput(
            Violation(
                "schedule",
                f"revision {stretch.revision} of {name} cannot be evaluated ({error}); leave it out by naming another"
                " schedule or tenant, or take a range in which another revision was in force",
            )
        ) from error


def _refuse_too_many(parts: Sequence[Part]) -> None:
    counted: dict[tuple[Timing, datetime, datetime], int] = {}
    total, days = 0, 0
    for part in parts:
        alike = (part.timing, part.after, part.until)
        if alike not in counted:
            days += (part.until - part.after).days + 1 if isinstance(part.timing.rule, Cron) else 0
            if days > _MAX_DAYS:
                raise _too_many(f"its schedules' timings have over {_MAX_DAYS:,} days to be counted")
            counted[alike] = count(*alike)
        total += counted[alike]
    if total > MAX_OCCURRENCES:
        raise _too_many(f"there are {total:,} occurrences; one backfill looks through at most {MAX_OCCURRENCES:,}")


def _too_many(problem: str) -> InvalidInput:
    return InvalidInput(Violation("until", f"{problem}; take a shorter range, or name one tenant or schedule"))
