"""A brute-force oracle for occurrences: walks every minute and looks at the wall clock.

It shares no code with the engine: its own matcher, no spans, no arithmetic. It reads only expressions of
numbers, `*`, ranges, steps and lists, and day fields of which at least one is `*`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
LONGEST_REPEAT = timedelta(hours=30)


def _values(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in text.split(","):
        body, _, step = item.partition("/")
        first, _, last = (f"{low}-{high}" if body == "*" else body).partition("-")
        stop = int(last) if last else (high if step else int(first))
        found |= set(range(int(first), stop + 1, int(step or 1)))
    return found


def matcher(expression: str) -> Callable[[datetime], bool]:
    minute, hour, day, month, weekday = expression.split()
    assert "*" in (day, weekday)
    minutes, hours = _values(minute, 0, 59), _values(hour, 0, 23)
    days, months = _values(day, 1, 31), _values(month, 1, 12)
    weekdays = {number % 7 for number in _values(weekday, 0, 6)}

    def matches(local: datetime) -> bool:
        return (
            local.minute in minutes
            and local.hour in hours
            and local.day in days
            and local.month in months
            and (local.weekday() + 1) % 7 in weekdays
        )

    return matches


def wall_clock(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Each minute of `(start, end]` in UTC with the naive local time that the clock shows."""
    instant = start + MINUTE
    while instant <= end:
        yield instant, instant.astimezone(zone).replace(tzinfo=None, fold=0)
        instant += MINUTE


def owed(
    expression: str, zone: ZoneInfo, after: datetime, until: datetime, *, skip_gaps: bool, both: bool
) -> list[datetime]:
    """The instants in `(after, until]`, both whole minutes."""
    matches = matcher(expression)
    literal = expression.startswith("*") or expression.split()[1].startswith("*")
    shown: set[datetime] = set()
    last_shown: datetime | None = None
    found = []
    for instant, local in wall_clock(zone, after.astimezone(UTC) - LONGEST_REPEAT, until):
        again = local in shown
        left_out = False
        missing = local if last_shown is None else last_shown + MINUTE
        while missing < local:
            left_out = left_out or (missing not in shown and matches(missing))
            missing += MINUTE
        by_itself = matches(local) and (not again or literal or both)
        moved_here = left_out and not literal and not skip_gaps
        if (by_itself or moved_here) and instant > after:
            found.append(instant)
        shown.add(local)
        last_shown = local
    return found
