"""The network between two processes: cut, reset, swallowed, half-open, held, slow, and lost answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from random import Random

from tests.faults.breaking import Break
from tests.faults.names import ALWAYS, BEHIND, CLIENTS, PGBOUNCER, POSTGRES, WORKERS
from tests.faults.proxy import Direction, FaultProxy
from tests.faults.site import Site

TO_POSTGRES = (*(f"{name}>{POSTGRES}" for name in (*ALWAYS, PGBOUNCER)), f"{BEHIND}>{PGBOUNCER}")
TO_SCHEDULERS = tuple(f"{name}>{scheduler}" for name, scheduler in itertools.product((*WORKERS, *CLIENTS), ALWAYS))
_ANSWERED = Direction.DOWN


def _cut(proxy: FaultProxy, random: Random) -> float:
    proxy.cut()
    return random.uniform(1, 6)


def _reset(proxy: FaultProxy, random: Random) -> float:
    proxy.reset()
    return 0.0


def _swallow(proxy: FaultProxy, random: Random) -> float:
    proxy.blackhole(*random.choice(((), (Direction.UP,), (Direction.DOWN,))))
    return random.uniform(3, 10)


def _half_open(proxy: FaultProxy, random: Random) -> float:
    proxy.half_open()
    return random.uniform(3, 9)


def _hold(proxy: FaultProxy, random: Random) -> float:
    proxy.hold()
    return random.uniform(2, 9)


def _delay(proxy: FaultProxy, random: Random) -> float:
    proxy.delay(random.uniform(0.05, 0.6))
    return random.uniform(3, 8)


def _throttle(proxy: FaultProxy, random: Random) -> float:
    proxy.throttle(random.choice((2_000, 20_000)))
    return random.uniform(3, 8)


def _forget(proxy: FaultProxy, random: Random) -> float:
    proxy.cut_idle()
    return random.uniform(1, 3)


def _lose_answers(proxy: FaultProxy, random: Random) -> float:
    proxy.cut_after(_ANSWERED, random.randint(1, 4))
    return random.uniform(2, 5)


_KINDS: dict[str, Callable[[FaultProxy, Random], float]] = {
    "cut": _cut,
    "reset": _reset,
    "swallowed": _swallow,
    "half-open": _half_open,
    "held": _hold,
    "delayed": _delay,
    "throttled": _throttle,
    "idle ones forgotten": _forget,
    "done but not answered": _lose_answers,
}
_LOSSY = frozenset({"swallowed", "half-open"})


def _break(name: str, to: str, links: Sequence[str]) -> Break:
    kind = f"link to {to} {name}"

    async def do(site: Site, random: Random, link: str) -> None:
        proxy = site.links[link]
        with site.journal.fault(kind, link):
            await asyncio.sleep(_KINDS[name](proxy, random))
            if name in _LOSSY:
                proxy.reset()
            proxy.heal()
            await site.passes(link)

    return Break((kind,), links, do)


BREAKS = tuple(
    _break(kind, to, links)
    for kind, (to, links) in itertools.product(_KINDS, (("database", TO_POSTGRES), ("scheduler", TO_SCHEDULERS)))
)
