"""Who breaks things: in storms, with calms between them in which everything must come right.

In a storm one process after another is killed, and beside that at most two other things are broken at a time. Which,
when and for how long is drawn from the plan's seed; what comes of it is not, since real processes race. Of the breaks a
shuffled deck is dealt, so that each has its turn before any has a second one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import TypeVar

from tests.faults import breaking_database, breaking_links, breaking_processes
from tests.faults.breaking import Break, held
from tests.faults.plan import Plan
from tests.faults.site import POSTGRES, Site

T = TypeVar("T")

AT_A_TIME = 2
"""Beside the kills."""
BREAKS = (*breaking_processes.BREAKS, *breaking_links.BREAKS, *breaking_database.BREAKS)
_KILLS = (*(Break("kill", (name,), breaking_processes.killed) for name in breaking_processes.KILLED),) + (
    Break("kill", (POSTGRES,), breaking_database.backend_killed),
) * 2


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
        """Until that instant of the monotonic clock; what is broken then is whole again before it returns. Errors:
        ExceptionGroup, of NotReady and whatever else keeps something from being whole again."""
        kills, breaks = self._dealt(_KILLS), self._dealt(BREAKS)
        while (left := until - time.monotonic()) > self._plan.storm / 4:
            storm = time.monotonic() + min(self._plan.storm, left)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._kill(group, kills, storm))
                for _ in range(AT_A_TIME):
                    group.create_task(self._break(breaks, storm))
            self._say("calm")
            await asyncio.sleep(min(self._plan.calm, max(0.0, until - time.monotonic())))

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

    def _own_random(self) -> Random:
        return Random(self._random.random())

    def _dealt(self, breaks: Sequence[T]) -> Iterator[T]:
        while True:
            yield from self._random.sample(breaks, len(breaks))
