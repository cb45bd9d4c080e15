"""The loop that ends lost sessions and what is over its time, and tells connected workers what to stop."""

from __future__ import annotations

from scheduler_service.engine.reap import Cancels, Reaped, Reaper
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Topic, Wakeups


class ReaperLoop(Loop):
    """Looks each second, and at once when a run in a worker's hands is asked to stop. `total`: all that it did.
    `reaper`: what it mended, and what it cannot mend."""

    def __init__(self, connect: Connect, reaper: Reaper, cancels: Cancels, wakeups: Wakeups) -> None:
        super().__init__("reaper", wakeups.listen(Topic.CANCELS), connect)
        self.total = Reaped()
        self.reaper = reaper
        self._cancels = cancels

    async def step(self, connection: Connection) -> bool:
        told = await self._cancels.step(connection)
        reaped = await self.reaper.step(connection)
        self.total += reaped
        return bool(reaped) or told
