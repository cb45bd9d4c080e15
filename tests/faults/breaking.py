"""What is broken, as data: a kind, what it may be done to, and how. Each notes what it did, and ends with all whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.faults.site import HTTP_WORKER, SCHEDULERS, SERVICE, WORKERS, Site

EVERY_SCHEDULER = "schedulers"

Do = Callable[[Site, Random, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Break:
    """`targets`: it is done to one of these, which nobody else breaks meanwhile."""

    kind: str
    targets: Sequence[str]
    do: Do


def held(target: str) -> frozenset[str]:
    """What somebody who breaks this has for himself."""
    return frozenset(SCHEDULERS) if target == EVERY_SCHEDULER else frozenset({target})


def touches(target: str) -> frozenset[str]:
    """The workers whose attempts it may cut or make twice; empty: any's."""
    name = target.partition(">")[0]
    if name == SERVICE and ">" not in target:
        return frozenset({HTTP_WORKER})
    return frozenset({name}) if name in WORKERS else frozenset()
