"""The loop that seals the audit trail, on each replica; one of them is at it at a time."""

from __future__ import annotations

from scheduler_service.engine.sealing import Sealing
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Wakeup


class Sealer(Loop):
    """Looks each second. `sealing`: what it sees."""

    def __init__(self, connect: Connect) -> None:
        super().__init__("sealer", Wakeup(), connect)
        self.sealing = Sealing()

    async def step(self, connection: Connection) -> bool:
        return await self.sealing.step(connection)
