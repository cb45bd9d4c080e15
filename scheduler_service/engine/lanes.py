"""What workers report and is not written yet: who is next, and who has to wait before it may report more.

Sessions are strangers to each other. One that reports more than can be written waits by itself; another one is next
after few entries of it, however many it brought.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from scheduler_service.engine.sessions import ConnectedSession

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):  # made for every result, as `AttemptRef` is
    """One report. `weight`: what it costs beside others of its queue; at least 1."""

    report: T
    session: ConnectedSession
    weight: int = 1


class Lanes(Generic[T]):
    """A queue with a lane for each session. Principals take turns, and the sessions of each; what a session put in
    comes out in its order."""

    def __init__(self) -> None:
        # Those that are not empty, the next one first.
        self._lanes: dict[str, dict[UUID, deque[Entry[T]]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, session: ConnectedSession, entries: Iterable[Entry[T]]) -> None:
        """Entries of this session, to go after those that it has here."""
        new = list(entries)
        if new:
            self._lanes.setdefault(session.principal, {}).setdefault(session.session_id, deque()).extend(new)
            self._length += len(new)

    def take(self, most: int) -> list[Entry[T]]:
        """Takes what weighs this much together (the last one may go beyond): as much of each principal, and of each
        of its sessions, as far as they have it."""
        taken: list[Entry[T]] = []
        left = most
        while self._lanes and left > 0:
            share = max(1, left // len(self._lanes))
            for principal in list(self._lanes):
                lanes = self._lanes.pop(principal)
                left -= _take(lanes, min(share, left), taken)
                if lanes:
                    self._lanes[principal] = lanes
                if left <= 0:
                    break
        self._length -= len(taken)
        return taken


def _take(lanes: dict[UUID, deque[Entry[T]]], most: int, taken: list[Entry[T]]) -> int:
    """One turn of a principal. Answers the weight of what it added to `taken`."""
    share = max(1, most // len(lanes))
    weight = 0
    for session_id in list(lanes):
        lane = lanes.pop(session_id)
        end = weight + share
        while lane and weight < end:
            taken.append(entry := lane.popleft())
            weight += entry.weight
        if lane:
            lanes[session_id] = lane
        if weight >= most:
            break
    return weight


class Room:
    """How much each session has reported that is not written yet, and how much that may be: an equal share of `most`
    among the sessions that have any, and never less than `least`."""

    def __init__(self, most: int, least: int) -> None:
        self._most = most
        self._least = least
        self._used: Counter[UUID] = Counter()
        self._wrote = asyncio.Event()

    def use(self, session: ConnectedSession, amount: int) -> None:
        if amount:
            self._used[session.session_id] += amount

    def free(self, amounts: Mapping[UUID, int]) -> None:
        """So much of each session is written."""
        for session_id, amount in amounts.items():
            self._used[session_id] -= amount
            if self._used[session_id] <= 0:
                del self._used[session_id]
        self._wrote.set()

    def used_by(self, session: ConnectedSession) -> int:
        return self._used[session.session_id]

    def is_left_for(self, session: ConnectedSession) -> bool:
        """Whether the session may report more."""
        return self._used[session.session_id] <= max(self._least, self._most // max(1, len(self._used)))

    async def wait(self, session: ConnectedSession) -> None:
        """Until the session may report more."""
        while not self.is_left_for(session):
            self._wrote.clear()
            await self._wrote.wait()
