"""How long the session may hold its runs.

In charge: the scheduler, which ends the lease when no heartbeat was acknowledged for its length. The worker counts
from the instant at which it sent the acknowledged heartbeat, by its own monotonic clock, and so is never later
than the scheduler. All instants are seconds of that clock.
"""

from __future__ import annotations

import math

# The part of the lease that is kept back for stopping runs before it ends.
MARGIN = 0.1


class Lease:
    """The lease of one session. Without a `Welcome` there is none, and nothing to lose."""

    def __init__(self) -> None:
        self.length = math.inf
        self.end = math.inf
        self._sequence = 0
        self._unanswered: dict[int, float] = {}

    def begin(self, length: float, sent_at: float) -> None:
        """The `Hello` of `sent_at` was welcomed. A session that had a lease keeps the end that it knows of."""
        self.length = length
        if self.end == math.inf:
            self.end = sent_at + length
        self._unanswered.clear()

    def sending(self, now: float) -> int:
        """A heartbeat goes out; returns its number."""
        self._sequence += 1
        self._unanswered[self._sequence] = now
        return self._sequence

    def acknowledged(self, sequence: int) -> None:
        """The heartbeat of that number counts. One that this stream did not send changes nothing."""
        sent_at = self._unanswered.get(sequence)
        if sent_at is None:
            return
        self.end = max(self.end, sent_at + self.length)
        self._unanswered = {number: at for number, at in self._unanswered.items() if number > sequence}

    def is_silent(self, now: float) -> bool:
        """Whether the oldest unanswered heartbeat waits for more than a third of the lease: the stream is dead."""
        oldest = next(iter(self._unanswered.values()), now)
        return now - oldest > self.length / 3

    @property
    def stop_by(self) -> float:
        """When the runs must have been told to stop, unless a heartbeat is acknowledged before."""
        return self.end - MARGIN * self.length if self.end < math.inf else math.inf
