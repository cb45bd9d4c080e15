"""What a schedule owes when it comes due: what to run, what to record as missed, and where it then stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import Literal

from scheduler_service.domain.timing.instants import (
    count,
    first_occurrence,
    latest_occurrence,
    next_occurrence,
    occurrences,
)
from scheduler_service.domain.timing.model import Occurrence, Timing

ON_TIME = timedelta(seconds=60)
"""An occurrence less late than this is on time, and catch-up does not apply to it."""

MissedReason = Literal["catch_up_none", "catch_up_latest", "outside_window", "set_aside", "remedied"]

_TICK = timedelta(microseconds=1)


class CatchUp(Enum):
    """What becomes of occurrences that are 60 s late or more."""

    NONE = "none"
    """All are missed."""
    LATEST = "latest"
    """At most one run catches up: the latest within the window, and only if no occurrence is due on time
    beside it, for that one is then the latest. The others are missed."""
    ALL = "all"
    """Each within the window is run, oldest first."""


@dataclass(frozen=True, slots=True)
class Due:
    """An occurrence to run now. `late` says that catch-up brought it (60 s late or more)."""

    occurrence: Occurrence
    late: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """A stretch of occurrences that will not run. `first` and `last` are nominal instants, inclusive."""

    first: datetime
    last: datetime
    count: int
    reason: MissedReason


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one look at a schedule decided. `due` and `missed` are in order of time, and everything missed is
    older than everything due."""

    due: tuple[Due, ...]
    missed: tuple[Missed, ...]
    settled_to: datetime
    """The nominal instant of the last occurrence dealt with; never earlier than before."""
    next: Occurrence | None
    """The first occurrence after `settled_to`; already due where the limit cut the settlement short."""


def settle(
    timing: Timing,
    settled_to: datetime,
    now: datetime,
    *,
    catch_up: CatchUp,
    window: timedelta = timedelta(days=1),
    limit: int = 100,
) -> Settlement:
    """Settle what is owed in `(settled_to, now]`; a `now` before `settled_to` owes nothing.

    An occurrence exactly `window` late is still within it. At most `limit` (1 or more) are due in one
    settlement; the rest is left for the next. Memory is bounded by `limit`, however long the stretch.
    """
    missed, resume_at = _missed(timing, settled_to, now, catch_up, window)
    first = first_occurrence(timing, resume_at, now) if missed else next_occurrence(timing, settled_to)
    due = tuple(
        Due(occurrence, late=now - occurrence.instant >= ON_TIME) for occurrence in _due(timing, first, now, limit)
    )
    dealt_with = [settled_to, *(gap.last for gap in missed), *(each.occurrence.instant for each in due)]
    reached = max(dealt_with)
    return Settlement(due, missed, reached, next_occurrence(timing, reached))


def _due(timing: Timing, first: Occurrence | None, now: datetime, limit: int) -> tuple[Occurrence, ...]:
    """Those from `first` up to `now`. Asks the remembered `next_occurrence`: nearly always one is due."""
    if first is None or first.instant > now:
        return ()
    second = next_occurrence(timing, first.instant)
    if second is None or second.instant > now:
        return (first,)
    return (first, *islice(occurrences(timing, first.instant, now), limit - 1))


@lru_cache(maxsize=16_384)
def _missed(
    timing: Timing, settled_to: datetime, now: datetime, catch_up: CatchUp, window: timedelta
) -> tuple[tuple[Missed, ...], datetime]:
    """What is missed, and the instant after which everything is due. Remembered, because after an outage
    many schedules share it."""
    last_late = now - ON_TIME
    oldest = next_occurrence(timing, settled_to)
    if oldest is None or oldest.instant > last_late:
        return (), settled_to
    if catch_up is CatchUp.NONE:
        return stretch(timing, settled_to, last_late, "catch_up_none"), last_late
    last_outside = max(min(now - window - _TICK, last_late), settled_to)
    outside = stretch(timing, settled_to, last_outside, "outside_window")
    if catch_up is CatchUp.ALL:
        return outside, last_outside
    passed_over_to = _before_latest(timing, last_outside, last_late, now)
    return outside + stretch(timing, last_outside, passed_over_to, "catch_up_latest"), passed_over_to


def _before_latest(timing: Timing, last_outside: datetime, last_late: datetime, now: datetime) -> datetime:
    """The end of what `LATEST` passes over: all that is late, or all but the one that is the latest."""
    latest = latest_occurrence(timing, last_outside, now)
    if latest is None or latest.instant > last_late:
        return last_late
    return latest.instant - _TICK


def stretch(timing: Timing, after: datetime, until: datetime, reason: MissedReason) -> tuple[Missed, ...]:
    """All of `(after, until]` as missed: one stretch, or none if nothing is in it."""
    first = first_occurrence(timing, after, until)
    last = latest_occurrence(timing, after, until)
    if first is None or last is None:
        return ()
    return (Missed(first.instant, last.instant, count(timing, after, until), reason),)
