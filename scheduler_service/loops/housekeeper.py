"""The loop that keeps house: partitions, statistics, what has grown old, what is armed anew, what waits."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from time import monotonic

from scheduler_service.domain.repairs import Repair
from scheduler_service.loops.loop import Connect, Connection, Loop
from scheduler_service.usecases.backlog import Backlog
from scheduler_service.usecases.housekeeping import Housekeeping
from scheduler_service.usecases.rearming import Rearming
from scheduler_service.usecases.unarmed import Unarmed
from scheduler_service.usecases.wakeups import Wakeup


class Housekeeper(Loop):
    """Does each chore when it is due. The backlog first: operators want it most while a chore fails.

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

    async def step(self, connection: Connection) -> bool:
        return (
            await self._backlog.step(connection)
            or await self._housekeeping.step(connection, monotonic())
            or await self._unarmed.step(connection, monotonic())
            or await self._rearming.step(connection, monotonic())
        )

    @property
    def repairs(self) -> Counter[Repair]:
        """What it armed, by what was found."""
        return self._rearming.repairs + self._unarmed.repairs

    def seconds_to_next(self) -> float:
        next_at = min(self._housekeeping.next_at(), self._unarmed.next_at(), self._rearming.next_at())
        return min(self._backlog.seconds_to_next(), max(0.0, next_at - monotonic()))
