"""What is owed, by brute force: every minute is walked, and the wall clock looked at.

No spans, no arithmetic, no croniter, nothing of the engine: a time that the clock shows counts when it shows it; one
that it has shown before counts again or not, as chosen; one that it passed over counts where it goes on, or not.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tests.time_oracle.grammar import CronRule, EveryRule
from tests.time_oracle.transitions import tzif

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
LONGEST_REPEAT = timedelta(hours=30)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Owed(NamedTuple):
    """One occurrence: its instant in UTC, the naive local time that it stands for, and what the clock made of it."""

    instant: datetime
    local: datetime
    fold: int
    shifted: bool


class Moment(NamedTuple):
    """One minute, and what the clock shows in it. `again`: for the second time."""

    instant: datetime
    local: datetime
    day: date
    minute: int
    again: bool


@dataclass(frozen=True)
class Leap:
    """Where the clock goes on after a gap, and the local times that it passed over."""

    instant: datetime
    passed_over: list[datetime]


class Window:
    """A zone's clock in `(after, until]`, which are whole minutes. It is watched from long before, so that what it
    shows again is known."""

    def __init__(self, time_zone: str, after: datetime, until: datetime) -> None:
        self.after, self.until = after, until
        self.watched: dict[datetime, Moment] = {}
        self.leaps: list[Leap] = []
        self._watch(clock(time_zone))
        self.moments = [moment for moment in self.watched.values() if moment.instant > after]
        self.days = {moment.day for moment in self.moments}

    def _watch(self, zone: ZoneInfo) -> None:
        shown: set[datetime] = set()
        instant = self.after - LONGEST_REPEAT
        before = _wall(zone, instant - MINUTE)
        while instant <= self.until:
            local = _wall(zone, instant)
            if local > before + MINUTE and instant > self.after:
                self._leap(instant, before, local, shown)
            minute = local.hour * 60 + local.minute
            self.watched[instant] = Moment(instant, local, local.date(), minute, again=local in shown)
            shown.add(local)
            instant, before = instant + MINUTE, local

    def _leap(self, instant: datetime, before: datetime, local: datetime, shown: set[datetime]) -> None:
        minutes = range(1, (local - before) // MINUTE)
        passed_over = [before + number * MINUTE for number in minutes]
        self.leaps.append(Leap(instant, [missing for missing in passed_over if missing not in shown]))


def owed(
    rule: CronRule | EveryRule, window: Window, *, skip_gaps: bool = False, both: bool = False, phase: int = 0
) -> list[Owed]:
    """What is owed in the window, in order. `phase` is in seconds."""
    if isinstance(rule, EveryRule):
        return _elapsed(rule, window, phase)
    days = {day for day in window.days if rule.falls_on(day)}
    again_too = rule.literal or both
    found = [
        Owed(moment.instant, moment.local, int(moment.again), False)
        for moment in window.moments
        if moment.minute in rule.minutes and moment.day in days and (again_too or not moment.again)
    ]
    if not rule.literal and not skip_gaps:
        instants = {each.instant for each in found}
        found += [each for each in _shifted(rule, window) if each.instant not in instants]
    return sorted(found)


def _shifted(rule: CronRule, window: Window) -> list[Owed]:
    """The first of the times that a leap passed over stands for all of them."""
    found = []
    for leap in window.leaps:
        missing = [local for local in leap.passed_over if rule.matches(local)]
        found += [Owed(leap.instant, local, 0, True) for local in missing[:1]]
    return found


def _elapsed(rule: EveryRule, window: Window, phase: int) -> list[Owed]:
    found = []
    first, last = ((edge - EPOCH) // SECOND for edge in (window.after, window.until))
    for second in range(first + 1, last + 1):
        if (second - phase) % rule.period == 0:
            instant = EPOCH + second * SECOND
            within = second % 60 * SECOND
            moment = window.watched[instant - within]
            found.append(Owed(instant, moment.local + within, int(moment.again), False))
    return found


def _wall(zone: ZoneInfo, instant: datetime) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


@lru_cache(maxsize=1024)
def clock(time_zone: str) -> ZoneInfo:
    return ZoneInfo.from_file(io.BytesIO(tzif(time_zone)), key=time_zone)
