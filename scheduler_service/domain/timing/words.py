"""A schedule's timing as a sentence for people: `At 09:00 on Monday, New York time`.

cron-descriptor writes the pieces. It is given each field in plain values, one piece at a time, because it
says `*/90` as "every 90 minutes", `15,L` as "day 15 and L", and "or" where both day fields must hold.
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache

from cron_descriptor import (  # type: ignore[import-untyped] # ships no types
    DescriptionTypeEnum,
    ExpressionDescriptor,
    Options,
)

from scheduler_service.domain.timing.model import Timing
from scheduler_service.domain.timing.rule import Cron, Every

_UTC_NAMES = {"UTC", "Etc/UTC", "Etc/UCT", "UCT", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal"}
_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
_HOURS = range(24)
_MINUTES = range(60)
_DAYS = range(1, 32)
_MONTHS = range(1, 13)
_WEEKDAYS = range(7)


@lru_cache(maxsize=4096)
def describe(timing: Timing) -> str:
    """One English sentence without a full stop; if its pieces cannot be had, the expression itself."""
    if isinstance(timing.rule, Every):
        return _interval(timing.rule.period, timing.phase)
    try:
        words = f"{_time_of_day(timing.rule)}{_days(timing.rule)}{_months(timing.rule)}"
    except Exception:  # cron-descriptor raises its own and others; a sentence must not stop a schedule
        words = f"on the schedule {timing.rule.text.strip()}"
    return f"{words[0].upper()}{words[1:]}, {_place(timing.time_zone)}"


def _interval(period: timedelta, phase: timedelta) -> str:
    seconds = int(period.total_seconds())
    unit, size = next((unit, size) for unit, size in _UNITS if seconds % size == 0)
    number = seconds // size
    every = f"Every {unit}" if number == 1 else f"Every {number} {unit}s"
    return f"{every}, shifted by {phase.total_seconds():g} s" if phase else every


def _place(time_zone: str) -> str:
    if time_zone in _UTC_NAMES:
        return "UTC"
    if re.fullmatch(r"Etc/GMT[+-][0-9]+", time_zone):
        # The sign in these names is the opposite of what people read, so the offset is said instead.
        return f"UTC{-int(time_zone.removeprefix('Etc/GMT')):+03d}:00"
    return f"{time_zone.rsplit('/', 1)[-1].replace('_', ' ')} time"


def _time_of_day(cron: Cron) -> str:
    minutes, hours = _plain(cron.minutes, _MINUTES), _plain(cron.hours, _HOURS)
    if len(cron.minutes) == 1 and "-" not in hours:
        return _piece(f"{minutes} {hours} * * *", DescriptionTypeEnum.TIMEOFDAY)
    every_minute = _piece(f"{minutes} * * * *", DescriptionTypeEnum.MINUTES)
    if hours == "*":
        return every_minute
    if len(cron.minutes) == 1:
        return f"{every_minute or 'every hour on the hour'}, {_hours(cron, hours)}"
    return f"{every_minute}, {_hours(cron, hours)}"


def _hours(cron: Cron, hours: str) -> str:
    if hours.isdigit() or "-" in hours:
        return f"between {cron.hours[0]:02}:00 and {cron.hours[-1]:02}:59"
    return f"in the hours of {_joined([f'{hour:02}:00' for hour in cron.hours])}"


def _days(cron: Cron) -> str:
    by_day, by_weekday = _days_of_month(cron), _weekdays(cron)
    either = not (cron.day_star or cron.weekday_star)
    every_day = len(cron.days) == len(_DAYS)
    every_weekday = len(cron.weekdays) == len(_WEEKDAYS)
    if (either and (every_day or every_weekday)) or (every_day and every_weekday):
        return " every day" if len(cron.hours) < len(_HOURS) else ""
    if every_day:
        return f" {by_weekday}"
    if every_weekday:
        return f" {by_day}"
    return f" {by_day} or {by_weekday}" if either else f" {by_weekday}, but only {by_day}"


def _days_of_month(cron: Cron) -> str:
    pieces = []
    if cron.days:
        words = _piece(f"0 0 {_plain(cron.days, _DAYS)} * *", DescriptionTypeEnum.DAYOFMONTH)
        pieces.append(
            words.replace("between day", "from day").replace(" and ", " to ") if "between" in words else words
        )
    if cron.last_day:
        pieces.append(_piece("0 0 L * *", DescriptionTypeEnum.DAYOFMONTH))
    return " and ".join(pieces)


def _weekdays(cron: Cron) -> str:
    texts = [f"{weekday}#{nth}" for weekday, nth in cron.nth_weekdays]
    texts += [f"{weekday}L" for weekday in cron.last_weekdays]
    if cron.weekdays:
        texts.insert(0, _plain(cron.weekdays, _WEEKDAYS))
    pieces = [_piece(f"0 0 * * {text}", DescriptionTypeEnum.DAYOFWEEK) for text in texts]
    return " and ".join(piece if piece.startswith("on ") else f"on {piece}" for piece in pieces)


def _months(cron: Cron) -> str:
    months = _plain(cron.months, _MONTHS)
    if months == "*":
        return ""
    words = _piece(f"0 0 * {months} *", DescriptionTypeEnum.MONTH)
    return f" {words}" if words.startswith("in ") else f" in {words}"


def _piece(expression: str, part: DescriptionTypeEnum) -> str:
    options = Options()
    options.verbose = True
    options.use_24hour_time_format = True
    words = ExpressionDescriptor(expression, options).get_description(part)
    return re.sub(r"\bonly (?=on |in )", "", words.removeprefix(", "))


def _plain(values: tuple[int, ...], whole: range) -> str:
    """Values as cron-descriptor says them rightly: `*`, an even step round the clock, a range, or a list."""
    if len(values) == len(whole):
        return "*"
    step = values[1] - values[0] if len(values) > 1 else 0
    is_clock = whole in (_HOURS, _MINUTES) and len(values) * step == len(whole)
    if is_clock and step > 1 and values == tuple(range(values[0], whole.stop, step)):
        return f"*/{step}" if values[0] == 0 else f"{values[0]}/{step}"
    if len(values) > 2 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ",".join(str(value) for value in values)


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
