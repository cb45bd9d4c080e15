"""What one work stream may cost this replica. A heartbeat writes its session's lease, and looks for every claim that it
lists; each start and result is looked for among the runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from scheduler_service.domain.rates import Buckets, Rate
from scheduler_service.rpc.work_decode import MAX_HELD_CLAIMS, Malformed
from scheduler_service.rpc.work_outbox import MOST_ENTRIES

BEATS_PER_SECOND = 5.0
CLAIMS_ON_THEIR_WAY = 1_000
"""How many claims the session may hold that were sent on an older stream of it after the Hello of this one."""


RUNS_OF_A_CLAIM = 500
RUNS_ON_THEIR_WAY = MOST_ENTRIES
"""The same of runs: as many as a stream lets wait for its worker."""


class HeartbeatPace:
    """`interval` and `lease` are in seconds; `held`: how many claims the Hello listed.

    At least five heartbeats a second, and twice as many as are asked for; those of a whole lease at once, since a
    network that stalled delivers them together. A full list may come as often as twice in an interval.
    """

    def __init__(self, interval: float, lease: float, held: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held = held
        self._per_second = max(BEATS_PER_SECOND, 2 / interval)
        in_half_an_interval = self._per_second * interval / 2
        self._a_claims_cost = max(in_half_an_interval - 1, 0.0) / MAX_HELD_CLAIMS
        self._bucket = Buckets(Rate(self._per_second, max(self._per_second * lease / 2, in_half_an_interval)), most=1)

    def check(self, listed: int, sent: int) -> None:
        """A heartbeat came that lists so many claims, after so many were sent on its stream. Errors: Malformed."""
        if listed > self._held + sent + CLAIMS_ON_THEIR_WAY:
            raise Malformed(
                "heartbeat.held_claims",
                f"lists {listed:,} claims, although the Hello listed {self._held:,} and {sent:,} were sent since; list"
                " each claim once, and only those of which runs or results are still held",
            )
        if wait := self._bucket.take(None, self._clock(), 1 + listed * self._a_claims_cost):
            raise Malformed(
                "heartbeat",
                f"came {wait:.3g} s too early: at most {self._per_second:g} a second, fewer with long lists of claims;"
                " send one each `heartbeat_interval` of the Welcome",
            )


class Once:
    """What a stream says once of each attempt: that it began, and how it ended. `held`: how many claims the Hello
    listed."""

    def __init__(self, field: str, held: int) -> None:
        self._field = field
        self._held = held
        self._said = 0

    def check(self, more: int, sent: int) -> None:
        """So many more came, after so many runs were sent on the stream. Errors: Malformed."""
        self._said += more
        if self._said > self._held * RUNS_OF_A_CLAIM + sent + RUNS_ON_THEIR_WAY:
            raise Malformed(
                self._field,
                f"come to {self._said:,} on this stream, although the Hello listed {self._held:,} claims and {sent:,}"
                " runs were sent since; send one for each attempt, and again only on another stream",
            )


@dataclass(frozen=True, slots=True)
class Pace:
    """What one stream may say how often."""

    heartbeats: HeartbeatPace
    starts: Once
    results: Once

    @classmethod
    def of(cls, interval: float, lease: float, held: int, clock: Callable[[], float]) -> Pace:
        """As `HeartbeatPace`."""
        return cls(HeartbeatPace(interval, lease, held, clock), Once("starts", held), Once("results", held))
