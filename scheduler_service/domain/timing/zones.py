"""Time zones by IANA name, from the `tzdata` package alone, so that every replica has the same rules.

The operating system's tables are never read. Transitions are found by asking `zoneinfo` for the offset of
each day and bisecting where it changes; since 1970 no zone has changed twice within a week (a test holds
that against the tables).
"""

from __future__ import annotations

import difflib
import importlib.resources
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain
from zoneinfo import ZoneInfo

import tzdata  # type: ignore[import-untyped] # ships no types

from scheduler_service.domain.timing.errors import TimingError

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_LONGEST_SHIFT = timedelta(days=2)
"""More than any clock ever jumped (24 hours, Apia and Kwajalein), so what it repeated is over by then."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of time in which a zone's offset does not change. All datetimes are naive.

    `start` and `end` are UTC, half-open. `reached` is the local time up to which the clock had already been
    before the stretch: later than `local_start` where the clock repeats, earlier where it leaves a gap.
    """

    start: datetime
    end: datetime
    offset: timedelta
    reached: datetime

    @property
    def local_start(self) -> datetime:
        return self.start + self.offset

    @property
    def local_end(self) -> datetime:
        return self.end + self.offset


def tzdata_version() -> str:
    """The IANA release in use, such as `2026f`."""
    return str(tzdata.IANA_VERSION)


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The zone of an IANA name; a `TimingError` with near names for any other."""
    if name not in _names():
        raise TimingError("time_zone", f"{name[:64]!a} is not an IANA time zone", _advice(name[:64]))
    resource = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    try:
        with resource.open("rb") as table:
            return ZoneInfo.from_file(table, key=name)
    except (OSError, ValueError, struct.error) as error:
        why = f"the rules of {name!a} cannot be read ({type(error).__name__}: {error})"
        raise TimingError("time_zone", why, "install tzdata again where the scheduler runs") from error


def stretches(name: str, start: datetime, end: datetime) -> Iterator[Stretch]:
    """The stretches of a zone that meet `[start, end]` (naive UTC), in order, cut at the turn of each year so
    that nobody pays for years that they do not reach. The first may begin, the last end, outside."""
    begin, limit = start - _LONGEST_SHIFT, end + _LONGEST_SHIFT
    offset = _offset(zone(name), begin)
    reached = begin + offset
    for instant, new_offset in chain.from_iterable(_turns(name, year) for year in range(begin.year, limit.year + 1)):
        if begin < instant < limit:
            if instant > start:
                yield Stretch(begin, instant, offset, reached)
            begin, offset, reached = instant, new_offset, max(reached, instant + offset)
    yield Stretch(begin, limit, offset, reached)


@lru_cache(maxsize=8192)
def _turns(name: str, year: int) -> tuple[tuple[datetime, timedelta], ...]:
    """Each instant of a year (naive UTC) at which the offset changes, with the new offset; then the year's
    last second with the offset as it is."""
    tz = zone(name)
    day = datetime(year, 1, 1) - _SECOND  # noqa: DTZ001 - naive UTC throughout this file
    end = datetime(year + 1, 1, 1) - _SECOND  # noqa: DTZ001
    found = []
    before = _offset(tz, day)
    while day < end:
        after = _offset(tz, day + _DAY)
        if after != before:
            found.append((_change_between(tz, day, day + _DAY), after))
        day, before = day + _DAY, after
    return (*found, (end, before))


def _change_between(tz: ZoneInfo, old: datetime, new: datetime) -> datetime:
    before = _offset(tz, old)
    while new - old > _SECOND:
        middle = old + timedelta(seconds=(new - old) // _SECOND // 2)
        old, new = (middle, new) if _offset(tz, middle) == before else (old, middle)
    return new


def _offset(tz: ZoneInfo, instant: datetime) -> timedelta:
    return tz.fromutc(instant.replace(tzinfo=tz)).replace(tzinfo=None) - instant


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    listing = importlib.resources.files("tzdata").joinpath("zones").read_text(encoding="ascii")
    return frozenset(listing.split())


def _advice(name: str) -> str:
    near = _near_names(name)
    if near:
        return f"write {' or '.join(near)} instead"
    if re.search(r"[+-][0-9]", name):
        return "write a place such as Europe/Berlin, or Etc/GMT-5 for five hours ahead of UTC, instead"
    return "write an area and a place such as Europe/Berlin or America/New_York, or UTC, instead"


def _near_names(name: str) -> list[str]:
    """At most three known names that this one may have been meant to be, by the whole or by the place."""
    wanted = name.strip().lower().replace(" ", "_")
    known = {known.lower(): known for known in sorted(_names())}
    if wanted in known:
        return [known[wanted]]
    places = {lower.rsplit("/", 1)[-1]: lower for lower in known if "/" in lower}
    if wanted in places:
        return [known[places[wanted]]]
    if "/" not in wanted:
        return [known[places[near]] for near in difflib.get_close_matches(wanted, places, n=3, cutoff=0.75)]
    return [known[near] for near in difflib.get_close_matches(wanted, known, n=3, cutoff=0.85)]
