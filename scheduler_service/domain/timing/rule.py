"""What a schedule's expression says, once it has been read. Only `grammar.parse` makes these."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True)
class Cron:
    """Five fields over local time. Two are equal if their text is: the text decides everything else.

    Field values are sorted, without duplicates; weekdays run from 0 (Sunday) to 6. A `*_star` says that
    the field starts with `*` (also `*/n`), which decides how days combine and whether the clock is
    followed literally.
    """

    text: str
    minutes: tuple[int, ...] = field(compare=False)
    hours: tuple[int, ...] = field(compare=False)
    days: tuple[int, ...] = field(compare=False)
    months: tuple[int, ...] = field(compare=False)
    weekdays: tuple[int, ...] = field(compare=False)
    last_day: bool = field(default=False, compare=False)
    nth_weekdays: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """(weekday, n) for each `w#n`, n from 1 to 5."""
    last_weekdays: tuple[int, ...] = field(default=(), compare=False)
    minute_star: bool = field(default=False, compare=False)
    hour_star: bool = field(default=False, compare=False)
    day_star: bool = field(default=False, compare=False)
    weekday_star: bool = field(default=False, compare=False)
    forms: tuple[str, ...] = field(default=(), compare=False)
    """The normal forms for croniter. The schedule is their union; within each, all fields must hold."""

    @property
    def follows_clock(self) -> bool:
        """Whether the wall clock is followed literally through a transition: nothing in a gap, and
        everything twice where the clock shows an hour twice."""
        return self.minute_star or self.hour_star

    @property
    def times_a_day(self) -> int:
        return len(self.hours) * len(self.minutes)


@dataclass(frozen=True)
class Every:
    """`@every`: elapsed time, counted from the Unix epoch plus the schedule's phase."""

    text: str
    period: timedelta = field(compare=False)
    """Whole seconds, from 1 second to 366 days."""
