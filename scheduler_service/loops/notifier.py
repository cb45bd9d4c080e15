"""Wake-ups between replicas: one loop tells the others, one listens to them."""

from __future__ import annotations

import asyncio
from time import monotonic

from scheduler_service.loops.loop import POLL, Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups, hear, listen, require_answer, tell

# A burst of wake-ups is told once in this time; the first of it at once.
_DEBOUNCE = 0.02
# After so long without a word, the listener asks whether anybody is there.
_SILENCE = 15.0


class Teller(Loop):
    """Tells other replicas what happened here. They find out by themselves, a little later."""

    essential = False

    def __init__(self, connect: Connect, wakeups: Wakeups) -> None:
        super().__init__("teller", Wakeup(), connect)
        self._topics: set[Topic] = set()
        self._told_at = 0.0
        self.process_id = 0
        wakeups.tell_others = self._add

    def _add(self, topic: Topic) -> None:
        self._topics.add(topic)
        self.wakeup.set()

    async def step(self, connection: Connection) -> bool:
        if not self._topics:
            return False
        self.process_id = connection.info.backend_pid
        await asyncio.sleep(self._told_at + _DEBOUNCE - monotonic())
        topics, self._topics = self._topics, set()
        try:
            await tell(connection, topics)
        except BaseException:
            self._topics |= topics
            raise
        self._told_at = monotonic()
        return True


class Listener(Loop):
    """Wakes those who wait here when another replica says that something happened."""

    essential = False

    def __init__(self, connect: Connect, wakeups: Wakeups, teller: Teller, *, silence: float = _SILENCE) -> None:
        super().__init__("listener", Wakeup(), connect)
        self._wakeups = wakeups
        self._teller = teller
        self._silence = silence
        self._listening: Connection | None = None
        self._heard_at = 0.0

    async def step(self, connection: Connection) -> bool:
        if self._listening is not connection:
            await listen(connection)
            self._listening = connection
            self._heard_at = monotonic()
            # Whatever was told meanwhile was missed.
            self._wake(*Topic)
        if monotonic() - self._heard_at > self._silence:
            await require_answer(connection)
            self._heard_at = monotonic()
        heard = await hear(connection, POLL)
        if heard:
            self._heard_at = monotonic()
        told = {topic for topic, teller in heard if teller != self._teller.process_id}
        self._wake(*(topic for topic in Topic if topic in told))
        return True

    def _wake(self, *topics: Topic) -> None:
        for topic in topics:
            self._wakeups.wake_here(topic)
