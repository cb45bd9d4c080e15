"""The tick: due schedules become runs.

Any number of replicas tick at once, without a leader: a due schedule is locked, and its runs, its gaps and where it
then stands are written in the transaction that locked it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import TupleRow

from scheduler_service.domain import settling
from scheduler_service.domain.settling import Decision, Standing
from scheduler_service.store import due as store
from scheduler_service.store.due import DueSchedule, seconds_to_next
from scheduler_service.store.settle import Made, Settled, settle

__all__ = ["NOTHING", "NobodySeated", "Seating", "Ticked", "seconds_to_next", "settle_now", "tick"]

BATCH = 500
MOST_RUNS = 2_000
"""Runs that one tick makes, and up to a schedule's more: after an outage, a batch may owe 100 for each schedule."""

# In seconds. After an outage, what is decided is new to every cache; streams and other loops must not wait for it.
_LONGEST_BREATH = 0.002
_UNREADABLE = (psycopg.DataError, psycopg.IntegrityError)
_log = structlog.get_logger()

Connection = psycopg.AsyncConnection[TupleRow]
Decide = Callable[[Standing, datetime, datetime], Decision]


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
) -> Ticked:
    """Settles up to `limit` due schedules, oldest first, in one transaction. `now` stands in for the database's clock.
    `only_recent`: of those that are less than 60 s late.

    A schedule that cannot be settled is set aside with its reason, and keeps nobody else waiting.
    """
    try:
        async with connection.transaction():
            return await _tick(connection, seating, _Take(now, limit, only_recent), _settle_all)
    except _UNREADABLE as error:
        _log.warning("a batch of due schedules could not be written; looking for the one", error=str(error))
    async with connection.transaction():
        # Pending, all of them: the failed batch has taken the credit.
        return await _tick(connection, NobodySeated(), _Take(now, limit, only_recent), _settle_apart)


async def settle_now(connection: Connection, schedule_ids: Sequence[int], now: datetime) -> int:
    """Locks these schedules and settles everything they owe up to `now` under the revision in force; answers how many
    runs that made. For the transaction that is about to change, pause or delete them: call it before that change.

    Runs that wait for their jitter are made too. Schedules that are not armed owe nothing. The runs are pending: wake
    Topic.PENDING once the transaction is committed, if there are any.
    """
    runs = 0
    remaining = sorted(schedule_ids)
    while remaining:
        due = await store.lock_armed(connection, remaining, now)
        settled = await _decided(connection, due, now, settling.decide_all)
        made = await settle(connection, settled, now) if settled else Made()
        runs += made.live + made.skipped
        remaining = [each.schedule.standing.schedule_id for each in settled if _owes_more(each.decision, now)]
    return runs


def _owes_more(decision: Decision, now: datetime) -> bool:
    return decision.next_run_at is not None and decision.next_run_at <= now


Write = Callable[[Connection, Sequence[Settled], datetime], Awaitable[Made]]


@dataclass(frozen=True, slots=True)
class _Take:
    """Which due schedules a tick is about."""

    now: datetime | None
    limit: int
    only_recent: bool


async def _tick(connection: Connection, seating: Seating, take: _Take, write: Write) -> Ticked:
    taken = await store.take_due(connection, take.now, take.limit, take.only_recent)
    if taken is None:
        return NOTHING
    instant, due = taken
    settled = await _decided(connection, due, instant, settling.decide, most=MOST_RUNS)
    for each in settled:
        each.seats = tuple([seating.seat(each.schedule.route) for _ in each.decision.runs])
    made = await write(connection, settled, instant)
    # What most kept back is due still, and so is what owes more than one settlement makes.
    full = (
        len(due) == take.limit or len(settled) < len(due) or any(_owes_more(each.decision, instant) for each in settled)
    )
    return Ticked(len(due), made, full=full)


async def _decided(
    connection: Connection, due: Sequence[DueSchedule], now: datetime, decide: Decide, *, most: int | None = None
) -> list[Settled]:
    """Decides each; those that cannot be evaluated are set aside. Those after the first `most` runs are left as they
    are."""
    oldest = oldest_partition(now)
    settled: list[Settled] = []
    broken: dict[int, str] = {}
    runs, breathed_at = 0, monotonic()
    for each in due:
        if most is not None and runs >= most:
            break
        if monotonic() - breathed_at > _LONGEST_BREATH:
            await asyncio.sleep(0)
            breathed_at = monotonic()
        try:
            settled.append(Settled(each, decide(each.standing, now, oldest)))
            runs += len(settled[-1].decision.runs)
        except Exception as error:  # whatever is wrong with one schedule, the others are due
            broken[each.standing.schedule_id] = str(error) or type(error).__name__
    if broken:
        await _set_aside(connection, broken)
    return settled


async def _set_aside(connection: Connection, reasons: dict[int, str]) -> None:
    for schedule_id, reason in reasons.items():
        _log.error("a schedule cannot be settled and is set aside", schedule_id=schedule_id, reason=reason)
    await store.set_aside(connection, reasons)


def oldest_partition(now: datetime) -> datetime:
    """The start of the month before: where the oldest partition that is sure to be there begins."""
    month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return month.replace(year=month.year - 1, month=12) if month.month == 1 else month.replace(month=month.month - 1)


async def _settle_all(connection: Connection, settled: Sequence[Settled], now: datetime) -> Made:
    return await settle(connection, settled, now)


async def _settle_apart(connection: Connection, settled: Sequence[Settled], now: datetime) -> Made:
    """Halves a batch that cannot be written until the offender is alone, and sets that one aside."""
    if not settled:
        return Made()
    try:
        async with connection.transaction():
            return await settle(connection, settled, now)
    except _UNREADABLE as error:
        if len(settled) == 1:
            await _set_aside(connection, {settled[0].schedule.standing.schedule_id: str(error)})
            return Made()
    middle = len(settled) // 2
    first = await _settle_apart(connection, settled[:middle], now)
    second = await _settle_apart(connection, settled[middle:], now)
    return first + second
