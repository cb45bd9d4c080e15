"""Which sessions are kept free for runs that are to be alone (domain/returns.py says which those are).

Such a run is handed to a session that holds nothing, and that gets nothing else until it ends. Under a constant load no
session is ever empty, so one is kept back: it gets nothing more until what it holds has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

LONGEST_WAIT = 10.0
"""In seconds, how long a session is kept back to become empty. Nearly all handlers end within that, and a run is not
held up by those that take hours: after that it runs beside others, which may lose an attempt by it, or take its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """A session that serves a run which is to be alone, and has none. `held`: how many others it holds. `idle`:
    nothing else waits for it. `resting`: it has just had such a run, and others go first."""

    session_id: UUID
    held: int
    idle: bool = False
    resting: bool = False


def most_kept_back(waiting: int, having: int, serving: int) -> int:
    """How many sessions may be kept back together from what else waits: one for each run that is to be alone, has its
    session or waits for one, but at most half of those that serve it, and one always, so that the lost runs of a big
    worker do not stop everything else."""
    return min(waiting + having, max(1, serving // 2))


def to_keep_back(places: Iterable[Place]) -> Place | None:
    """The session that is kept back next: the one that holds least."""
    return least(place for place in places if not place.resting)


def least(places: Iterable[Place]) -> Place | None:
    """The one that holds least."""
    return min(places, key=lambda place: place.held, default=None)
