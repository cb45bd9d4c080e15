"""When something is owed in the state machine, as tests/time_oracle has it: nothing here asks the scheduler.

Each example begins some hours before a clock changes. Of the two zones one is north and one south of the equator, so
that at any time of the year the next change is a gap in one of them, and a repeat in the other, by half an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from scheduler_service.domain.job import TimingSpec
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy
from tests.simulation.diary import Diary, Timing
from tests.simulation.verdict import Owed
from tests.time_oracle.grammar import EveryRule, read
from tests.time_oracle.oracle import EPOCH, SECOND, Window, owed
from tests.time_oracle.transitions import transitions_of

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NORTH, SOUTH = "America/New_York", "Australia/Lord_Howe"
TIMINGS = {
    "often": TimingSpec(cron="@every 90s"),
    "jittered": TimingSpec(cron="@every 5m", jitter=2 * MINUTE),
    "seldom": TimingSpec(cron="@every 17m", jitter=40 * MINUTE),
    "by the clock": TimingSpec(cron="*/20 * * * *", time_zone=NORTH),
    "fixed": TimingSpec(cron="10,40 0-23 * * *", time_zone=NORTH, jitter=5 * MINUTE),
    "fixed, twice": TimingSpec(
        cron="10,40 0-23 * * *", time_zone=SOUTH, gap=GapPolicy.SKIP, repeat=RepeatPolicy.BOTH, jitter=20 * MINUTE
    ),
    "at night": TimingSpec(cron="5,35,50 1,2,3 * * *", time_zone=SOUTH),
}
"""By what they are there for. A jitter may be longer than the time to the next occurrence."""
_BEFORE = 5 * HOUR
_NOW = datetime.now(UTC)


def _before_the_next_change(time_zone: str) -> datetime:
    return next(each.instant for each in transitions_of(time_zone) if each.instant > _NOW) - _BEFORE


STARTS = tuple(_before_the_next_change(each) for each in (NORTH, SOUTH))
MONTHS_AHEAD = 1 + max((each.year - _NOW.year) * 12 + each.month - _NOW.month for each in STARTS)


def instants(timing: Timing, after: datetime, until: datetime) -> Iterator[datetime]:
    """What a timing owes in `(after, until]`, in order."""
    rule = read(timing.cron)
    if isinstance(rule, EveryRule):
        number = (after - EPOCH - timing.phase) // (rule.period * SECOND) + 1
        while (instant := EPOCH + timing.phase + number * rule.period * SECOND) <= until:
            yield instant
            number += 1
        return
    day = after.replace(hour=0, minute=0, second=0, microsecond=0)
    while day < until:
        yield from (each for each in _of_day(timing, day) if after < each <= until)
        day += DAY


@lru_cache(maxsize=4_096)
def _of_day(timing: Timing, day: datetime) -> tuple[datetime, ...]:
    rule, window = read(timing.cron), _window(timing.time_zone, day)
    return tuple(each.instant for each in owed(rule, window, skip_gaps=timing.skip_gaps, both=timing.both))


@lru_cache(maxsize=1_024)
def _window(time_zone: str, day: datetime) -> Window:
    return Window(time_zone, day, day + DAY)


def everything_owed(diary: Diary, until: Callable[[ScheduleName], datetime]) -> Owed:
    """Each schedule's nominal instants up to some time, in order, with what was in force for each."""
    found: Owed = {name: [] for name in diary.schedules}
    for name, occurrences in found.items():
        for span in diary.spans(name, until(name)):
            occurrences += [(each, span.timing) for each in instants(span.timing, span.after, span.until)]
        occurrences.sort(key=lambda pair: pair[0])
    return found


class Said(NamedTuple):
    """What was in force from `since` on; for the instant itself, what was in force before."""

    since: datetime
    timing: Timing
    jitter: timedelta


@dataclass
class History:
    """Which timing each schedule had, whether it owed anything or not."""

    _said: dict[ScheduleName, list[Said]] = field(default_factory=dict)
    _begun: dict[ScheduleName, tuple[object, int]] = field(default_factory=dict)

    def note(self, diary: Diary, now: datetime) -> None:
        """Call it after each change."""
        for name, schedule in diary.schedules.items():
            if schedule.deleted or schedule.revision is None:
                continue
            said = self._said.setdefault(name, [])
            made, begun = self._begun.get(name, (None, 0))
            if made is not schedule:
                begun = len(said)
                self._begun[name] = (schedule, begun)
            now_in_force = (schedule.revision.timing, schedule.revision.jitter)
            if len(said) == begun or said[-1][1:] != now_in_force:
                said.append(Said(now, *now_in_force))

    def said_at(self, name: ScheduleName, instant: datetime) -> Said:
        """What an occurrence that was owed is of."""
        return next(each for each in reversed(self._said[name]) if each.since < instant)

    def occurrences(self, name: ScheduleName, since: datetime, until: datetime) -> list[datetime]:
        """Those in `[since, until)` of a schedule that is there; before it was made, as if it had been."""
        tick = timedelta(microseconds=1)
        said = self._said[name][self._begun[name][1] :]
        ends = [*(each.since for each in said[1:]), until]
        found: list[datetime] = []
        for number, (each, end) in enumerate(zip(said, ends, strict=True)):
            after = max(since - tick, each.since) if number else since - tick
            found += instants(each.timing, after, min(end, until - tick))
        return found
