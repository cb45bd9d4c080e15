"""The oracle's own reading of expressions: it shares no code with the engine, and takes only what is right.

An expression becomes the minutes of a day and a question to ask of each date. Nothing is refused with care: what it
does not understand ends in an AssertionError or a ValueError.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
SHORTCUTS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

DateTest = Callable[[date], bool]


@dataclass(frozen=True)
class CronRule:
    """What five fields mean: `minutes` are of the day, from 0 to 1439."""

    minutes: frozenset[int]
    falls_on: DateTest
    literal: bool
    """Minute or hour starts with `*`: whatever the clock shows, and nothing else, counts."""

    def matches(self, local: datetime) -> bool:
        return local.hour * 60 + local.minute in self.minutes and self.falls_on(local.date())


@dataclass(frozen=True)
class EveryRule:
    """`@every`: its period in seconds."""

    period: int


def read(expression: str) -> CronRule | EveryRule:
    text = expression.lower().strip()
    if text.startswith("@every"):
        parts = re.findall(r"(\d+)([dhms])", text.removeprefix("@every"))
        return EveryRule(sum(int(number) * SECONDS[unit] for number, unit in parts))
    minute, hour, day, month, weekday = SHORTCUTS.get(text, text).split()
    minutes, hours = _numbers(minute, 0, 59), _numbers(hour, 0, 23)
    return CronRule(
        minutes=frozenset(h * 60 + m for h in hours for m in minutes),
        falls_on=_date_test(day, month, weekday),
        literal=minute[0] == "*" or hour[0] == "*",
    )


def _date_test(day: str, month: str, weekday: str) -> DateTest:
    months = _numbers(_numbered(month, MONTHS, 1), 1, 12)
    on_day = _any_of([_day_test(item) for item in day.split(",")])
    on_weekday = _any_of([_weekday_test(item) for item in _numbered(weekday, WEEKDAYS, 0).split(",")])
    if day[0] == "*" or weekday[0] == "*":
        return lambda when: when.month in months and on_day(when) and on_weekday(when)
    return lambda when: when.month in months and (on_day(when) or on_weekday(when))


def _any_of(tests: list[DateTest]) -> DateTest:
    return lambda when: any(test(when) for test in tests)


def _day_test(item: str) -> DateTest:
    if item == "l":
        return lambda when: (when + timedelta(days=1)).day == 1
    days = _numbers(item, 1, 31)
    return lambda when: when.day in days


def _weekday_test(item: str) -> DateTest:
    """Looks weekdays up in the month as a calendar prints it, a row for each week."""
    if item[-1] == "l":
        return lambda when: when.day == _days_of(when, int(item[:-1]))[-1]
    if "#" in item:
        weekday, nth = (int(number) for number in item.split("#"))
        return lambda when: _days_of(when, weekday)[nth - 1 : nth] == [when.day]
    # `*` ends with Saturday; 7, where it is written, is Sunday.
    weekdays = {number % 7 for number in _numbers(item, 0, 6)}
    return lambda when: any(when.day in _days_of(when, weekday) for weekday in weekdays)


def _days_of(when: date, weekday: int) -> list[int]:
    column = (weekday - 1) % 7  # calendar's weeks begin with Monday
    return [week[column] for week in calendar.monthcalendar(when.year, when.month) if week[column]]


def _numbers(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in text.split(","):
        form = re.fullmatch(r"(?:(\*)|(\d+)(?:-(\d+))?)(?:/(\d+))?", item)
        assert form is not None, f"the oracle does not read {item}"
        star, first, last, step = form.groups()
        number = low if star else int(first)
        to_the_end = star or (step and last is None)
        stop = high if to_the_end else int(last or first)
        while number <= stop:
            found.add(number)
            number += int(step or 1)
    return found


def _numbered(text: str, names: list[str], first: int) -> str:
    for number, name in enumerate(names, start=first):
        text = text.replace(name, str(number))
    return text
