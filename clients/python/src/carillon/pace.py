"""Lets things that come often go out together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pace:
    """Calls `due` at most once in each `interval` seconds, as long as it is triggered.

    `due` returns whether to look again after the next interval. at_once: the first trigger calls it without waiting.
    """

    def __init__(self, interval: float, due: Callable[[], bool], *, at_once: bool = False) -> None:
        self._interval = interval
        self._due = due
        self._at_once = at_once
        self._timer: asyncio.TimerHandle | None = None

    def trigger(self) -> None:
        """There is something."""
        if self._timer is not None:
            return
        if self._at_once and not self._due():
            return
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._over)

    def cancel(self) -> None:
        """Calls nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _over(self) -> None:
        self._timer = None
        if self._due():
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._over)
