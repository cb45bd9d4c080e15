"""When a schedule is owed: its rule, its zone, and what it chose for the hours that clocks skip or repeat."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from functools import lru_cache

from scheduler_service.domain.timing.errors import TimingError
from scheduler_service.domain.timing.grammar import parse
from scheduler_service.domain.timing.rule import Cron, Every
from scheduler_service.domain.timing.zones import zone


class GapPolicy(Enum):
    """What becomes of a fixed local time that the clock leaves out. A rule that follows the clock (minute or
    hour starts with `*`) always passes over it."""

    SHIFT = "shift"
    """It fires at the first valid instant after the gap."""
    SKIP = "skip"
    """It does not fire that day."""


class RepeatPolicy(Enum):
    """How often a fixed local time fires that the clock shows twice. A rule that follows the clock fires at
    both."""

    FIRST = "first"
    BOTH = "both"


@dataclass(frozen=True)
class Timing:
    """A rule in a time zone. Refuses an unknown zone, and a phase that is not in `[0, period)` of `@every`.

    `gap`, `repeat` and the zone's offsets do not touch `@every`, which counts elapsed time.
    """

    rule: Cron | Every
    time_zone: str = "UTC"
    gap: GapPolicy = GapPolicy.SHIFT
    repeat: RepeatPolicy = RepeatPolicy.FIRST
    phase: timedelta = timedelta()
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        zone(self.time_zone)
        _check_phase(self.rule, self.phase)
        # Hashed once, because a timing is the key of a cache that is asked for every run.
        parts = (self.rule, self.time_zone, self.gap, self.repeat, self.phase)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    @staticmethod
    def of(
        expression: str,
        time_zone: str = "UTC",
        gap: GapPolicy = GapPolicy.SHIFT,
        repeat: RepeatPolicy = RepeatPolicy.FIRST,
        phase: timedelta = timedelta(),
    ) -> Timing:
        """The timing of an expression: the same object for the same arguments while it is remembered, which
        spares reading it again. Refuses with a `TimingError` whatever is wrong."""
        return _timing(expression, time_zone, gap, repeat, phase)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One nominal instant that a schedule owes. Its identity is `instant`."""

    instant: datetime
    """Aware, in UTC."""
    local: datetime
    """The nominal local time, naive: for a shifted occurrence, the time that the clock left out."""
    fold: int = 0
    """1 where the clock shows `local` for the second time."""
    shifted: bool = False
    """Whether `local` does not exist and the occurrence was moved to the end of the gap."""


def _check_phase(rule: Cron | Every, phase: timedelta) -> None:
    if isinstance(rule, Cron):
        if phase:
            raise TimingError("phase", "only @every has a phase", "leave it out, or write @every, instead")
    elif not timedelta() <= phase < rule.period:
        raise TimingError(
            "phase",
            f"{phase.total_seconds():g} s is not within the interval",
            f"write from 0 s to less than {rule.period.total_seconds():g} s instead",
        )


@lru_cache(maxsize=32_768)
def _timing(expression: str, time_zone: str, gap: GapPolicy, repeat: RepeatPolicy, phase: timedelta) -> Timing:
    return Timing(parse(expression), time_zone, gap, repeat, phase)
