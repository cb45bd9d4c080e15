"""What is done and timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median, quantiles

from benchmarks.floor import Floor
from benchmarks.place import FLOOR_ROUTE, Place, now
from benchmarks.stack import Stack
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.sessions import Sessions
from scheduler_service.loops.ticker import SecondTicker, Ticker
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Topic, Wakeups

_LOOK = 0.002


@dataclass
class Starts:
    """When handlers started, after their runs were due, in seconds."""

    delays: list[float] = field(default_factory=list)

    def started(self, scheduled_for: datetime) -> None:
        self.delays.append(time.time() - scheduled_for.timestamp())

    async def reach(self, count: int) -> None:
        while len(self.delays) < count:  # noqa: ASYNC110 - an event each start would be measured with it
            await asyncio.sleep(_LOOK)


async def flow_of_floor(place: Place, floor: Floor, count: int) -> float:
    """Runs a second: inserted already claimed, and ended."""
    # Not due, or the measured stack would take them; which costs the same.
    schedules = place.schedules(count, _just_now() + timedelta(days=1))
    place.admin.execute("analyze carillon.schedules")
    began = time.perf_counter()
    await floor.flow(schedules)
    return count / (time.perf_counter() - began)


async def drain_of_floor(place: Place, floor: Floor, count: int) -> float:
    """Runs a second: claimed and ended."""
    place.pending(count, FLOOR_ROUTE)
    began = time.perf_counter()
    await floor.drain(count)
    return count / (time.perf_counter() - began)


async def flow(place: Place, starts: Starts, count: int) -> float:
    """Runs a second from due schedules: inserted, dispatched, carried out, recorded."""

    def make() -> None:
        place.schedules(count, _just_now())
        place.admin.execute("analyze carillon.schedules")

    return await _timed(place, starts, count, make, "schedules")


async def drain(place: Place, starts: Starts, count: int) -> float:
    """Runs a second from a backlog: dispatched, carried out, recorded."""
    return await _timed(place, starts, count, lambda: place.pending(count), "pending")


async def _timed(place: Place, starts: Starts, count: int, make: Callable[[], None], topic: str) -> float:
    """The rows are made in one transaction, in which nobody sees them, and the clock starts at its commit."""
    starts.delays.clear()
    with place.admin.transaction():
        make()
    began = time.perf_counter()
    place.tell(topic)
    await starts.reach(count)
    while not place.is_drained():  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(_LOOK)
    return count / (time.perf_counter() - began)


async def latency(place: Place, starts: Starts, count: int) -> tuple[float, float]:
    """Milliseconds from due to the handler's start, p50 and p99, of runs due one by one."""
    starts.delays.clear()
    place.schedules(count, now() + timedelta(seconds=0.5), timedelta(milliseconds=15))
    place.tell("schedules")
    await starts.reach(count)
    return 1e3 * median(starts.delays), 1e3 * quantiles(starts.delays, n=100)[98]


async def burst(place: Place, starts: Starts, count: int) -> float:
    """Milliseconds from one instant to the last handler's start, of runs that are all due then."""
    starts.delays.clear()
    place.schedules(count, now() + timedelta(seconds=0.5))
    place.tell("schedules")
    await starts.reach(count)
    return 1e3 * max(starts.delays)


async def idle_tick(place: Place, schedules: int, ticks: int = 300) -> float:
    """Microseconds of a step of the ticker that finds nothing due among so many schedules."""
    place.schedules(schedules, now() + timedelta(days=1), timedelta(milliseconds=10))
    place.admin.execute("vacuum analyze carillon.schedules")
    took, wakeups = [], Wakeups()
    dispatcher = Dispatcher(Sessions(on_credit=lambda: None), wakeups)
    ticker = Ticker(_no_connection, dispatcher, wakeups, SecondTicker(_no_connection, dispatcher, wakeups))
    async with await Database(place.api_url, place.engine_url).hot_connection() as connection:
        for _ in range(ticks):
            wakeups.wake(Topic.SCHEDULES)
            began = time.perf_counter()
            await ticker.step(connection)
            took.append(time.perf_counter() - began)
    return 1e6 * median(took)


@dataclass
class Figures:
    """What was measured of one stack."""

    flow: list[float] = field(default_factory=list)
    flow_floor: list[float] = field(default_factory=list)
    drain: list[float] = field(default_factory=list)
    drain_floor: list[float] = field(default_factory=list)
    p50: float = 0.0
    p99: float = 0.0
    burst: float = 0.0

    @property
    def flow_ratio(self) -> float:
        return median(self.flow) / median(self.flow_floor)

    @property
    def drain_ratio(self) -> float:
        return median(self.drain) / median(self.drain_floor)

    @property
    def ratio(self) -> float:
        """The worse of the two."""
        return min(self.flow_ratio, self.drain_ratio)


async def measure(place: Place, stack: Stack, *, rounds: int, count: int) -> Figures:
    """All of it but the idle tick; stack and floor in turns, after one round that does not count."""
    figures, starts, floor = Figures(), Starts(), Floor(place)
    await floor.start()
    await stack.start(place, starts.started)
    try:
        for turn in range(rounds + 1):
            place.tidy()
            flow_floor = await flow_of_floor(place, floor, count)
            place.tidy()
            flow_stack = await flow(place, starts, count)
            place.tidy()
            drain_floor = await drain_of_floor(place, floor, count)
            place.tidy()
            drain_stack = await drain(place, starts, count)
            if turn:
                figures.flow.append(flow_stack)
                figures.flow_floor.append(flow_floor)
                figures.drain.append(drain_stack)
                figures.drain_floor.append(drain_floor)
        place.tidy()
        figures.p50, figures.p99 = await latency(place, starts, 200)
        place.tidy()
        figures.burst = await burst(place, starts, 1_000)
    finally:
        await stack.stop()
        await floor.stop()
    return figures


async def _no_connection() -> Connection:
    raise AssertionError("the ticker is stepped, not started")


def _just_now() -> datetime:
    """Due, and not late; whole seconds, as schedules mostly are."""
    return now().replace(microsecond=0)
