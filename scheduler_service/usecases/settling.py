"""Settling what schedules owe: the part that the tick and the use cases share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic

import structlog

from scheduler_service.domain import settling
from scheduler_service.domain.settling import Decision, Standing
from scheduler_service.domain.timing import TimingError
from scheduler_service.store import due as store
from scheduler_service.store.connection import Connection
from scheduler_service.store.due import DueSchedule
from scheduler_service.store.settle import Made, Settled, settle

# In seconds. After an outage, what is decided is new to every cache; streams and other loops must not wait for it.
_LONGEST_BREATH = 0.002
_log = structlog.get_logger()

Decide = Callable[[Standing, datetime, datetime], Decision]


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
        settled = await decided(connection, due, now, settling.decide_all)
        made = await settle(connection, settled, now) if settled else Made()
        runs += made.live + made.skipped
        remaining = [each.schedule.standing.schedule_id for each in settled if owes_more(each.decision, now)]
    return runs


def owes_more(decision: Decision, now: datetime) -> bool:
    return decision.next_run_at is not None and decision.next_run_at <= now


async def record_overlooked(connection: Connection, schedule_ids: Sequence[int], now: datetime) -> None:
    """Records as missed what those of these schedules owed up to `now` that are set aside. For the transaction that is
    about to mend, pause or delete them: call it before that change.

    Of a timing that cannot be evaluated nobody can say what it owed: nothing is recorded.
    """
    locked = await store.lock_set_aside(connection, schedule_ids, now)
    settled = [Settled(each, made) for each in locked if (made := _overlooked(each.standing, now)) and made.missed]
    if settled:
        await settle(connection, settled, now)


def _overlooked(standing: Standing, now: datetime) -> Decision | None:
    try:
        return settling.overlooked(standing, now)
    except TimingError:
        return None


async def decided(
    connection: Connection, due: Sequence[DueSchedule], now: datetime, decide: Decide, *, most: int | None = None
) -> list[Settled]:
    """Decides each; those that cannot be evaluated are set aside. Those after the first `most` runs are left as they
    are."""
    oldest = settling.oldest_partition(now)
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
        await set_aside(connection, broken)
    return settled


async def set_aside(connection: Connection, reasons: dict[int, str]) -> None:
    for schedule_id, reason in reasons.items():
        _log.error("a schedule cannot be settled and is set aside", schedule_id=schedule_id, reason=reason)
    await store.set_aside(connection, reasons)
