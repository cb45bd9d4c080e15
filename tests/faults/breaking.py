"""What is broken, as data: kinds, what it may be done to, and how. Each notes what it did, and ends with all whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.faults.names import SCHEDULERS
from tests.faults.site import Site

EVERY_SCHEDULER = "schedulers"

Do = Callable[[Site, Random, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Break:
    """`kinds`: of the faults that it notes, all of them sooner or later. `targets`: it is done to one of these, which
    nobody else breaks meanwhile."""

    kinds: Sequence[str]
    targets: Sequence[str]
    do: Do


def held(target: str) -> frozenset[str]:
    """What somebody who breaks this has for himself."""
    return frozenset(SCHEDULERS) if target == EVERY_SCHEDULER else frozenset({target})
