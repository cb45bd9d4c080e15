"""Keeps the session within its lease.

A timer ends the session in time where the event loop runs. Where it stood still (the process was stopped, or a handler
blocked it), what comes first after that must not act on a lease that is over: whoever sends or takes something asks
`is_over` before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from carillon.lease import Lease

# Of the time that is left, one try to connect may take this part: there is to be time for another.
_PART_OF_A_TRY = 0.5
_SHORTEST_TRY = 1.0


class LeaseWatch:
    """The present session's lease. `runs_out` is called when the runs must be told to stop."""

    def __init__(self, runs_out: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._runs_out = runs_out
        self._clock = clock
        self._lease = Lease()
        self._hello_sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def hello(self) -> None:
        """`Hello` goes out."""
        self._hello_sent_at = self._clock()

    def welcomed(self, length: float) -> None:
        """The last `Hello` was answered: the lease is that many seconds long."""
        self._lease.begin(length, self._hello_sent_at)
        self._watch()

    def beat(self) -> int | None:
        """The number of the heartbeat that goes out; None if earlier ones had no answer for too long."""
        now = self._clock()
        return None if self._lease.is_silent(now) else self._lease.sending(now)

    def acknowledged(self, sequence: int) -> None:
        """That heartbeat has extended the lease."""
        self._lease.acknowledged(sequence)
        self._watch()

    def is_over(self) -> bool:
        """Whether the runs must have been told to stop by now, if the timer did so or not."""
        return self._clock() >= self._lease.stop_by

    def patience(self, longest: float) -> float:
        """How many seconds to wait for `Welcome`, so that another replica can still be tried."""
        return min(longest, max(_SHORTEST_TRY, (self._lease.stop_by - self._clock()) * _PART_OF_A_TRY))

    def forget(self) -> None:
        """There is no lease any more: the next `Welcome` begins one."""
        self.cancel()
        self._lease = Lease()

    def cancel(self) -> None:
        """Calls nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        self.cancel()
        wait = max(0.0, self._lease.stop_by - self._clock())
        self._timer = asyncio.get_running_loop().call_later(wait, self._runs_out)
