"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Doubles from `first` to `longest` seconds; each wait is between half of that and all of it."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """Something worked: begin with the shortest wait again."""
        self._next = self._first

    def next(self) -> float:
        """The next wait, in seconds."""
        wait = self._next
        self._next = min(self._longest, wait * 2)
        return spread(wait)


def spread(wait: float) -> float:
    """Between half of that wait and all of it, so that those who began to wait together do not end together."""
    return random.uniform(wait / 2, wait)
