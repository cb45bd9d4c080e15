"""The loop that keeps house: partitions, statistics, what has grown old, what is armed anew, what waits."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from time import monotonic

from scheduler_service.domain.repairs import Repair
from scheduler_service.engine.backlog import Backlog
from scheduler_service.engine.housekeeping import Housekeeping, Part
from scheduler_service.engine.rearming import Rearming
from scheduler_service.engine.unarmed import Unarmed
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Wakeup


class Housekeeper(Loop):
    """Does each chore when it is due, and none instead of another: what fails does so alone. The backlog first:
    operators want it most while a chore takes its time.

    Not essential: a chore may take minutes, and that of any replica is enough."""

    essential = False

    def __init__(
        self, connect: Connect, backlog: Backlog, retention: timedelta | None = None, replica: str = "-"
    ) -> None:
        super().__init__("housekeeper", Wakeup(), connect)
        self._backlog = backlog
        self._housekeeping = Housekeeping(retention)
        self._rearming = Rearming(replica=replica)
        self._unarmed = Unarmed(replica)
        self._counting = Part("count the backlog", lambda connection, _: self._backlog.step(connection))
        self._looking_for_unarmed = Part("look for schedules that are not armed", self._unarmed.step)
        self._arming_anew = Part("arm schedules anew", self._rearming.step)
        self._parts = (self._counting, self._housekeeping, self._looking_for_unarmed, self._arming_anew)
        self._known_failures = 0

    async def step(self, connection: Connection) -> bool:
        found_work = False
        for part in self._parts:
            found_work |= await part.step(connection, monotonic())
        self._count_failures()
        return found_work

    def _count_failures(self) -> None:
        failures = sum(part.failures for part in self._parts)
        self.failures += failures - self._known_failures
        self._known_failures = failures

    @property
    def repairs(self) -> Counter[Repair]:
        """What it armed, by what was found."""
        return self._rearming.repairs + self._unarmed.repairs

    def seconds_to_next(self) -> float:
        now = monotonic()
        next_at = (
            self._counting.not_before(now + self._backlog.seconds_to_next()),
            self._housekeeping.next_at(),
            self._looking_for_unarmed.not_before(self._unarmed.next_at()),
            self._arming_anew.not_before(self._rearming.next_at()),
        )
        return max(0.0, min(next_at) - now)
