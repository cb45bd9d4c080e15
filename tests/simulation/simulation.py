"""A simulated time: the real use cases and the real tick over a real PostgreSQL, with a clock that is stepped.

The clock goes from one moment at which something is due, ends or is to be done to the next; mostly seconds late, now
and then minutes, and in outages up to weeks. Two replicas tick in turn or at once. Changes come from the API, between
ticks or in the middle of one, also during outages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any, TypeVar

import psycopg

from scheduler_service.domain.job import Manifest
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.usecases import registry, schedules
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN, make_session, service
from tests.conftest import DatabaseUrls
from tests.simulation.diary import Diary
from tests.simulation.operator import Operator
from tests.simulation.plan import DAY, HOUR, MINUTE, SERVICE, ZONES, Drawing
from tests.simulation.worker import Worker
from tests.store.definitions_case import SteppedDatabase

Connection = psycopg.AsyncConnection[Any]
N = TypeVar("N", JobName, ScheduleName)
SECOND = timedelta(seconds=1)
_NEXT_DUE = "select next_run_at from carillon.schedules where next_run_at is not null order by next_run_at limit 1"
# Results wait at most this long for the next moment at which something is due.
_PATIENCE = 20 * MINUTE
_SERVICE = service(SERVICE)
_MONTHS_AHEAD = 14


@dataclass(frozen=True)
class Size:
    """How much is simulated, from `start` on. `changes`: by hand, for each schedule and year; `outages`: for a year,
    none longer than `longest_outage`."""

    schedules: int
    days: int
    start: datetime
    seed: int
    zones: int = len(ZONES)
    changes: float = 6.0
    outages: int = 26
    longest_outage: timedelta = 21 * DAY

    @property
    def end(self) -> datetime:
        return self.start + self.days * DAY


@dataclass
class Simulation:
    """One simulation. `run` it once; then `diary` says what was done, and the database what came of it."""

    urls: DatabaseUrls
    size: Size
    say: Callable[[str], None]
    diary: Diary = field(default_factory=Diary)
    problems: list[str] = field(default_factory=list)

    async def run(self) -> None:
        self._random = Random(self.size.seed)
        self._wakeups = Wakeups()
        async with AsyncExitStack() as stack:
            admin = stack.enter_context(psycopg.connect(self.urls.admin, autocommit=True))
            admin.execute("select carillon.create_partitions(%s)", [_MONTHS_AHEAD])
            self.database = SteppedDatabase(self.urls.api, self.urls.engine, pool_size=4)
            stack.push_async_callback(self.database.close)
            self.database.now = self.size.start
            self._replicas = [await stack.enter_async_context(await self.database.hot_connection()) for _ in range(2)]
            self._worker = Worker(make_session(admin), self.size.seed)
            await self._begin()
            await self._live()
            await self._finish()
        self.problems += self._worker.problems

    @property
    def now(self) -> datetime:
        return self.database.now

    async def _begin(self) -> None:
        drawing = Drawing(self._random, self.size.zones)
        plan = drawing.plan(self.size.schedules)
        manifest = Manifest(SERVICE, jobs=tuple(job.spec for job in plan.jobs))
        await registry.register_jobs(self.database, self._wakeups, _SERVICE, manifest)
        for job in plan.jobs:
            self.diary.add_job(self.now, job.name, job.timing, job.policies)
        for schedule in plan.schedules:
            spec = ScheduleSpec(timing=schedule.timing)
            await schedules.put_schedule(self.database, self._wakeups, ADMIN, schedule.name, spec)
            self.diary.add_schedule(self.now, schedule.name, schedule.timing)
        self._operator = Operator(self.database, self._random, drawing, self.diary)

    async def _live(self) -> None:
        changes = self._moments(int(self.size.changes * self.size.schedules * self.size.days / 365))
        outages = self._moments(max(1, self.size.outages * self.size.days // 365))
        told = self.size.start
        while self.now < self.size.end:
            upcoming = await self._upcoming()
            if outages and outages[-1] <= upcoming:
                outages.pop()
                await self._be_out(changes)
            elif changes and changes[-1] <= upcoming:
                await self._change_at(max(self.now + SECOND, changes.pop()))
            else:
                await self._step_to(min(max(self.now + SECOND, upcoming + self._lateness()), self.size.end))
            if self.now - told >= 30 * DAY:
                told = self.now
                self.say(f"{told:%Y-%m-%d}: {self._counted()}")

    def _moments(self, count: int) -> list[datetime]:
        """Random moments, the last one first."""
        span = self.size.days * DAY / SECOND
        return sorted((self.size.start + self._random.random() * span * SECOND for _ in range(count)), reverse=True)

    async def _upcoming(self) -> datetime:
        row = await (await self._replicas[0].execute(_NEXT_DUE)).fetchone()
        due = row[0] if row else self.size.end
        ends = self._worker.next_end
        return due if ends is None else min(due, ends + _PATIENCE)

    def _lateness(self) -> timedelta:
        kind = self._random.random()
        if kind < 0.3:
            return timedelta()
        return self._random.random() * (50 * SECOND if kind < 0.97 else 10 * MINUTE)

    async def _step_to(self, now: datetime) -> None:
        """Everything that a scheduler does, at one moment."""
        self.database.now = now
        first, second = self._replicas if self._random.random() < 0.5 else self._replicas[::-1]
        if self._random.random() < 0.2:
            await self._at_once(self._tick(first), self._tick(second))
        else:
            await self._tick(first)
            if self._random.random() < 0.2:
                await self._tick(second)
        await self._work(first)

    async def _at_once(self, one: Awaitable[None], other: Awaitable[None]) -> None:
        """Both; and then what either left to the other, so that a replay goes on from the same state."""
        await asyncio.gather(one, other)
        while (await tick(self._replicas[0], NobodySeated(), now=self.now)).schedules:
            pass

    async def _tick(self, connection: Connection) -> None:
        """As the first ticker does it, or the second: while batches are full."""
        only_recent = self._random.random() < 0.3
        limit = self._random.choice([3, 100, 500])
        ticked = await tick(connection, NobodySeated(), now=self.now, limit=limit, only_recent=only_recent)
        while ticked.full or (only_recent and ticked.schedules == 0):
            only_recent = False
            ticked = await tick(connection, NobodySeated(), now=self.now, limit=limit)

    async def _work(self, connection: Connection) -> None:
        # Again while runs get their turn by what has ended.
        while await self._worker.report(connection, self.now) + await self._worker.take(connection, self.now):
            await self._worker.heed_cancellations(connection, self.now)

    async def _be_out(self, changes: list[datetime]) -> None:
        """Nobody ticks, claims or reports; now and then somebody changes something."""
        longest = self._random.choice([10 * MINUTE, 3 * HOUR, DAY, 3 * DAY, self.size.longest_outage])
        until = min(self.now + MINUTE + self._random.random() * longest, self.size.end)
        self.diary.counts["outages"] += 1
        while changes and changes[-1] < until:
            moment = changes.pop()
            if self._random.random() < 0.5:
                await self._change_at(max(self.now + SECOND, moment), alone=True)
        await self._step_to(max(self.now + SECOND, until))

    async def _change_at(self, now: datetime, *, alone: bool = False) -> None:
        """One change by hand, at times while a replica ticks."""
        self.database.now = now
        change = self._operator.next_change()
        if not alone and change != self._operator.change_policies and self._random.random() < 0.3:
            await self._at_once(change(), self._tick(self._replicas[0]))
        else:
            await change()

    async def _finish(self) -> None:
        """Pausing every job settles everything that is owed, what waits for its jitter too."""
        self.database.now = max(self.now, self.size.end) + SECOND
        for name, job in self.diary.jobs.items():
            if not job.paused:
                await self._operator.pause_job(name)

    def _counted(self) -> str:
        counts = self.diary.counts
        ended = sum(self._worker.completed.ended.values())
        return f"{ended} runs ended, {counts['edits']} edits, {counts['pauses']} pauses, {counts['outages']} outages"
