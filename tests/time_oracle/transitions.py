"""Every change of offset from 2005 to 2037, read from the tzdata package's files byte by byte (TZif, RFC 8536).

A file lists transitions, and ends with a rule in the form of POSIX's `TZ` for the years after the last one.
"""

from __future__ import annotations

import calendar
import importlib.resources
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

FIRST_YEAR, LAST_YEAR = 2005, 2037
HOUR = timedelta(hours=1)

_NAME = r"(?:<[^>]+>|[A-Za-z]+)"
_HOURS = r"([-+]?\d+(?::\d+)*)"
_DATE = rf"M(\d+)\.(\d)\.(\d)(?:/{_HOURS})?"
_RULE = re.compile(rf"{_NAME}{_HOURS}(?:{_NAME}(?:{_HOURS})?,{_DATE},{_DATE})?")


@dataclass(frozen=True, order=True)
class Transition:
    """The instant (aware, in UTC) from which on `time_zone` has another offset."""

    time_zone: str
    instant: datetime
    before: timedelta
    after: timedelta

    @property
    def shift(self) -> timedelta:
        """How far the clock jumps: positive is a gap, negative a repeat."""
        return self.after - self.before


def zone_names() -> list[str]:
    return importlib.resources.files("tzdata").joinpath("zones").read_text(encoding="ascii").split()


def tzif(name: str) -> bytes:
    return importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()


def distinct_transitions() -> list[Transition]:
    """Each (instant, offset before, offset after) once, for the first zone by name that has it."""
    found: dict[tuple[datetime, timedelta, timedelta], Transition] = {}
    for name in sorted(zone_names()):
        for each in transitions_of(name):
            if FIRST_YEAR <= each.instant.year <= LAST_YEAR:
                found.setdefault((each.instant, each.before, each.after), each)
    return sorted(found.values())


def transitions_of(name: str) -> list[Transition]:
    """All of a zone up to 2037, also those before 1970, in order."""
    data = tzif(name)
    # The first block holds 32 bits, and is passed over.
    isutc, isstd, leap, times, types, chars = struct.unpack(">6l", data[20:44])
    start = 44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isutc
    *_, times, types, chars = struct.unpack(">6l", data[start + 20 : start + 44])
    start += 44
    instants = struct.unpack(f">{times}q", data[start : start + 8 * times])
    kinds = data[start + 8 * times : start + 9 * times]
    records = start + 9 * times
    offsets = [struct.unpack(">l", data[records + 6 * n : records + 6 * n + 4])[0] for n in range(types)]
    changes = [(_utc(instant), timedelta(seconds=offsets[kind])) for instant, kind in zip(instants, kinds, strict=True)]
    last = changes[-1][0] if changes else _utc(0)
    changes += [change for change in _ruled(data.split(b"\n")[-2].decode()) if change[0] > last]
    return list(_changed(name, timedelta(seconds=offsets[0]), changes))


def _changed(name: str, before: timedelta, changes: list[tuple[datetime, timedelta]]) -> Iterator[Transition]:
    for instant, after in changes:
        if after != before:
            yield Transition(name, instant, before, after)
        before = after


def _ruled(rule: str) -> list[tuple[datetime, timedelta]]:
    """What a rule says of each year: from when on which offset is in force."""
    form = _RULE.fullmatch(rule)
    assert form is not None, f"{rule} is not understood"
    standard_text, summer_text, *dates = form.groups()
    if dates[0] is None:
        return []
    standard = -_hours(standard_text)
    summer = -_hours(summer_text) if summer_text else standard + HOUR
    found = []
    for year in range(1970, LAST_YEAR + 1):
        found.append((_local(year, *dates[:4]) - standard, summer))
        found.append((_local(year, *dates[4:]) - summer, standard))
    return sorted(found)


def _local(year: int, month: str, week: str, weekday: str, hours: str | None) -> datetime:
    """The local time of `Mm.w.d/hours`, written as if it were UTC: the w-th weekday d of month m, 5 for the last."""
    column = (int(weekday) - 1) % 7  # calendar's weeks begin with Monday
    days = [row[column] for row in calendar.monthcalendar(year, int(month)) if row[column]]
    day = days[min(int(week), len(days)) - 1]
    return datetime(year, int(month), day, tzinfo=UTC) + _hours(hours or "2")


def _hours(text: str) -> timedelta:
    sign = -1 if text.startswith("-") else 1
    hours, minutes = (int(part) for part in [*text.lstrip("+-").split(":"), "0"][:2])
    return sign * timedelta(hours=hours, minutes=minutes)


def _utc(seconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
