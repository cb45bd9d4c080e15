"""The tick: due schedules become runs.

Any number of replicas tick at once, without a leader: a due schedule is locked, and its runs, its gaps and where it
then stands are written in the transaction that locked it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from scheduler_service.domain import settling
from scheduler_service.engine.halving import apart
from scheduler_service.engine.missing_partitions import MissingPartitions
from scheduler_service.store import due as store
from scheduler_service.store.connection import Connection
from scheduler_service.store.due import seconds_to_next
from scheduler_service.store.errors import HOPELESS
from scheduler_service.store.partitions import lacks_partition
from scheduler_service.store.settle import Made, settle
from scheduler_service.usecases.settling import decided, owes_more, set_aside

__all__ = ["NOTHING", "NobodySeated", "Seating", "Ticked", "seconds_to_next", "tick"]

BATCH = 500
MOST_RUNS = 2_000
"""Runs that one tick makes, and up to a schedule's more: after an outage, a batch may owe 100 for each schedule."""

_log = structlog.get_logger()


class Seating(Protocol):
    """Who may have a run the moment it is made. Each answer takes one run's credit."""

    def seat(self, route: str) -> UUID | None: ...


class NobodySeated:
    """Every run is pending first."""

    def seat(self, route: str) -> UUID | None:  # noqa: ARG002 - of no route
        return None


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one tick did. `full`: it may have left due schedules."""

    schedules: int
    made: Made
    full: bool

    @property
    def pending(self) -> int:
        return self.made.live - sum(map(len, self.made.claimed.values()))


NOTHING = Ticked(0, Made(), full=False)


async def tick(
    connection: Connection,
    seating: Seating,
    *,
    now: datetime | None = None,
    limit: int = BATCH,
    only_recent: bool = False,
    partitions: MissingPartitions | None = None,
) -> Ticked:
    """Settles up to `limit` due schedules, oldest first, in one transaction. `now` stands in for the database's clock.
    `only_recent`: of those that are less than 60 s late. `partitions` makes a month of the record that is missing.

    A schedule that cannot be settled is set aside with its reason, and keeps nobody else waiting.
    """
    try:
        async with connection.transaction():
            return await _tick(connection, seating, _Take(now, limit, only_recent))
    except HOPELESS as error:
        if partitions is not None and await partitions.mend(connection, error):
            return await tick(connection, seating, now=now, limit=limit, only_recent=only_recent)
        _log.warning("a batch of due schedules could not be settled; looking for the one", error=str(error))
    async with connection.transaction():
        return await _tick_apart(connection, _Take(now, limit, only_recent))


@dataclass(frozen=True, slots=True)
class _Take:
    """Which due schedules a tick is about."""

    now: datetime | None
    limit: int
    only_recent: bool


async def _tick(connection: Connection, seating: Seating, take: _Take) -> Ticked:
    taken = await store.take_due(connection, take.now, take.limit, take.only_recent)
    if taken is None:
        return NOTHING
    instant, due = taken
    settled = await decided(connection, due, instant, settling.decide, most=MOST_RUNS)
    for each in settled:
        each.seats = tuple([seating.seat(each.schedule.route) for _ in each.decision.runs])
    made = await settle(connection, settled, instant)
    # What most kept back is due still, and so is what owes more than one settlement makes.
    full = (
        len(due) == take.limit or len(settled) < len(due) or any(owes_more(each.decision, instant) for each in settled)
    )
    return Ticked(len(due), made, full=full)


class _Apart:
    """A batch that cannot be settled together, settled part by part. All its runs are pending: the batch that failed
    has taken the credit."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self.made = Made()
        self.schedules = 0
        self.left_some = False
        self._connection = connection
        self._now = now
        self._jobs: dict[int, tuple[str, str]] = {}
        self._unwritable: dict[int, Exception] = {}
        self._lacking: Exception | None = None

    async def settle(self, schedule_ids: Sequence[int]) -> None:
        most = MOST_RUNS - self.made.live - self.made.skipped
        if most <= 0:
            self.left_some = True
            return
        async with self._connection.transaction():
            due = await store.lock_armed(self._connection, schedule_ids, self._now)
            self._jobs |= {each.standing.schedule_id: (each.service, each.job) for each in due}
            settled = await decided(self._connection, due, self._now, settling.decide, most=most)
            made = await settle(self._connection, settled, self._now)
        self.made += made
        self.schedules += len(due)
        self.left_some |= len(settled) < len(due) or any(owes_more(each.decision, self._now) for each in settled)

    async def offends(self, schedule_id: int, error: Exception) -> None:
        """It cannot be settled even alone."""
        if lacks_partition(error):
            self._lacking = error
        elif schedule_id in self._jobs:
            self._unwritable[schedule_id] = error
        else:
            await self._set_aside(schedule_id, error)

    async def end(self) -> None:
        """Sets aside what could be read, but not written. Where that is all, of several jobs, or the record lacks a
        month, it is no fault of theirs: then the tick has failed, and is tried again."""
        if self._lacking is not None and not self.schedules:
            raise self._lacking
        if not self.schedules and len({self._jobs[each] for each in self._unwritable}) > 1:
            raise next(iter(self._unwritable.values()))
        for schedule_id, error in self._unwritable.items():
            await self._set_aside(schedule_id, error)

    async def _set_aside(self, schedule_id: int, error: Exception) -> None:
        try:
            async with self._connection.transaction():
                await set_aside(self._connection, {schedule_id: str(error) or type(error).__name__})
        except HOPELESS as another:
            _log.error("a schedule cannot even be set aside", schedule_id=schedule_id, error=str(another))
        else:
            self.schedules += 1


async def _tick_apart(connection: Connection, take: _Take) -> Ticked:
    taken = await store.take_due_ids(connection, take.now, take.limit, take.only_recent)
    if taken is None:
        return NOTHING
    instant, due = taken
    parts = _Apart(connection, instant)
    await apart(due, parts.settle, parts.offends)
    await parts.end()
    return Ticked(parts.schedules, parts.made, full=len(due) == take.limit or parts.left_some)
