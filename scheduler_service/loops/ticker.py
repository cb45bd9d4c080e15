"""The loops that make due schedules into runs.

The ticker dispatches as well, because what a tick leaves pending is what dispatch hands out next. It sleeps until the
earliest schedule, or the earliest pending run that waits for its time, is due. While more is due than one batch, a
second one ticks beside it, so that PostgreSQL writes one batch while the next is decided here.

After an outage, what comes due now goes before what is overdue: the ticker takes what is less than 60 s late first, and
the second one the rest, oldest first. Only where nothing is due on time does the first help, by small batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import monotonic

from scheduler_service.domain.timing.catch_up import ON_TIME
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.missing_partitions import MissingPartitions
from scheduler_service.engine.repairs import Repairs
from scheduler_service.engine.tick import BATCH, Ticked, seconds_to_next, tick
from scheduler_service.loops.loop import POLL, Connect, Loop
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups

# Of overdue schedules: few enough that what comes due meanwhile does not wait for them.
_SMALL_BATCH = 100
# What is due and was not taken is locked by another replica, which settles it, or dies and lets go of it.
_LOCKED = 0.05


@dataclass(slots=True)
class TickTotals:
    """What the ticks of a replica did, all in all: runs made (`buffered` of them behind others), and occurrences
    skipped."""

    ticks: int = 0
    runs: int = 0
    buffered: int = 0
    skipped: int = 0

    def add(self, ticked: Ticked) -> None:
        self.ticks += 1
        self.runs += ticked.made.live
        self.buffered += ticked.made.kept_out.buffered
        self.skipped += ticked.made.skipped


class Ticker(Loop):
    """Makes due schedules into runs, and hands pending runs to the sessions of this replica. Asks the second ticker
    for help when more is due than one batch."""

    def __init__(self, connect: Connect, dispatcher: Dispatcher, wakeups: Wakeups, second: SecondTicker) -> None:
        super().__init__("ticker", wakeups.listen(Topic.SCHEDULES, Topic.PENDING), connect)
        self._second = second
        self._dispatcher = dispatcher
        self._wakeups = wakeups
        self._schedules = wakeups.listen(Topic.SCHEDULES)
        self._pending = wakeups.listen(Topic.PENDING)
        # By this process's monotonic clock: when a schedule is due, when to ask for the earliest again, and when to
        # look for pending runs.
        self._tick_at = inf
        self._ask_at = 0.0
        self._look_at = 0.0
        self._is_behind = False

    async def step(self, connection: Connection) -> bool:
        if self._pending.take() or monotonic() >= self._look_at:
            self._look_at = monotonic() + POLL
            self._dispatcher.look_again()
        handed = await self._dispatch(connection)
        if self._schedules.take() or monotonic() >= self._ask_at:
            await self._ask(connection)
        ticked = await self._tick(connection) if monotonic() >= self._tick_at else 0
        return handed + ticked > 0

    def seconds_to_next(self) -> float:
        looks = min(self._tick_at, self._ask_at, self._look_at) - monotonic()
        return max(0.0, min(looks, self._dispatcher.seconds_to_alone()))

    async def _dispatch(self, connection: Connection) -> int:
        if not self._dispatcher.has_work():
            return 0
        handed = await self._dispatcher.dispatch(connection)
        if not self._dispatcher.has_work():
            seconds = await self._dispatcher.seconds_to_next(connection)
            if seconds is not None:
                self._look_at = min(self._look_at, monotonic() + seconds)
        return handed

    async def _tick(self, connection: Connection) -> int:
        if self._is_behind:
            self._second.help()
        ticked = await (self._tick_behind(connection) if self._is_behind else self._tick_once(connection))
        if ticked.full:
            self._second.help()
            return ticked.schedules
        await self._ask(connection)
        if self._tick_at <= monotonic() and not ticked.schedules:
            self._tick_at = monotonic() + _LOCKED
        return ticked.schedules

    async def _tick_behind(self, connection: Connection) -> Ticked:
        """What is due on time; where nothing is, some of what is overdue."""
        ticked = await self._tick_once(connection, only_recent=True)
        return ticked if ticked.schedules else await self._tick_once(connection, limit=_SMALL_BATCH)

    async def _tick_once(self, connection: Connection, *, limit: int = BATCH, only_recent: bool = False) -> Ticked:
        ticked = await _tick_and_hand_over(
            connection,
            self._dispatcher,
            self._wakeups,
            self._second.partitions,
            limit=limit,
            only_recent=only_recent,
        )
        self._second.totals.add(ticked)
        return ticked

    async def _ask(self, connection: Connection) -> None:
        """When the earliest schedule is due: one statement, where a tick for nothing would be three."""
        seconds = await seconds_to_next(connection)
        self._is_behind = seconds is not None and seconds <= -ON_TIME.total_seconds()
        self._ask_at = monotonic() + POLL
        self._tick_at = inf if seconds is None else monotonic() + seconds


class SecondTicker(Loop):
    """Ticks while batches are full, once it is asked to help. SKIP LOCKED keeps the two out of each other's way.

    `totals`: what both did; `repairs`: what they mended. `replica` signs what they tell the audit trail.
    """

    essential = False

    def __init__(self, connect: Connect, dispatcher: Dispatcher, wakeups: Wakeups, replica: str = "") -> None:
        super().__init__("second ticker", Wakeup(), connect)
        self._dispatcher = dispatcher
        self._wakeups = wakeups
        self._needed = False
        self.totals = TickTotals()
        self.repairs = Repairs(replica)
        self.partitions = MissingPartitions(self.repairs, monotonic)

    def help(self) -> None:
        """More is due than one batch."""
        self._needed = True
        self.wakeup.set()

    async def step(self, connection: Connection) -> bool:
        if not self._needed:
            return False
        ticked = await _tick_and_hand_over(connection, self._dispatcher, self._wakeups, self.partitions)
        self.totals.add(ticked)
        self._needed = ticked.full
        return ticked.full


async def _tick_and_hand_over(
    connection: Connection,
    dispatcher: Dispatcher,
    wakeups: Wakeups,
    partitions: MissingPartitions,
    *,
    limit: int = BATCH,
    only_recent: bool = False,
) -> Ticked:
    """One tick; its runs go to the sessions that have a seat for them once it is committed."""
    seats = dispatcher.seats()
    claims = {}
    try:
        ticked = await tick(connection, seats, limit=limit, only_recent=only_recent, partitions=partitions)
        claims = ticked.made.claimed
    finally:
        dispatcher.hand_over(seats, claims)
    if ticked.pending:
        # At once: a tick that has begun meanwhile must not go on seating runs before those that wait.
        dispatcher.look_again()
        wakeups.wake(Topic.PENDING)
    if ticked.made.kept_out.stopped:
        wakeups.wake(Topic.CANCELS)
    if ticked.schedules:
        wakeups.wake(Topic.RUNS)
    return ticked
