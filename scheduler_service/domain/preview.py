"""Looking ahead: the next occurrences as people read them, and what clock changes do to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice

from scheduler_service.domain.run import EPOCH
from scheduler_service.domain.schedule import InForce, Schedule
from scheduler_service.domain.timing import (
    Occurrence,
    Timing,
    jitter_offset,
    latest_occurrence,
    next_occurrence,
    occurrences,
    zone,
)

# Nearly always the first is enough; `0 0 29 2 *` takes the last.
_BACK = (timedelta(days=8), timedelta(days=400), timedelta(days=3_000))


class Transition(StrEnum):
    """What a clock change does to an occurrence."""

    NONE = "UNSPECIFIED"
    SHIFTED = "SHIFTED"
    FIRST_OF_TWO = "FIRST_OF_TWO"
    SECOND_OF_TWO = "SECOND_OF_TWO"
    OFFSET_CHANGED = "OFFSET_CHANGED"


@dataclass(frozen=True, slots=True)
class PreviewedOccurrence:
    """An occurrence, its zone's offset from UTC at that instant, and when it may start: `instant` plus jitter."""

    occurrence: Occurrence
    time_zone: str
    utc_offset: timedelta
    start_at: datetime
    transition: Transition


def upcoming(schedule: Schedule, count: int) -> list[PreviewedOccurrence]:
    """What a schedule owes next, at most `count` occurrences; the first is its `next_occurrence`. None of one that is
    not armed."""
    if schedule.next_occurrence is None:
        return []
    since = max(schedule.settled_to, schedule.owed_from)
    return previewed(schedule.in_force, since, None, count, schedule_id=schedule.schedule_id)


def previewed(
    in_force: InForce, since: datetime, until: datetime | None, count: int, *, schedule_id: int | None = None
) -> list[PreviewedOccurrence]:
    """The first occurrences in `(since, until]` (default: without end), at most `count`, whether or not it is enabled.
    Jitter is that of the schedule; without one they start at once. Refuses with a TimingError what cannot be
    evaluated."""
    timing = in_force.timing
    since = max(since, EPOCH)
    before = _before(timing, since)
    found: list[PreviewedOccurrence] = []
    for each in islice(occurrences(timing, since, until), count):
        start = each.instant + _jitter(timing, in_force.jitter, each, schedule_id)
        mark = _transition(timing.time_zone, each, before)
        found.append(PreviewedOccurrence(each, timing.time_zone, _offset(timing.time_zone, each), start, mark))
        before = each
    return found


def offset_text(offset: timedelta) -> str:
    """Such as `-04:00`; with seconds only where there are some, as in local mean times (RFC 3339 has no word for
    those)."""
    seconds = round(offset.total_seconds())
    minutes, odd = divmod(abs(seconds), 60)
    text = f"{'-' if seconds < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"
    return f"{text}:{odd:02}" if odd else text


def _transition(time_zone: str, each: Occurrence, before: Occurrence | None) -> Transition:
    if each.shifted:
        return Transition.SHIFTED
    first, second = (each.local.replace(tzinfo=zone(time_zone), fold=fold).utcoffset() for fold in (0, 1))
    # The other way round, the clock leaves the local time out.
    if first is not None and second is not None and first > second:
        return Transition.SECOND_OF_TWO if each.fold else Transition.FIRST_OF_TWO
    if before is not None and _offset(time_zone, each) != _offset(time_zone, before):
        return Transition.OFFSET_CHANGED
    return Transition.NONE


def _before(timing: Timing, since: datetime) -> Occurrence | None:
    """The last occurrence up to `since`."""
    longest = since - EPOCH
    tries = (latest_occurrence(timing, since - min(back, longest), since) for back in _BACK)
    return next((found for found in tries if found is not None), None)


def _offset(time_zone: str, each: Occurrence) -> timedelta:
    offset = each.instant.astimezone(zone(time_zone)).utcoffset()
    assert offset is not None
    return offset


def _jitter(timing: Timing, jitter: timedelta, each: Occurrence, schedule_id: int | None) -> timedelta:
    if schedule_id is None or not jitter:
        return timedelta()
    return jitter_offset(str(schedule_id), jitter, each, next_occurrence(timing, each.instant))
