"""The loop that keeps this replica's service tokens those of the table."""

from __future__ import annotations

from scheduler_service.identity.service_tokens import StoredTokens
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Wakeup


class ServiceTokenLoop(Loop):
    """Looks each second."""

    def __init__(self, connect: Connect, tokens: StoredTokens) -> None:
        super().__init__("service tokens", Wakeup(), connect)
        self._tokens = tokens

    async def step(self, connection: Connection) -> bool:
        await self._tokens.step(connection)
        return False
