"""Who breaks things: in storms, with calms between them in which everything must come right.

In a storm one process after another is killed, and beside that at most two other things are broken at a time. Which,
when and for how long is drawn from the plan's seed; what comes of it is not, since real processes race. Of the breaks a
shuffled deck is dealt, so that each has its turn before any has a second one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TypeVar

from tests.faults import (
    breaking_database,
    breaking_links,
    breaking_moments,
    breaking_pgbouncer,
    breaking_processes,
    breaking_transactions,
)
from tests.faults.breaking import Break, held
from tests.faults.names import PGBOUNCER, POSTGRES
from tests.faults.plan import Plan
from tests.faults.site import Site

T = TypeVar("T")

AT_A_TIME = 2
"""Beside the kills."""
BREAKS = (
    *breaking_processes.BREAKS,
    *breaking_links.BREAKS,
    *breaking_database.BREAKS,
    *breaking_transactions.BREAKS,
    *breaking_pgbouncer.BREAKS,
    *breaking_moments.BREAKS,
)
KILLS = (
    *(
        Break((breaking_processes.kind_of_kill(name),), (name,), breaking_processes.killed)
        for name in breaking_processes.KILLED
    ),
    *(Break((breaking_database.BACKEND_KILLED,), (POSTGRES,), breaking_database.backend_killed),) * 2,
    Break((breaking_pgbouncer.KILLED,), (PGBOUNCER,), breaking_pgbouncer.killed),
)
KINDS = frozenset(kind for each in (*BREAKS, *KILLS) for kind in each.kinds)
"""Of faults: each is to happen, if there is time enough."""


class Nemesis:
    """Breaks a site as its plan says. `say` gets a line for each storm."""

    def __init__(self, site: Site, plan: Plan, say: Callable[[str], None]) -> None:
        self._site = site
        self._plan = plan
        self._say = say
        self._random = Random(plan.seed)
        self._held: set[str] = set()
        self._free = asyncio.Condition()

    async def run(self, until: float) -> None:
        """Until that instant of the monotonic clock, and on, as long as the plan lets it, for what had no turn. What is
        broken then is whole again before it returns. Errors: ExceptionGroup, of NotReady and whatever else keeps
        something from being whole again."""
        kills, breaks = (self._dealt(self._possible(each)) for each in (KILLS, BREAKS))
        while (left := until - time.monotonic()) > self._plan.storm / 4:
            await self._storm(kills, breaks, min(self._plan.storm, left))
            await asyncio.sleep(min(self._plan.calm, max(0.0, until - time.monotonic())))
        last = until + self._plan.overtime
        while (missing := self._missing()) and (left := last - time.monotonic()) > 0:
            self._say(f"not broken yet: {', '.join(kind for each in missing for kind in each.kinds)}")
            await self._storm(kills, self._dealt(missing), min(self._plan.storm, left))

    async def _storm(self, kills: Iterator[Break], breaks: Iterator[Break], seconds: float) -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill(group, kills, until))
            for _ in range(AT_A_TIME):
                group.create_task(self._break(breaks, until))
        self._say("calm")

    def _missing(self) -> list[Break]:
        """What has not been broken so far."""
        noted = {each.kind for each in self._site.journal.faults}
        return [each for each in self._possible(BREAKS) if not noted.issuperset(each.kinds)]

    async def _kill(self, group: asyncio.TaskGroup, kills: Iterator[Break], until: float) -> None:
        """Does not wait for what was killed to be there again, but for its turn."""
        while time.monotonic() < until:
            each = next(kills)
            target = self._random.choice(each.targets)
            if held(target).isdisjoint(self._held):
                self._held |= held(target)
                group.create_task(self._carry_out(each, target, self._own_random()))
                await asyncio.sleep(self._random.uniform(0.6, 1.4) * self._plan.kill_every)
            else:
                await asyncio.sleep(0.1)

    async def _break(self, breaks: Iterator[Break], until: float) -> None:
        while time.monotonic() < until:
            each = next(breaks)
            target = self._random.choice(each.targets)
            async with self._free:
                await self._free.wait_for(partial(held(target).isdisjoint, self._held))
                self._held |= held(target)
            await self._carry_out(each, target, self._own_random())
            await asyncio.sleep(self._random.uniform(0.2, 1.5))

    async def _carry_out(self, each: Break, target: str, random: Random) -> None:
        """And lets go of the target."""
        try:
            await each.do(self._site, random, target)
        finally:
            async with self._free:
                self._held -= held(target)
                self._free.notify_all()

    def _possible(self, breaks: Sequence[Break]) -> list[Break]:
        """Only what is here can be broken."""
        there = [replace(each, targets=[*filter(self._site.has, each.targets)]) for each in breaks]
        return [each for each in there if each.targets]

    def _own_random(self) -> Random:
        return Random(self._random.random())

    def _dealt(self, breaks: Sequence[T]) -> Iterator[T]:
        while True:
            yield from self._random.sample(breaks, len(breaks))
