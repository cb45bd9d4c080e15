"""The loop that looks whether this replica can do its work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from scheduler_service.loops.loop import Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Wakeup


class ReadinessLoop(Loop):
    """Looks when it starts, and again after each `period`, in seconds. It keeps no connection: it is to find out
    whether there can be one."""

    def __init__(self, look: Callable[[], Awaitable[None]], period: Callable[[], float]) -> None:
        super().__init__("readiness", Wakeup(), _none)
        self._look = look
        self._period = period

    async def step(self, _connection: Connection | None = None) -> bool:
        await self._look()
        return False

    def seconds_to_next(self) -> float:
        return self._period()

    async def _turn(self) -> None:
        await self.step()
        self._went_well()
        await self.wakeup.wait(self.seconds_to_next())


async def _none() -> Connection:
    raise AssertionError("it needs no connection")
