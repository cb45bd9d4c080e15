"""A schedule's timing as a sentence for people: `At 09:00 on Monday, New York time`.

cron-descriptor writes weekdays and months. It is given plain values, one piece at a time, because it says `*/90` as
"every 90 minutes", `15,L` as "day 15 and L", and "or" where both day fields must hold. Times and days of the month are
written here: few as they are, many as their rhythm.
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

_UTC_NAMES = {"UCT", "UTC", "Universal", "Zulu", "GMT", "GMT0", "GMT+0", "GMT-0", "Greenwich"}
_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
_FEW = 4
"""So many times of a day, or values of a field, are listed rather than described."""


@lru_cache(maxsize=4096)
def describe(timing: Timing) -> str:
    """One English sentence without a full stop; if its pieces cannot be had, the expression itself."""
    if isinstance(timing.rule, Every):
        return _interval(timing.rule.period, timing.phase)
    try:
        words = f"{_times(timing.rule)}{_days(timing.rule)}"
    except Exception:  # cron-descriptor raises its own and others; a sentence must not stop a schedule
        words = f"on the schedule {timing.rule.text.strip()}"
    return f"{words[0].upper()}{words[1:]}, {_place(timing.time_zone)}"


def _interval(period: timedelta, phase: timedelta) -> str:
    every = f"Every {_length(period).removeprefix('1 ')}"
    return f"{every}, shifted by {_length(phase)}" if phase else every


def _length(length: timedelta) -> str:
    seconds = length.total_seconds()
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds % size == 0), _UNITS[-1])
    return _counted(seconds / size, unit)


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def _place(time_zone: str) -> str:
    if time_zone.removeprefix("Etc/") in _UTC_NAMES:
        return "UTC"
    if re.fullmatch(r"Etc/GMT[+-][0-9]+", time_zone):
        # The sign in these names is the opposite of what people read, so the offset is said instead.
        return f"UTC{-int(time_zone.removeprefix('Etc/GMT')):+03d}:00"
    return f"{time_zone.rsplit('/', 1)[-1].replace('_', ' ')} time"


def _times(cron: Cron) -> str:
    if cron.times_a_day <= _FEW:
        return _at_times(cron)
    if len(cron.minutes) == 1:
        return _once_an_hour(cron, cron.minutes[0])
    rhythm = _minutes(cron)
    if len(cron.hours) == 24:
        return rhythm
    if _is_run(cron.hours):
        return f"{rhythm} from {_clock(cron.hours[0], cron.minutes[0])} to {_clock(cron.hours[-1], cron.minutes[-1])}"
    step = _step(cron.hours, 24)
    if step and len(cron.hours) > _FEW:
        return f"{rhythm} in every {_ordinal(step)} hour from {_clock(cron.hours[0])}"
    return f"{rhythm} in the hours of {_joined([_clock(hour) for hour in cron.hours])}"


def _at_times(cron: Cron) -> str:
    return f"at {_joined([_clock(hour, minute) for hour in cron.hours for minute in cron.minutes])}"


def _once_an_hour(cron: Cron, minute: int) -> str:
    step = _step(cron.hours, 24)
    if step == 1:
        return f"at {_counted(minute, 'minute')} past the hour" if minute else "every hour"
    if step:
        start = f" from {_clock(cron.hours[0], minute)}" if cron.hours[0] or minute else ""
        return f"every {step} hours{start}"
    if _is_run(cron.hours):
        return f"every hour from {_clock(cron.hours[0], minute)} to {_clock(cron.hours[-1], minute)}"
    return _at_times(cron)


def _minutes(cron: Cron) -> str:
    """How several minutes of an hour follow each other."""
    minutes, step = cron.minutes, _step(cron.minutes, 60)
    if step == 1 or (len(cron.hours) == 1 and _is_run(minutes)):
        return "every minute"
    within_hours = len(cron.hours) < 24 and _is_run(cron.hours)
    if step and (minutes[0] == 0 or within_hours):
        return f"every {step} minutes"
    if step and len(minutes) > _FEW:
        return f"every {step} minutes from {_counted(minutes[0], 'minute')} past the hour"
    if _is_run(minutes) and len(minutes) > _FEW:
        return f"at minutes {minutes[0]} to {minutes[-1]} past the hour"
    return f"at {_joined(minutes)} minutes past the hour"


def _days(cron: Cron) -> str:
    by_day, by_weekday, months = _days_of_month(cron), _weekdays(cron), _months(cron)
    either = not (cron.day_star or cron.weekday_star)
    every_day = len(cron.days) == 31
    every_weekday = len(cron.weekdays) == 7
    if (either and (every_day or every_weekday)) or (every_day and every_weekday):
        return f"{'' if _is_rhythm(cron) and not months else ' every day'}{months}"
    if every_day:
        return f"{_of_the_month(by_weekday, months)}{months}"
    if every_weekday:
        return f"{_of_the_month(by_day, months)}{months}"
    together = f"{by_day} or{by_weekday}" if either else f"{by_weekday}, but only{by_day}"
    return f"{_of_the_month(together, months)}{',' * bool(months)}{months}"


def _of_the_month(words: str, months: str) -> str:
    """Says of which month, where no month is named."""
    return words.replace("~", "" if months else " of the month")


def _days_of_month(cron: Cron) -> str:
    days, step = cron.days, _step(cron.days, 31)
    if step and step > 1 and len(days) > _FEW and not cron.last_day:
        return f" on every {_ordinal(step)} day~ from day {days[0]}"
    if len(days) > 2 and _is_run(days):
        pieces = [f"days {days[0]} to {days[-1]}"]
    else:
        pieces = [f"{'day' if len(days) == 1 else 'days'} {_joined(days)}"] if days else []
    return f" on {_joined([*pieces, *['the last day'] * cron.last_day])}~"


def _weekdays(cron: Cron) -> str:
    texts = [f"{weekday}#{nth}" for weekday, nth in cron.nth_weekdays]
    texts += [f"{weekday}L" for weekday in cron.last_weekdays]
    special = [_piece(f"0 0 * * {text}", DescriptionTypeEnum.DAYOFWEEK) for text in texts]
    special = [words.removeprefix("on ").removesuffix(" of the month") for words in special]
    pieces = [*_plain_weekdays(cron.weekdays), *special]
    return f" on {_joined(pieces)}{'~' * bool(special)}"


def _plain_weekdays(weekdays: tuple[int, ...]) -> list[str]:
    """The names, Monday first; three and more in a row as a stretch."""
    monday_first = tuple(sorted(weekday or 7 for weekday in weekdays))
    for days in (monday_first, weekdays):
        if len(days) > 2 and _is_run(days):
            first, last = _name(days[0]), _name(days[-1])
            return [f"{first} through {last}"]
    return [_name(day) for day in monday_first]


def _name(weekday: int) -> str:
    return _piece(f"0 0 * * {weekday}", DescriptionTypeEnum.DAYOFWEEK).removeprefix("on ")


def _months(cron: Cron) -> str:
    if len(cron.months) == 12:
        return ""
    months = cron.months
    text = f"{months[0]}-{months[-1]}" if len(months) > 2 and _is_run(months) else ",".join(map(str, months))
    words = _piece(f"0 0 * {text} *", DescriptionTypeEnum.MONTH)
    return f" {words}" if words.startswith("in ") else f" in {words}"


def _piece(expression: str, part: DescriptionTypeEnum) -> str:
    options = Options()
    options.verbose = True
    options.use_24hour_time_format = True
    words = ExpressionDescriptor(expression, options).get_description(part)
    return re.sub(r"\bonly (?=on |in )", "", words.removeprefix(", "))


def _is_rhythm(cron: Cron) -> bool:
    """Whether the words for its times go round the clock, so that `every day` is understood."""
    if cron.times_a_day <= _FEW:
        return False
    return len(cron.hours) == 24 or (_step(cron.hours, 24) is not None and _step(cron.hours, 24) != 1)


def _is_run(values: tuple[int, ...]) -> bool:
    return values == tuple(range(values[0], values[-1] + 1))


def _step(values: tuple[int, ...], size: int) -> int | None:
    """The step, if the values are one from the first to the field's end. On a clock (24, 60) it must come round."""
    if len(values) < 2:
        return None
    step = values[1] - values[0]
    low = 1 if size == 31 else 0
    reaches_end = values == tuple(range(values[0], low + size, step)) and values[0] < low + step
    return step if reaches_end and (size == 31 or size % step == 0) else None


def _clock(hour: int, minute: int = 0) -> str:
    return f"{hour:02}:{minute:02}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number not in (11, 12, 13) else 0, "th")
    return f"{number}{ending}"


def _joined(words: list[str] | tuple[int, ...]) -> str:
    *before, last = map(str, words)
    if len(before) < 2:
        return " and ".join([*before, last])
    return f"{', '.join(before)}, and {last}"
