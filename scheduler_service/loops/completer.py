"""The loop that commits what workers report. The last to end: only when its queue is empty."""

from __future__ import annotations

from scheduler_service.engine.complete import Completer
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection


class CompleterLoop(Loop):
    """Commits whatever has piled up, again and again."""

    def __init__(self, connect: Connect, completer: Completer) -> None:
        super().__init__("completer", completer.wakeup, connect)
        self._completer = completer

    async def step(self, connection: Connection) -> bool:
        return await self._completer.step(connection)

    def is_finished(self) -> bool:
        return len(self._completer) == 0
