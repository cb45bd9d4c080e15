"""Catching up what came due during a pause: first what it would be, in numbers, then the runs and the gaps.

What was owed is read from the revisions and from the job's changes, as they say it once the pause is taken back. What a
revision owed that is no longer in force is not run any more, because no edit fires an old occurrence: it is recorded as
missed. So is what somebody had run meanwhile (a backfill, a retry): no occurrence is run twice.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from scheduler_service.domain.catching_up import MOST_RUNS, NOTHING, CatchUpPlan, CaughtUp, Span, catch_up, passed_over
from scheduler_service.domain.errors import Conflict
from scheduler_service.domain.schedule import InForce, Schedule
from scheduler_service.domain.settling import OwedRun, oldest_partition
from scheduler_service.domain.timeline import RevisionInForce, timeline
from scheduler_service.domain.timing import CatchUp, TimingError
from scheduler_service.store import catching_up as store
from scheduler_service.store import job_changes, pausing
from scheduler_service.store.catching_up import CaughtUpSchedule
from scheduler_service.store.database import Transaction
from scheduler_service.store.pausing import Alike

_BATCH = 1000
"""Schedules and runs that are worked out and written at a time."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be caught up: LATEST or ALL, and how late an occurrence may be."""

    policy: CatchUp
    window: timedelta


async def wish(tx: Transaction, job_id: int, policy: CatchUp) -> Wish:
    """Nothing is caught up from outside the job's window, or from before the oldest records."""
    window = await pausing.catch_up_window(tx, job_id)
    return Wish(policy, min(window, tx.now - oldest_partition(tx.now)))


def refuse_too_many(plan: CatchUpPlan, policy: CatchUp) -> None:
    """Errors: Conflict."""
    if plan.runs <= MOST_RUNS:
        return
    instead = "`CATCH_UP_LATEST`, or a" if policy is CatchUp.ALL else "`CATCH_UP_NONE`, or a"
    raise Conflict(
        f"{plan.runs:,} runs would be caught up, which is more than the {MOST_RUNS:,} of one call; choose {instead}"
        " shorter `policies.catch_up_window` (JobService.UpdateJob), and make up for the others with"
        " JobService.BackfillJob",
        runs=str(plan.runs),
    )


async def of_schedule(
    tx: Transaction, schedule: Schedule, in_force: InForce, since: datetime, wanted: Wish
) -> CaughtUp | None:
    """What a schedule catches up if this is in force for it from an instant on; None if that owes nothing. What came
    due while its job was halted is not owed."""
    changes = await job_changes.changes_of(tx, schedule.job_id)
    resumed = RevisionInForce(schedule.revision + 1, in_force, since)
    owing = [
        (max(each.after, since), each.until)
        for each in timeline([resumed], changes, tx.now)
        if each.owing and each.until > since
    ]
    caught_up = _decided(in_force, tuple(owing), tx.now, wanted) if owing else None
    if caught_up is None:
        return None
    return caught_up.without(await store.remedied_of_schedule(tx, schedule.schedule_id, since))


async def carry_out(tx: Transaction, schedule: Schedule, jitter: timedelta, caught_up: CaughtUp | None) -> int:
    """Catches up for a locked schedule whose new revision is in force; answers how many runs that made."""
    made = 0
    missed = caught_up.missed if caught_up else ()
    revision = schedule.revision + 1
    runs: list[OwedRun] = []
    if caught_up:
        for run in caught_up.runs(schedule.schedule_id, jitter, tx.now):
            runs.append(run)
            if len(runs) == _BATCH:
                made += await store.write(tx, [CaughtUpSchedule(schedule.schedule_id, revision, runs, missed)])
                runs, missed = [], ()
    return made + await store.write(tx, [CaughtUpSchedule(schedule.schedule_id, revision, runs, missed)])


async def plan_of_job(tx: Transaction, job_id: int, since: datetime, wanted: Wish) -> CatchUpPlan:
    """What all schedules of a job catch up from an instant on, in numbers."""
    remedied = await store.remedied_of_job(tx, job_id, since)
    plan = NOTHING
    async for alike in (pausing.list_owing if remedied else pausing.count_owing)(tx, job_id, since):
        if caught_up := _of(alike, tx.now, wanted):
            differing = [each.schedule_id for each in alike.members if each.schedule_id in remedied]
            if same := alike.schedules - len(differing):
                plan += caught_up.plan().times(same)
            for schedule_id in differing:
                plan += caught_up.without(remedied[schedule_id]).plan()
    return plan


async def carry_out_for_job(tx: Transaction, job_id: int, since: datetime, wanted: Wish) -> int:
    """Catches up for all schedules of a locked job that no tick is at; answers how many runs that made."""
    remedied = await store.remedied_of_job(tx, job_id, since)
    made = size = 0
    batch: list[CaughtUpSchedule] = []
    async for alike in pausing.list_owing(tx, job_id, since):
        caught_up = _of(alike, tx.now, wanted)
        if caught_up is None or not (caught_up.spans or caught_up.missed):
            continue
        for each in alike.members:
            left = caught_up.without(remedied.get(each.schedule_id, ()))
            runs = list(left.runs(each.schedule_id, each.jitter, tx.now))
            batch.append(CaughtUpSchedule(each.schedule_id, each.revision, runs, left.missed))
            size += 1 + len(runs)
            if size >= _BATCH:
                made += await store.write(tx, batch)
                batch, size = [], 0
    return made + (await store.write(tx, batch) if batch else 0)


def _of(alike: Alike, now: datetime, wanted: Wish) -> CaughtUp | None:
    span = (alike.after, alike.until)
    if alike.goes_on:
        return _decided(alike.in_force, (span,), now, wanted)
    with suppress(TimingError):
        return passed_over(alike.in_force.timing, span)
    return None


def _decided(in_force: InForce, owing: tuple[Span, ...], now: datetime, wanted: Wish) -> CaughtUp | None:
    """None for what cannot be evaluated (any more)."""
    with suppress(TimingError):
        return catch_up(in_force.timing, owing, now, wanted.policy, wanted.window)
    return None
