"""One field of a cron expression: lists of numbers, names, ranges, steps, and the forms with L and #."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from scheduler_service.domain.timing.errors import TimingError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True)
class Kind:
    """Which of the five fields. `high` is the greatest number that may be written."""

    part: str
    low: int
    high: int
    names: Mapping[str, int] = field(default_factory=dict)

    def refuse(self, problem: str, instead: str) -> NoReturn:
        raise TimingError(self.part, problem, instead)


MINUTE = Kind("minute", 0, 59)
HOUR = Kind("hour", 0, 23)
DAY = Kind("day of month", 1, 31)
MONTH = Kind("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, start=1)})
WEEKDAY = Kind("day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)})


@dataclass(frozen=True)
class Field:
    """What one field allows. Weekday 7 has become 0."""

    values: frozenset[int] = frozenset()
    star: bool = False
    last_day: bool = False
    nth_weekdays: frozenset[tuple[int, int]] = frozenset()
    last_weekdays: frozenset[int] = frozenset()


def read_field(kind: Kind, text: str) -> Field:
    """Read one field; whatever is not understood is a `TimingError` that says what to write instead."""
    items = [_read_item(kind, item) for item in text.split(",")]
    return Field(
        values=frozenset().union(*(item.values for item in items)),
        star=text.startswith("*"),
        last_day=any(item.last_day for item in items),
        nth_weekdays=frozenset().union(*(item.nth_weekdays for item in items)),
        last_weekdays=frozenset().union(*(item.last_weekdays for item in items)),
    )


def _read_item(kind: Kind, item: str) -> Field:
    if not item:
        kind.refuse("the list has an empty entry", "remove the comma that has nothing beside it")
    special = _read_special(kind, item)
    if special is not None:
        return special
    _refuse_other_dialects(kind, item)
    body, slash, step_text = item.partition("/")
    step = _read_step(kind, item, step_text) if slash else 1
    if body == "*":
        return Field(_values(kind, kind.low, _top(kind), step))
    if "-" in body:
        return Field(_read_range(kind, body, step))
    start = _read_value(kind, body)
    if not slash:
        return Field(_values(kind, start, start, 1))
    if kind is WEEKDAY:
        days = ",".join(str(day) for day in range(start, 7, step)) or str(start)
        kind.refuse(f"programs disagree on what {item} means", f"write the days themselves: {days}")
    return Field(_values(kind, start, kind.high, step))


def _read_special(kind: Kind, item: str) -> Field | None:
    """`L` among days of the month; `w#n` and `wL` among weekdays."""
    text = item.lower()
    if kind is DAY and text == "l":
        return Field(last_day=True)
    if kind is WEEKDAY and "#" in text:
        return _read_nth_weekday(item)
    if kind is WEEKDAY and re.fullmatch(r"([0-9]+|[a-z]{3})l", text):
        return Field(last_weekdays=frozenset({_read_value(kind, text[:-1]) % 7}))
    return None


def _read_nth_weekday(item: str) -> Field:
    day_text, _, nth_text = item.partition("#")
    if not re.fullmatch(r"[0-9]+|[A-Za-z]+", day_text):
        WEEKDAY.refuse(
            f"{item} is not one weekday and its number in the month",
            "write each weekday alone, as in 1#2,2#2, instead",
        )
    if not re.fullmatch(r"[1-5]", nth_text):
        WEEKDAY.refuse(
            f"{item} does not name the first to fifth weekday of a month",
            f"write {day_text}#1 to {day_text}#5, or {day_text}L for the last, instead",
        )
    return Field(nth_weekdays=frozenset({(_read_value(WEEKDAY, day_text) % 7, int(nth_text))}))


def _refuse_other_dialects(kind: Kind, item: str) -> None:
    text = item.lower()
    if "?" in text:
        kind.refuse("? is not read", "write * instead")
    if re.match(r"[hr](?![a-z])", text):
        kind.refuse(
            f"{item[0]} (a hashed or random value) is not read",
            f"write a fixed value such as {kind.low + 1}, and give the schedule a jitter to spread its load",
        )
    if kind is DAY and re.fullmatch(r"[0-9]*l?w[0-9]*", text):
        day = re.sub(r"[^0-9]", "", text)
        kind.refuse(
            f"{item} (the nearest weekday) is not read",
            f"write the day itself ({day or 'L'}), or a weekday of the month such as 1#1 or 5L, instead",
        )
    if re.search(r"(?<![a-z])([a-z]{3})?l(?![a-z])" if kind is WEEKDAY else r"(?<![a-z])l(?![a-z])", text):
        _refuse_misplaced_last(kind, item)
    if re.fullmatch(r"\*[0-9]+", text):
        kind.refuse(f"{item} is not read", f"write */{item[1:]} for a step, or {item[1:]} for one value, instead")
    if "#" in text:
        kind.refuse("# belongs to the day of week", "write it in the fifth field, as in 1#2, instead")


def _refuse_misplaced_last(kind: Kind, item: str) -> NoReturn:
    weekday = re.fullmatch(r"l([0-7])|([0-7]|[a-z]{3})l.*", item.lower())
    if kind is WEEKDAY and weekday:
        kind.refuse(f"{item} is not read", f"write {weekday[1] or weekday[2]}L instead")
    if kind is WEEKDAY:
        kind.refuse(f"{item} does not say which weekday", "write 6 for Saturday, or 5L for the last Friday")
    if kind is DAY:
        kind.refuse(f"{item} is not read, only L alone", "write L for the last day of the month instead")
    kind.refuse(f"{item} is not read in this field", "write L as a day of the month, or 5L as a day of week")


def _read_step(kind: Kind, item: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        kind.refuse(f"the step of {item} is not a number", "write one whole number after the /, as in */5")
    if int(text) == 0:
        kind.refuse(f"the step of {item} is 0", "write a step of at least 1 instead")
    return int(text)


def _read_range(kind: Kind, body: str, step: int) -> frozenset[int]:
    low_text, _, high_text = body.partition("-")
    low, high = _read_value(kind, low_text), _read_value(kind, high_text)
    if low > high:
        kind.refuse(f"the range {body} wraps around", f"write {_unwrapped(kind, body, step)} instead")
    return _values(kind, low, high, step)


def _unwrapped(kind: Kind, body: str, step: int) -> str:
    """The same values as a wrapped range, without wrapping, in the words in which it was written."""
    low_text, high_text = body.lower().split("-")
    low, high, top = _read_value(kind, low_text), _read_value(kind, high_text), _top(kind)
    if step > 1:
        size = top - kind.low + 1
        wrapped = range(low, high + size + 1, step)
        return ",".join(str(v) for v in sorted({kind.low + (v - kind.low) % size for v in wrapped}))
    if kind is WEEKDAY and high == 0:
        return f"{low}-7"
    if low > top:
        return f"{kind.low}-{high}"
    names = {number: name for name, number in kind.names.items()} if low_text in kind.names else {}
    top_text, bottom_text = names.get(top, str(top)), names.get(kind.low, str(kind.low))
    tail = low_text if low == top else f"{low_text}-{top_text}"
    head = high_text if high == kind.low else f"{bottom_text}-{high_text}"
    return f"{tail},{head}"


def _read_value(kind: Kind, text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        return _read_name(kind, text)
    value = int(text)
    if kind is HOUR and value == 24:
        kind.refuse("24 is not between 0 and 23", "write 0 for midnight instead")
    if not kind.low <= value <= kind.high:
        kind.refuse(
            f"{text} is not between {kind.low} and {kind.high}",
            f"write a number from {kind.low} to {kind.high} instead",
        )
    return value


def _read_name(kind: Kind, text: str) -> int:
    name = text.lower()
    if name in kind.names:
        return kind.names[name]
    if len(name) > 3 and name.isalpha() and name[:3] in kind.names:
        kind.refuse(f"{text} is not a name that is read", f"write {name[:3]} instead")
    if not text:
        kind.refuse("a number is missing", f"write a range such as {kind.low + 1}-{kind.low + 3} instead")
    names = f", or one of {' '.join(kind.names)}," if kind.names else ""
    return kind.refuse(f"{text} is not a number", f"write a number from {kind.low} to {kind.high}{names} instead")


def _top(kind: Kind) -> int:
    """The field's last value: 7 may be written for Sunday, but `*` ends with Saturday."""
    return 6 if kind is WEEKDAY else kind.high


def _values(kind: Kind, low: int, high: int, step: int) -> frozenset[int]:
    values = range(low, high + 1, step)
    return frozenset(value % 7 for value in values) if kind is WEEKDAY else frozenset(values)
