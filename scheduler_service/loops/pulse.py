"""The loop that says that the others work, and looks whether each works somewhere. Apart from them, so that it tells of
whichever hangs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scheduler_service.engine.pulses import LoopState, Pulses
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Wakeup


class Pulse(Loop):
    """Beats each 5 s for the loops of this replica. `pulses`: what it sees."""

    essential = False

    def __init__(self, connect: Connect, replica: str, loops: Callable[[], Sequence[Loop]]) -> None:
        super().__init__("pulse", Wakeup(), connect)
        self._loops = loops
        self.pulses = Pulses(replica, self._states)

    async def step(self, connection: Connection) -> bool:
        return await self.pulses.step(connection)

    def seconds_to_next(self) -> float:
        return self.pulses.seconds_to_next()

    def _states(self) -> list[LoopState]:
        return [_state_of(loop) for loop in self._loops() if loop.name != self.name]


def _state_of(loop: Loop) -> LoopState:
    health = loop.health()
    return LoopState(health.name, health.running, health.idle_seconds, loop.essential, health.error)
