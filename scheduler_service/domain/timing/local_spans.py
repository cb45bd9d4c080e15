"""How local time maps to instants: each zone's days, cut into spans in which the mapping is plain.

A fixed time that the clock leaves out fires at the end of the gap, and one that it shows twice fires at the
first; a rule that follows the clock fires exactly when the clock shows its times. Both follow from asking,
for each stretch of constant offset, which local times belong to it. Transitions may have any size and any
time of day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from scheduler_service.domain.timing.model import GapPolicy, RepeatPolicy, Timing
from scheduler_service.domain.timing.rule import Cron
from scheduler_service.domain.timing.zones import Stretch, stretches

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Span:
    """Local times `[first, end)` whose instants are `local - offset`. Those before `reached` are the
    clock's second showing."""

    first: datetime
    end: datetime
    offset: timedelta
    reached: datetime


@dataclass(frozen=True)
class Gap:
    """Local times `[first, end)` that the clock left out; any of them makes one occurrence at `instant`,
    unless `end`, the first time that the clock shows again, makes it already."""

    first: datetime
    end: datetime
    instant: datetime


def local_spans(rule: Cron, timing: Timing, after: datetime, until: datetime) -> Iterator[Span | Gap]:
    """The spans and gaps whose instants are in `(after, until]` (naive UTC), in order."""
    shifts = timing.gap is GapPolicy.SHIFT and not rule.follows_clock
    both = timing.repeat is RepeatPolicy.BOTH or rule.follows_clock
    for stretch in stretches(timing.time_zone, after, until):
        if shifts and stretch.reached < stretch.local_start and after < stretch.start <= until:
            yield Gap(stretch.reached, stretch.local_start, stretch.start)
        span = _span(stretch, both, after, until)
        if span.first < span.end:
            yield span


def _span(stretch: Stretch, both: bool, after: datetime, until: datetime) -> Span:
    first = stretch.local_start if both else max(stretch.local_start, stretch.reached)
    return Span(
        max(first, _minute_after(after + stretch.offset)),
        min(stretch.local_end, _minute_after(until + stretch.offset)),
        stretch.offset,
        stretch.reached,
    )


def _minute_after(local: datetime) -> datetime:
    """The first whole minute after a local time; matches fall on whole minutes."""
    return local.replace(second=0, microsecond=0) + _MINUTE
