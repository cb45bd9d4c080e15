"""The loop that keeps house: partitions, statistics, and what has grown old."""

from __future__ import annotations

from time import monotonic

from scheduler_service.loops.loop import Connect, Connection, Loop
from scheduler_service.usecases.housekeeping import Housekeeping
from scheduler_service.usecases.wakeups import Wakeup


class Housekeeper(Loop):
    """Does each chore when it is due."""

    def __init__(self, connect: Connect) -> None:
        super().__init__("housekeeper", Wakeup(), connect)
        self._housekeeping = Housekeeping()

    async def step(self, connection: Connection) -> bool:
        return await self._housekeeping.step(connection, monotonic())

    def seconds_to_next(self) -> float:
        return max(0.0, self._housekeeping.next_at() - monotonic())
