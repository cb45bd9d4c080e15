"""The replicas' pulse: each says when its loops last did their work, and looks whether every loop works somewhere.

A loop that fails is tried again, and one that hangs says nothing. So nobody would notice a reaper that reaps nowhere,
but for those whose runs stay with lost workers. In charge: the database's clock; how long a loop here has been idle
is counted by this process's monotonic one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from scheduler_service.store.connection import Connection
from scheduler_service.store.pulses import beat, youngest

log = structlog.get_logger()

PERIOD = 5.0
"""Seconds from one beat to the next."""
IDLE_SECONDS = 60.0
"""After so long without a step that went well, a loop counts as dead."""
_SHOWN_FOR = 30.0


@dataclass(frozen=True, slots=True)
class LoopState:
    """How one loop here fares. `idle`: seconds since its last step that went well; None: none did yet. `essential`:
    without it this replica does not do its work. `error`: of its last step, if that failed."""

    name: str
    running: bool
    idle: float | None
    essential: bool = True
    error: str | None = None


class Pulses:
    """Beats for one replica, and looks at all. `states` tells how its loops fare. `clock` is monotonic, in seconds."""

    def __init__(
        self, replica: str, states: Callable[[], Sequence[LoopState]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._replica = replica
        self._states = states
        self._clock = clock
        self._began = clock()
        self._next_at = clock()
        self._seen_at = float("-inf")
        self._anywhere: dict[str, float] = {}
        self._elsewhere: dict[str, float | None] = {}
        self._said: set[str] = set()

    async def step(self, connection: Connection) -> bool:
        """Beats and looks, if that is due. Answers whether more is to be done at once: never."""
        if self._clock() >= self._next_at:
            states = self._states()
            await beat(
                connection, self._replica, {state.name: state.idle for state in states if state.idle is not None}
            )
            self._see(states, await youngest(connection, self._replica))
            self._next_at = self._clock() + PERIOD
        return False

    def seconds_to_next(self) -> float:
        return max(0.0, self._next_at - self._clock())

    @property
    def idle(self) -> Mapping[str, float]:
        """For how many seconds each loop has worked on no replica; empty if that was seen too long ago."""
        return self._anywhere if self._is_fresh() else {}

    def problem(self) -> str | None:
        """Why others should do this replica's work: an essential loop that is dead here and works elsewhere."""
        return self._first([state for state in self._dead() if state.essential and self._works_elsewhere(state.name)])

    def warning(self) -> str | None:
        """What is wrong with this replica although it is no reason to give way to others: they have none that works
        either, or it does its work without that loop."""
        return self._first(self._dead())

    def dead(self, name: str) -> str | None:
        """What is wrong with this loop of this replica; None if it works."""
        return self._first([state for state in self._dead() if state.name == name])

    def _dead(self) -> list[LoopState]:
        return [state for state in self._states() if not state.running or self._idle_here(state) > IDLE_SECONDS]

    def _idle_here(self, state: LoopState) -> float:
        return self._clock() - self._began if state.idle is None else state.idle

    def _works_elsewhere(self, name: str) -> bool:
        seconds = self._elsewhere.get(name)
        return self._is_fresh() and seconds is not None and seconds <= IDLE_SECONDS

    def _is_fresh(self) -> bool:
        return self._clock() - self._seen_at <= _SHOWN_FOR

    def _first(self, dead: Sequence[LoopState]) -> str | None:
        if not dead:
            return None
        state = dead[0]
        said = f"; {state.error}" if state.error else ""
        if not state.running:
            return f"loop {state.name} of this replica has ended{said}"
        return f"loop {state.name} of this replica has done nothing for over {IDLE_SECONDS:.0f} s{said}"

    def _see(self, states: Sequence[LoopState], seen: Mapping[str, tuple[float, float | None]]) -> None:
        # A loop that nobody ever told of has been idle since we look.
        unknown = self._clock() - self._began
        self._anywhere = {state.name: seen[state.name][0] if state.name in seen else unknown for state in states}
        self._elsewhere = {name: elsewhere for name, (_, elsewhere) in seen.items()}
        self._seen_at = self._clock()
        nowhere = {name for name, seconds in self._anywhere.items() if seconds > IDLE_SECONDS}
        for name in sorted(nowhere - self._said):
            log.critical("a loop works on no replica", loop=name, seconds=round(self._anywhere[name]))
        for name in sorted(self._said - nowhere):
            log.info("the loop works again on a replica", loop=name)
        self._said = nowhere
