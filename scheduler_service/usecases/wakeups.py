"""Who is told when something happened, so that nothing has to be polled for to be prompt.

Loops of this replica are woken at once. Other replicas are told through `tell_others` (LISTEN/NOTIFY underneath,
debounced there, without data). Everyone who waits also looks by itself every second or so: a wake-up that is lost costs
time, never correctness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from weakref import WeakSet

from scheduler_service.store.notifications import direct_connection, hear, listen, require_answer, tell

__all__ = ["Topic", "Wakeup", "Wakeups", "direct_connection", "hear", "listen", "require_answer", "tell"]


class Topic(StrEnum):
    """What happened."""

    SCHEDULES = "schedules"  # a schedule was made, changed, paused or resumed: next due times moved
    PENDING = "pending"  # a run waits for a worker
    RUNS = "runs"  # a run changed
    CANCELS = "cancels"  # a run in a worker's hands was asked to stop


class Wakeup:
    """One listener. `wait` returns at once if something happened since the last time it returned."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def take(self) -> bool:
        """Whether something happened since it was last asked or waited for."""
        happened = self._event.is_set()
        self._event.clear()
        return happened

    async def wait(self, seconds: float) -> bool:
        """Until something happens, or `seconds` have passed. Answers whether something did."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Wakeups:
    """The listeners of this replica. `tell_others` is replaced once the connection for it is there. `ending`: the
    replica goes, and who waits for news without end must not any more."""

    def __init__(self) -> None:
        self.ending = False
        self.tell_others: Callable[[Topic], None] = lambda _topic: None
        self._listeners: dict[Topic, WeakSet[Wakeup]] = {topic: WeakSet() for topic in Topic}

    def listen(self, *topics: Topic) -> Wakeup:
        """A listener for any of these topics; it is forgotten when nobody holds it."""
        wakeup = Wakeup()
        for topic in topics:
            self._listeners[topic].add(wakeup)
        return wakeup

    def wake(self, topic: Topic) -> None:
        """Something happened on this replica, and is committed."""
        self.wake_here(topic)
        self.tell_others(topic)

    def end(self) -> None:
        """The replica goes."""
        self.ending = True
        self.wake_here(Topic.RUNS)

    def wake_here(self, topic: Topic) -> None:
        """Something happened that the other replicas know already, or need not."""
        for wakeup in list(self._listeners[topic]):
            wakeup.set()
