"""What a replica cannot mend, remembered so that it keeps nothing else waiting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 600.0
PUT_OFF = 1.0
"""Seconds until what was put off is tried again."""
LONGEST_PUT_OFF = 60.0
"""Nobody who works for us locks anything for so long."""
_ANOTHER = 30.0  # after so long without a try that failed, it is another lock


@dataclass(slots=True)
class _Pause:
    seconds: float
    until: float


@dataclass(slots=True)
class _Wait:
    since: float
    until: float


class SetAside(Generic[Key]):
    """Each is tried again after a pause that doubles, from 5 s to 10 minutes. What is only put off, since somebody has
    locked it, is tried again a second later, and counts as none of them. Instants are of any monotonic clock."""

    def __init__(self) -> None:
        self._pauses: dict[Key, _Pause] = {}
        self._waits: dict[Key, _Wait] = {}

    def __len__(self) -> int:
        return len(self._pauses)

    def all(self) -> list[Key]:
        return [*self._pauses, *self._waits]

    def resting(self, at: float) -> list[Key]:
        """Those whose pause is not over."""
        paused = [key for key, pause in self._pauses.items() if pause.until > at]
        return paused + [key for key, wait in self._waits.items() if wait.until > at]

    def add(self, key: Key, at: float, *, longest: float = LONGEST_PAUSE) -> bool:
        """It failed (again), and is tried again after `longest` seconds at the latest. Answers whether that is news."""
        before = self._pauses.get(key)
        seconds = min(longest, before.seconds * 2) if before else FIRST_PAUSE
        self._pauses[key] = _Pause(seconds, at + seconds)
        self._waits.pop(key, None)
        return before is None

    def put_off(self, key: Key, at: float) -> bool:
        """Somebody has locked it (still). False if that has been so for a minute: then something is wrong."""
        wait = self._waits.get(key)
        if wait is None or at > wait.until + _ANOTHER:
            wait = self._waits[key] = _Wait(at, at)
        wait.until = at + PUT_OFF
        return key not in self._pauses and at - wait.since < LONGEST_PUT_OFF

    def forget(self, keys: Iterable[Key]) -> None:
        """They are mended, or gone."""
        for key in keys:
            self._pauses.pop(key, None)
            self._waits.pop(key, None)
