"""What a watcher of runs is sent: every change once, and every outcome exactly once.

Nobody says what changed; each look at the database gives where every live run in scope stands and which runs ended
lately, and the difference to what was sent is the news. Changes between two looks arrive as one.

A look's "lately" overlaps the look before it, because a run is seen when its transaction commits, later than the
instant it carries. The overlap is also how long outcomes are remembered, so what a watcher holds is bounded by the live
runs in scope and those that ended within the overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from scheduler_service.domain.record import Progress, Run
from scheduler_service.domain.run import RunState

OVERLAP = timedelta(seconds=10)
"""Far longer than a transaction that ends runs takes to commit."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands: two equal ones are no news."""

    state: RunState
    attempt: int
    progress: Progress | None
    cancel_requested_at: datetime | None

    @staticmethod
    def of(run: Run) -> Standing:
        return Standing(run.state, run.attempt, run.progress, run.cancel_requested_at)


@dataclass(frozen=True, slots=True)
class Look:
    """One look: `live` runs in scope, and those `ended` (when) since `since`, `now` being the database's."""

    now: datetime
    live: Mapping[UUID, Standing]
    ended: Mapping[UUID, datetime]


@dataclass(slots=True)
class Watched:
    """What one watcher was sent. `since`: the next look asks for what ended after it."""

    since: datetime
    _live: dict[UUID, Standing] = field(default_factory=dict)
    _ended: dict[UUID, datetime] = field(default_factory=dict)

    def pass_over(self, look: Look) -> None:
        """Runs that ended before the watch began are no news."""
        self._ended.update(look.ended)

    def changed(self, look: Look) -> list[UUID]:
        """Runs that may be news, older ids first; read them now. Also those that are live no longer, whenever they
        ended."""
        moved = [run_id for run_id, standing in look.live.items() if self._live.get(run_id) != standing]
        gone = self._live.keys() - look.live.keys()
        ended = look.ended.keys() - self._ended.keys()
        self.since = max(self.since, look.now - OVERLAP)
        self._ended = {run_id: at for run_id, at in self._ended.items() if at > self.since}
        return sorted({*moved, *gone, *ended})

    def is_news(self, run: Run) -> bool:
        """Whether a run, as it was read just now, is to be sent; it counts as sent then."""
        if run.finished_at is not None:
            self._live.pop(run.run_id, None)
            known = run.run_id in self._ended
            # One that ended earlier is in no later look.
            if run.finished_at > self.since:
                self._ended[run.run_id] = run.finished_at
            return not known
        standing = Standing.of(run)
        if self._live.get(run.run_id) == standing:
            return False
        self._live[run.run_id] = standing
        return True

    def forget(self, run_id: UUID) -> None:
        """The run is not there any more, or not the watcher's to see."""
        self._live.pop(run_id, None)

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)
