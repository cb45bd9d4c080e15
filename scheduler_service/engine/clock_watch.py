"""Whether the database's clock can be trusted to say that a lease is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import structlog

log = structlog.get_logger()

CLOCK_TOLERANCE = 2.0
LONGEST_SUSPENSION = 4
"""In leases."""


@dataclass(slots=True)
class ClockWatch:
    """Compares the passing of time by two clocks: the database's, which decides, and this process's monotonic one.

    After they disagreed by over 2 s the first is not trusted for `lease` seconds, so that a corrected clock does not
    end every session at once: each has time to extend its lease by the new one. A process that was stopped (SIGSTOP)
    sees both pass alike, and what is over is over: its workers counted their leases meanwhile. A machine that was
    suspended sees the database's jump.

    A clock that keeps jumping is not trusted for 4 leases at most; then one look goes by it as it is, since a worker
    that is lost must not keep its runs for ever.

    One watch for all who ask in a process. Its first look has nothing to compare with: for `settle` seconds from then
    on (0: not at all) the clock is not trusted either. It may have jumped just before, and every session that lives
    extends its lease meanwhile.
    """

    lease: float
    settle: float = 0.0
    _settled_at: float | None = None
    _last: tuple[datetime, float] | None = None
    _suspended_since: float | None = None
    _suspended_until: float = field(default=float("-inf"))

    def trusts(self, now: datetime, monotonic: float) -> bool:
        """Asked at each look, with what both clocks say."""
        if self._last is not None:
            passed, ticked = (now - self._last[0]).total_seconds(), monotonic - self._last[1]
            if abs(passed - ticked) > CLOCK_TOLERANCE:
                self._suspend(monotonic, passed, ticked)
        self._last = (now, monotonic)
        if self._settled_at is None:
            self._settled_at = monotonic + self.settle
        if monotonic < self._settled_at:
            return False
        if self._suspended_since is None:
            return True
        if monotonic >= self._suspended_until:
            self._suspended_since = None
            return True
        if monotonic >= self._suspended_since + LONGEST_SUSPENSION * self.lease:
            log.error("the database's clock keeps jumping; reaping goes by it nevertheless", seconds=self.lease)
            self._suspended_since = monotonic
            return True
        return False

    def _suspend(self, monotonic: float, passed: float, ticked: float) -> None:
        if self._suspended_since is None:
            self._suspended_since = monotonic
            log.warning("clocks disagree; reaping is suspended", database=passed, here=ticked, seconds=self.lease)
        self._suspended_until = monotonic + self.lease
