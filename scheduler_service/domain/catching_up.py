"""What resuming catches up of the time that somebody was paused: counted by arithmetic first, then carried out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

from scheduler_service.domain.run import TriggerSource, scheduled_run_id
from scheduler_service.domain.settling import OwedRun
from scheduler_service.domain.timing import (
    CatchUp,
    Missed,
    MissedReason,
    Occurrence,
    Timing,
    count,
    jitter_offset,
    latest_occurrence,
    next_occurrence,
    occurrences,
)
from scheduler_service.domain.timing.catch_up import ON_TIME

MOST_RUNS = 10_000
"""What one call may catch up."""
_TICK = timedelta(microseconds=1)

Span = tuple[datetime, datetime]
"""The time `(after, until]`."""


@dataclass(frozen=True, slots=True)
class CatchUpPlan:
    """How many runs catching up makes, from which nominal instant to which, and how many occurrences it records as
    missed."""

    runs: int = 0
    missed: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def __add__(self, other: CatchUpPlan) -> CatchUpPlan:
        firsts = [each.first for each in (self, other) if each.first is not None]
        lasts = [each.last for each in (self, other) if each.last is not None]
        return CatchUpPlan(
            self.runs + other.runs, self.missed + other.missed, min(firsts, default=None), max(lasts, default=None)
        )

    def times(self, schedules: int) -> CatchUpPlan:
        """The plan of so many schedules that are alike."""
        return CatchUpPlan(self.runs * schedules, self.missed * schedules, self.first, self.last)

    def to_document(self, policy: CatchUp) -> dict[str, Any]:
        """What was caught up by a policy, for the audit trail; nothing where nothing was asked for."""
        if policy is CatchUp.NONE:
            return {}
        return {"catch_up": policy.name, "caught_up_runs": self.runs, "missed_occurrences": self.missed}


NOTHING = CatchUpPlan()


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What is decided for a timing: each occurrence within `spans` is run, and `missed` is recorded."""

    timing: Timing
    spans: tuple[Span, ...]
    missed: tuple[Missed, ...]

    def plan(self) -> CatchUpPlan:
        """The same in numbers, at a cost that grows with days rather than occurrences."""
        firsts = [found.instant for span in self.spans if (found := _first(self.timing, span)) is not None]
        lasts = [found.instant for span in self.spans if (found := latest_occurrence(self.timing, *span)) is not None]
        return CatchUpPlan(
            runs=sum(count(self.timing, *span) for span in self.spans),
            missed=sum(gap.count for gap in self.missed),
            first=min(firsts, default=None),
            last=max(lasts, default=None),
        )

    def without(self, remedied: Collection[datetime]) -> CaughtUp:
        """The same, but for occurrences that others have run, or are running, in its place: those are missed."""
        passed_over = [Missed(each, each, 1, "remedied") for each in sorted(remedied) if self._holds(each)]
        if not passed_over:
            return self
        # Up to each of them and after it, and on from the last.
        ends = [None, *(gap.first for gap in passed_over), None]
        cut = [
            span
            for after, before in pairwise(ends)
            for span in _parts(self.spans, after, None if before is None else before - _TICK)
            if _first(self.timing, span)
        ]
        return CaughtUp(self.timing, tuple(cut), (*self.missed, *passed_over))

    def _holds(self, instant: datetime) -> bool:
        """Whether an occurrence of then is to be run."""
        within = any(after < instant <= until for after, until in self.spans)
        return within and _first(self.timing, (instant - _TICK, instant)) is not None

    def runs(self, schedule_id: int, jitter: timedelta, now: datetime) -> Iterator[OwedRun]:
        """The runs of one schedule, oldest first. Those less than 60 s late are on time."""
        for span in self.spans:
            for occurrence in _within(self.timing, span):
                instant = occurrence.instant
                offset = timedelta()
                if jitter:
                    following = next_occurrence(self.timing, instant)
                    offset = jitter_offset(str(schedule_id), jitter, occurrence, following)
                late = now - instant >= ON_TIME
                yield OwedRun(
                    run_id=scheduled_run_id(schedule_id, instant),
                    trigger=TriggerSource.CATCH_UP if late else TriggerSource.SCHEDULE,
                    occurrence=occurrence,
                    run_after=instant + offset,
                )


# Remembered, because the schedules of a job that share a timing share what they catch up.
@lru_cache(maxsize=4_096)
def catch_up(timing: Timing, owing: tuple[Span, ...], now: datetime, policy: CatchUp, window: timedelta) -> CaughtUp:
    """What becomes of the occurrences in `owing`, which is in order and ends by `now`, under LATEST or ALL. As where no
    scheduler was there: those less than 60 s late are run; of the others, what the policy says, and one that is exactly
    `window` late is within it."""
    last_late = now - ON_TIME
    last_outside = min(now - max(window, timedelta()) - _TICK, last_late)
    outside = _parts(owing, None, last_outside)
    late = _parts(owing, last_outside, last_late)
    on_time = tuple(span for span in _parts(owing, last_late, None) if _first(timing, span))
    missed = _missed(timing, outside, "outside_window")
    if policy is CatchUp.ALL:
        return CaughtUp(timing, tuple(span for span in late if _first(timing, span)) + on_time, missed)
    latest = None
    if not on_time:
        found = (latest_occurrence(timing, *span) for span in reversed(late))
        latest = next((each.instant for each in found if each is not None), None)
    if latest is None:
        return CaughtUp(timing, on_time, missed + _missed(timing, late, "catch_up_latest"))
    older = _parts(late, None, latest - _TICK)
    return CaughtUp(timing, ((latest - _TICK, latest),), missed + _missed(timing, older, "catch_up_latest"))


def passed_over(timing: Timing, owing: Span) -> CaughtUp:
    """Nothing of it is run, however late it is."""
    return CaughtUp(timing, (), _missed(timing, (owing,), "catch_up_none"))


def _parts(spans: Sequence[Span], after: datetime | None, until: datetime | None) -> tuple[Span, ...]:
    """What of the spans lies after one instant, and up to another."""
    cut = (
        (start if after is None else max(start, after), end if until is None else min(end, until))
        for start, end in spans
    )
    return tuple((start, end) for start, end in cut if start < end)


def _within(timing: Timing, span: Span) -> Iterable[Occurrence]:
    """Asks the remembered `next_occurrence` first: of LATEST, it is one for each of many schedules."""
    first = _first(timing, span)
    if first is None:
        return ()
    if _first(timing, (first.instant, span[1])) is None:
        return (first,)
    return occurrences(timing, *span)


def _first(timing: Timing, span: Span) -> Occurrence | None:
    found = next_occurrence(timing, span[0])
    return found if found is not None and found.instant <= span[1] else None


def _missed(timing: Timing, spans: Sequence[Span], reason: MissedReason) -> tuple[Missed, ...]:
    found: list[Missed] = []
    for span in spans:
        first, last = _first(timing, span), latest_occurrence(timing, *span)
        if first is not None and last is not None:
            found.append(Missed(first.instant, last.instant, count(timing, *span), reason))
    return tuple(found)
