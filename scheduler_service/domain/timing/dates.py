"""Arithmetic over the fields of a cron rule, by date, on naive local time. Nothing here steps by minutes.

Ranges are half-open, `[first, end)`, and matches fall on whole minutes.
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta

from scheduler_service.domain.timing.rule import Cron

_DAY = timedelta(days=1)
_LEAP_CYCLE = range(2000, 2028)
"""28 years without an exception hold every layout of a year, so what never comes in them never comes."""


def falls_on(cron: Cron, day: date) -> bool:
    """Whether the rule has any time on this date: both day fields where one starts with `*`, else either."""
    if day.month not in cron.months:
        return False
    by_day, by_weekday = _by_day(cron, day), _by_weekday(cron, day)
    if cron.day_star or cron.weekday_star:
        return by_day and by_weekday
    return by_day or by_weekday


def ever_comes(cron: Cron) -> bool:
    """Whether any date satisfies the rule (30 February does not). Looks at 28 years at most."""
    months = ((year, month) for year in _LEAP_CYCLE for month in cron.months)
    return any(
        falls_on(cron, date(year, month, day))
        for year, month in months
        for day in range(1, monthrange(year, month)[1] + 1)
    )


def count_matches(cron: Cron, first: datetime, end: datetime) -> int:
    """How many local times of `[first, end)` match: whole days are multiplied, only dates are stepped."""
    if first >= end:
        return 0
    whole_days = sum(falls_on(cron, day) for day in _dates(first.date(), end.date()))
    total = whole_days * cron.times_a_day
    if falls_on(cron, first.date()):
        total -= _times_before(cron, first)
    if falls_on(cron, end.date()):
        total += _times_before(cron, end)
    return total


def first_match(cron: Cron, first: datetime, end: datetime) -> datetime | None:
    """The first matching local time of `[first, end)`."""
    day = first.date()
    while day <= end.date():
        bound = first if day == first.date() else datetime.combine(day, time())
        found = _first_time(cron, day, bound) if falls_on(cron, day) else None
        if found is not None:
            return found if found < end else None
        day += _DAY
    return None


def last_match(cron: Cron, first: datetime, end: datetime) -> datetime | None:
    """The last matching local time of `[first, end)`."""
    day = end.date()
    while day >= first.date():
        bound = end if day == end.date() else datetime.combine(day + _DAY, time())
        found = _last_time(cron, day, bound) if falls_on(cron, day) else None
        if found is not None:
            return found if found >= first else None
        day -= _DAY
    return None


def _by_day(cron: Cron, day: date) -> bool:
    return day.day in cron.days or (cron.last_day and day.day == monthrange(day.year, day.month)[1])


def _by_weekday(cron: Cron, day: date) -> bool:
    weekday = day.isoweekday() % 7
    if weekday in cron.weekdays or (weekday, (day.day + 6) // 7) in cron.nth_weekdays:
        return True
    return weekday in cron.last_weekdays and day.day + 7 > monthrange(day.year, day.month)[1]


def _dates(first: date, end: date) -> Iterator[date]:
    return (first + timedelta(days=n) for n in range((end - first).days))


def _times_before(cron: Cron, bound: datetime) -> int:
    """How many of the rule's times of day come before the bound's time of day."""
    before = bisect_left(cron.hours, bound.hour) * len(cron.minutes)
    if bound.hour in cron.hours:
        minute = bound.minute if bound.second == bound.microsecond == 0 else bound.minute + 1
        before += bisect_left(cron.minutes, minute)
    return before


def _first_time(cron: Cron, day: date, bound: datetime) -> datetime | None:
    before = _times_before(cron, bound)
    return None if before == cron.times_a_day else _time_of_day(cron, day, before)


def _last_time(cron: Cron, day: date, bound: datetime) -> datetime | None:
    before = cron.times_a_day if bound.date() > day else _times_before(cron, bound)
    return None if before == 0 else _time_of_day(cron, day, before - 1)


def _time_of_day(cron: Cron, day: date, place: int) -> datetime:
    """The rule's time of day of this place, counted from 0."""
    hour, minute = divmod(place, len(cron.minutes))
    return datetime.combine(day, time(cron.hours[hour], cron.minutes[minute]))
