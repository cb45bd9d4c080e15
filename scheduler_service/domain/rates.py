"""How often somebody may do something: token buckets, for many at once.

A bucket holds `burst` calls and fills up with `per_second`. Of each only one figure is kept, the instant at which it
will be full again (the generic cell rate algorithm): a bucket that is full is the same as none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

MOST_BUCKETS = 10_000
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second in the long run, and so many at once."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a deployment allows a principal on each replica: registrations, calls that start runs, other changes."""

    registrations_per_minute: int = 120
    triggers_per_second: int = 100
    changes_per_second: int = 20


class Buckets:
    """A bucket for each key, all of the same rate. Instants are seconds of any clock that never goes back."""

    def __init__(self, rate: Rate, most: int = MOST_BUCKETS) -> None:
        self._rate = rate
        self._most = most
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: Hashable, now: float, cost: float = 1.0) -> float:
        """Seconds until `cost` can be taken; 0: now. Takes nothing."""
        missing = max(self._full_at.get(key, now) - now, 0.0) * self._rate.per_second
        lacking = missing + cost - self._rate.burst
        return lacking / self._rate.per_second if lacking > _ROUNDING else 0.0

    def take(self, key: Hashable, now: float, cost: float = 1.0) -> float:
        """Takes `cost` if it is there, and answers 0; otherwise takes nothing, and answers in how many seconds it
        will be."""
        if wait := self.wait(key, now, cost):
            return wait
        self._full_at[key] = max(self._full_at.get(key, now), now) + cost / self._rate.per_second
        self._full_at.move_to_end(key)
        while len(self._full_at) > self._most:
            # The one that was used longest ago: with so many it is full, or nearly.
            self._full_at.popitem(last=False)
        return 0.0
