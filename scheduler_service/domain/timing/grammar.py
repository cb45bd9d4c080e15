"""Reads a schedule's expression: five cron fields, `@daily` and its like, or `@every 90s`.

This grammar stands before croniter, because croniter 7.0.0 reads `9-9` as every hour, `5L` as an error and
`R` as random, and gives up the day of month in `15 * 1#2`. It hands croniter plain lists only. Every
expression is read in a number of steps that its length (256 bytes at most) bounds.
"""

from __future__ import annotations

import difflib
import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

from scheduler_service.domain.timing.dates import ever_comes
from scheduler_service.domain.timing.errors import TimingError
from scheduler_service.domain.timing.fields import DAY, HOUR, MINUTE, MONTH, WEEKDAY, Kind, read_field
from scheduler_service.domain.timing.rule import Cron, Every

MAX_BYTES = 256
SHORTEST_PERIOD = timedelta(seconds=1)
LONGEST_PERIOD = timedelta(days=366)

_SHORTCUTS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_KINDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)
_PERIOD = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_EVERY_WEEKDAY = tuple(range(7))


@lru_cache(maxsize=16_384)
def parse(expression: str) -> Cron | Every:
    """Read an expression, or refuse it with a `TimingError` that says what to write instead."""
    _refuse_unreadable(expression)
    words = expression.split()
    if words[0].startswith("@"):
        return _read_shortcut(expression, [word.lower() for word in words])
    if "=" in words[0]:
        raise TimingError("expression", f"{words[0][:64]} is not read", "write the zone in time_zone instead")
    return _read_cron(expression, words)


def _refuse_unreadable(expression: str) -> None:
    if len(expression.encode(errors="replace")) > MAX_BYTES:
        raise TimingError(
            "expression",
            f"it is longer than {MAX_BYTES} bytes",
            "use ranges and steps, or several schedules, instead",
        )
    odd = re.search(r"[^ \t!-~]", expression)
    if odd:
        raise TimingError("expression", f"it contains {odd[0]!a}", "write ASCII letters, digits and blanks only")
    if not expression.strip():
        raise TimingError("expression", "it is empty", "write five fields such as 0 9 * * 1, or @every 90s")


def _read_shortcut(expression: str, words: list[str]) -> Cron | Every:
    name = words[0]
    if name == "@every":
        return _read_every(expression, words[1:])
    if name == "@reboot":
        raise TimingError(
            "expression",
            "@reboot has no instant that could be owed",
            "let the service trigger the job when it starts, or write @every with an interval, instead",
        )
    if name.startswith("@every"):
        raise TimingError("expression", f"{name} is not known", f"write @every {name[6:] or '90s'} instead")
    if name not in _SHORTCUTS or len(words) > 1:
        near = difflib.get_close_matches(name, _SHORTCUTS, n=1) or ["@daily"]
        raise TimingError("expression", f"{' '.join(words)} is not known", f"write {near[0]}, or five fields, instead")
    return _read_cron(expression, _SHORTCUTS[name].split())


def _read_every(expression: str, words: list[str]) -> Every:
    match = _PERIOD.fullmatch(words[0]) if len(words) == 1 else None
    if match is None:
        raise TimingError(
            "interval",
            f"{' '.join(words) or 'nothing'} is not a length of time",
            "write whole numbers with d, h, m or s, in that order, such as 90s or 1h30m",
        )
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < SHORTEST_PERIOD.total_seconds():
        raise TimingError("interval", f"{words[0]} is shorter than a second", "write 1s or more instead")
    if total > LONGEST_PERIOD.total_seconds():
        raise TimingError("interval", f"{words[0]} is longer than 366 days", "write 366d or less instead")
    return Every(expression, timedelta(seconds=total))


def _read_cron(expression: str, words: list[str]) -> Cron:
    if len(words) != len(_KINDS):
        raise _wrong_number_of_fields(len(words))
    minute, hour, day, month, weekday = map(read_field, _KINDS, words)
    cron = Cron(
        text=expression,
        minutes=tuple(sorted(minute.values)),
        hours=tuple(sorted(hour.values)),
        days=tuple(sorted(day.values)),
        months=tuple(sorted(month.values)),
        weekdays=tuple(sorted(weekday.values)),
        last_day=day.last_day,
        nth_weekdays=tuple(sorted(weekday.nth_weekdays)),
        last_weekdays=tuple(sorted(weekday.last_weekdays)),
        minute_star=minute.star,
        hour_star=hour.star,
        day_star=day.star,
        weekday_star=weekday.star,
    )
    forms = tuple(_normal_form(each) for each in _alternatives(cron) if ever_comes(each))
    if not forms:
        raise _never_comes(cron, words)
    return replace(cron, forms=forms)


def _wrong_number_of_fields(number: int) -> TimingError:
    if number in (6, 7):
        return TimingError(
            "expression",
            f"it has {number} fields, and neither seconds nor years are read",
            "write five fields (minute hour day-of-month month day-of-week), or @every 10s, instead",
        )
    return TimingError(
        "expression",
        f"it has {number} {'field' if number == 1 else 'fields'}",
        "write five fields (minute hour day-of-month month day-of-week), such as 0 9 * * 1",
    )


def _never_comes(cron: Cron, words: list[str]) -> TimingError:
    longest = max(monthrange(2000, month)[1] for month in cron.months)
    reachable = cron.last_day or any(day <= longest for day in cron.days)
    problem = "no month has these days on these weekdays" if reachable else "none of these months has that day"
    return TimingError(
        "day of week" if reachable else "day of month",
        f"the date of {' '.join(words)} never comes: {problem}",
        "for a job that runs only by hand, declare it without a schedule and trigger it",
    )


def _alternatives(cron: Cron) -> Iterator[Cron]:
    """The rule as a union of rules in which all fields must hold.

    Where either day field starts with `*` both hold (Debian's rule), else either suffices. Plain weekdays
    and those with # or L are apart, because croniter cannot mix them.
    """
    either = not (cron.day_star or cron.weekday_star)
    plain = replace(cron, nth_weekdays=(), last_weekdays=(), weekday_star=True)
    special = replace(cron, weekdays=(), weekday_star=True)
    if either:
        every_day = tuple(range(DAY.low, DAY.high + 1))
        yield replace(plain, weekdays=_EVERY_WEEKDAY)
        plain, special = replace(plain, days=every_day), replace(special, days=every_day)
    if cron.weekdays:
        yield plain
    if cron.nth_weekdays or cron.last_weekdays:
        yield special


def _normal_form(cron: Cron) -> str:
    days = [str(day) for day in cron.days] + ["l"] * cron.last_day
    weekdays = (
        [str(weekday) for weekday in cron.weekdays]
        + [f"{weekday}#{nth}" for weekday, nth in cron.nth_weekdays]
        + [f"l{weekday}" for weekday in cron.last_weekdays]
    )
    return " ".join(
        (
            _listed(cron.minutes, MINUTE),
            _listed(cron.hours, HOUR),
            "*" if len(cron.days) == DAY.high else ",".join(days),
            _listed(cron.months, MONTH),
            "*" if len(cron.weekdays) == len(_EVERY_WEEKDAY) else ",".join(weekdays),
        )
    )


def _listed(values: tuple[int, ...], kind: Kind) -> str:
    if len(values) == kind.high - kind.low + 1:
        return "*"
    return ",".join(str(value) for value in values)
