"""Wake-ups between replicas: one loop tells the others, one listens to them."""

from __future__ import annotations

import asyncio
from time import monotonic

from scheduler_service.loops.loop import POLL, Connect, Connection, Loop
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups, hear, listen, tell

# A burst of wake-ups is told once in this time; the first of it at once.
_DEBOUNCE = 0.02


class Teller(Loop):
    """Tells other replicas what happened here."""

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

    def __init__(self, connect: Connect, wakeups: Wakeups, teller: Teller) -> None:
        super().__init__("listener", Wakeup(), connect)
        self._wakeups = wakeups
        self._teller = teller
        self._listening: Connection | None = None

    async def step(self, connection: Connection) -> bool:
        if self._listening is not connection:
            await listen(connection)
            self._listening = connection
            # Whatever was told meanwhile was missed.
            self._wake(*Topic)
        heard = await hear(connection, POLL)
        told = {topic for topic, teller in heard if teller != self._teller.process_id}
        self._wake(*(topic for topic in Topic if topic in told))
        return True

    def _wake(self, *topics: Topic) -> None:
        for topic in topics:
            self._wakeups.wake_here(topic)
