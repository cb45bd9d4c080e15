"""Arming: what is in force for schedules, and when each is due next.

Who changes what is in force first settles, in the same transaction, what was owed until then; then a new revision
counts from now on. So no old occurrence fires, none fires twice, and each run is an occurrence of the revision that was
in force at its instant.

The order of locks: service, job, schedules by id, live runs. A job's row is locked by whoever changes it, and held by
whoever puts a schedule of it, so that a schedule cannot follow a timing that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.job import TimingSpec
from scheduler_service.domain.names import DEFAULT_SCHEDULE
from scheduler_service.domain.schedule import NO_EXPRESSION, InForce, Schedule, ScheduleSpec, revise, start_after
from scheduler_service.domain.timing import TimingError
from scheduler_service.store import schedules
from scheduler_service.store.database import Transaction
from scheduler_service.store.schedules import NewSchedule, Revision
from scheduler_service.usecases.tick import settle_now
from scheduler_service.usecases.wakeups import Topic, Wakeups


@dataclass(frozen=True, slots=True)
class JobTiming:
    """A job's timing in force, every default filled in."""

    job_id: int
    timing: TimingSpec


async def hold_still(tx: Transaction, job_ids: Iterable[int]) -> None:
    """Waits for the ticks that are at schedules of these jobs, lets no other begin until the transaction ends, and then
    takes its now: no occurrence is decided by what the jobs were before, at a time when they are something else. Call
    it once the jobs are locked."""
    await schedules.lock_due_soon(tx, job_ids)
    await tx.look_at_clock()


async def settle_jobs(tx: Transaction, job_ids: Sequence[int]) -> int:
    """Settles what the schedules of these jobs owe up to now, and answers how many runs that made. Call it once the
    jobs are locked, before their rows change."""
    await hold_still(tx, job_ids)
    return await settle_schedules(tx, await schedules.owing(tx, job_ids))


async def settle_schedules(tx: Transaction, schedule_ids: Sequence[int]) -> int:
    """Settles what these schedules owe up to now, and answers how many runs that made. Call it before what is in force
    for them changes."""
    if not schedule_ids:
        return 0
    return await settle_now(await schedules.driver_connection(tx), schedule_ids, tx.now)


async def follow_jobs(tx: Transaction, jobs: Iterable[JobTiming]) -> None:
    """Brings the schedules of these jobs in line with the jobs' timing, and makes the jobs' own where they are missing.
    What they owed must be settled, and the jobs be locked."""
    timings = {job.job_id: job.timing for job in jobs}
    if not timings:
        return
    await _make_own(tx, timings)
    async for page in schedules.lock_following(tx, timings):
        revisions = []
        for schedule in page:
            wanted = revise(
                schedule.spec, timings[schedule.job_id], schedule.in_force, is_jobs_own=schedule.name.is_jobs_own
            )
            if wanted != schedule.in_force:
                revisions.append(revision(tx, schedule, wanted))
        await schedules.put_in_force(tx, revisions)


def revision(tx: Transaction, schedule: Schedule, wanted: InForce, *, enabled: bool | None = None) -> Revision:
    """What is to be in force for a schedule from now on. `enabled` is what its owner wants (default: as it is)."""
    owners = schedule.spec.enabled if enabled is None else enabled
    # A tick may have settled more than this transaction's now while it waited for the lock.
    since = max(schedule.settled_to, tx.now)
    made = Revision(
        schedule_id=schedule.schedule_id,
        in_force=wanted,
        enabled=wanted.enabled if schedule.name.is_jobs_own else owners,
        in_force_from=since,
        next_run_at=None,
        set_aside_reason=NO_EXPRESSION if owners and not wanted.enabled and not schedule.name.is_jobs_own else None,
    )
    return _armed(made)


def announce(wakeups: Wakeups, runs: int) -> None:
    """Tells the loops of a committed change: next times moved, and so many runs were made by settling."""
    wakeups.wake(Topic.SCHEDULES)
    if runs:
        wakeups.wake(Topic.PENDING)
        wakeups.wake(Topic.RUNS)


def first_revision(tx: Transaction, schedule_id: int, in_force: InForce) -> Revision:
    """What is in force for a schedule that was made just now."""
    return _armed(Revision(schedule_id, in_force, in_force.enabled, tx.now, None, None, is_first=True))


async def _make_own(tx: Transaction, timings: Mapping[int, TimingSpec]) -> None:
    there = await schedules.jobs_with_own(tx, timings)
    new = {
        job_id: revise(ScheduleSpec(), timing, None, is_jobs_own=True)
        for job_id, timing in timings.items()
        if timing.cron and job_id not in there
    }
    if not new:
        return
    made = await schedules.insert_schedules(
        tx,
        [
            NewSchedule(job_id, SYSTEM_TENANT, DEFAULT_SCHEDULE, ScheduleSpec(), in_force)
            for job_id, in_force in new.items()
        ],
    )
    await schedules.put_in_force(
        tx, [first_revision(tx, schedule_id, new[job_id]) for (job_id, _, _), schedule_id in made.items()]
    )


def _armed(made: Revision) -> Revision:
    try:
        return replace(made, next_run_at=start_after(made.schedule_id, made.in_force, made.in_force_from))
    except TimingError as error:
        return replace(made, set_aside_reason=str(error))
