"""Arming: what is in force for schedules, and when each is due next.

Who changes what is in force first settles, in the same transaction, what was owed until then; then a new revision
counts from now on. So no old occurrence fires, none fires twice, and each run is an occurrence of the revision that was
in force at its instant.

The order of locks: tenant, service, job, schedules by id, live runs. A job's row is locked by whoever changes it, and
held by whoever puts a schedule of it, so that a schedule cannot follow a timing that is gone. A tenant is locked by
whoever changes its zone or removes it, and held by whoever puts a schedule of it, for the same reason.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.job import TimingSpec
from scheduler_service.domain.names import DEFAULT_SCHEDULE
from scheduler_service.domain.schedule import (
    NO_EXPRESSION,
    NOT_ALLOWED,
    InForce,
    Schedule,
    ScheduleSpec,
    revise,
    start_after,
)
from scheduler_service.domain.timing import TimingError
from scheduler_service.domain.values import from_json
from scheduler_service.store import schedules
from scheduler_service.store.database import Transaction
from scheduler_service.store.schedules import Following, NewSchedule, Revision
from scheduler_service.usecases.settling import record_overlooked, settle_now
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
    """Settles what these schedules owe up to now, and answers how many runs that made; what those owed that are set
    aside is recorded as missed. Call it before what is in force for them changes."""
    if not schedule_ids:
        return 0
    connection = await tx.driver_connection()
    await record_overlooked(connection, schedule_ids, tx.now)
    return await settle_now(connection, schedule_ids, tx.now)


async def follow_jobs(tx: Transaction, jobs: Iterable[JobTiming]) -> None:
    """Brings the schedules of these jobs in line with the jobs' timing, and makes the jobs' own where they are missing.
    What they owed must be settled, and the jobs be locked."""
    timings = {job.job_id: job.timing for job in jobs}
    if not timings:
        return
    await _make_own(tx, timings)
    await _follow(tx, timings, schedules.lock_following(tx, timings))


async def follow_tenant(tx: Transaction, tenant: str, jobs: Iterable[JobTiming]) -> None:
    """Brings a tenant's schedules of these jobs in line with the tenant's zone. What they owed must be settled, and the
    jobs be held."""
    timings = {job.job_id: job.timing for job in jobs}
    await _follow(tx, timings, schedules.lock_following_tenant(tx, tenant, timings))


async def _follow(
    tx: Transaction, timings: Mapping[int, TimingSpec], pages: AsyncIterator[Sequence[Following]]
) -> None:
    async for page in pages:
        revised = _Revised(timings, tx.now)
        await schedules.put_in_force(tx, [made for each in page if (made := revised.of(each)) is not None])


def revision(tx: Transaction, schedule: Schedule, wanted: InForce, *, enabled: bool, allowed: bool = True) -> Revision:
    """What is in force from now on for a schedule. `enabled`: whether its owner wants it; for a job's own, whether the
    job has an expression. `allowed`: whether its job allows it."""
    paused = schedule.paused_at is not None
    since = max(schedule.settled_to, tx.now)
    return _armed(_owners(schedule.schedule_id, wanted, since, enabled=enabled, paused=paused, allowed=allowed))


def announce(wakeups: Wakeups, runs: int) -> None:
    """Tells the loops of a committed change: next times moved, and so many runs were made by settling."""
    wakeups.wake(Topic.SCHEDULES)
    if runs:
        wakeups.wake(Topic.PENDING)
        wakeups.wake(Topic.CANCELS)
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


@dataclass(slots=True)
class _Revised:
    """What becomes of a page of schedules that follow their jobs: each distinct timing is worked out once."""

    timings: Mapping[int, TimingSpec]
    now: datetime
    _wanted: dict[tuple[object, ...], InForce] = field(default_factory=dict)
    _starts: dict[tuple[InForce, datetime, str | None], Revision] = field(default_factory=dict)

    def of(self, schedule: Following) -> Revision | None:
        """None if it stays as it is."""
        wanted = self._in_force(schedule)
        enabled = bool(self.timings[schedule.job_id].cron) if schedule.is_jobs_own else schedule.enabled
        if wanted == schedule.in_force and enabled == schedule.enabled:
            return None
        # Settling may have gone beyond now, where it made what waited for its jitter.
        since = max(schedule.settled_to, self.now)
        made = _owners(
            schedule.schedule_id, wanted, since, enabled=enabled, paused=schedule.paused, allowed=schedule.allowed
        )
        if wanted.jitter:
            return _armed(made)
        kind = (wanted, since, made.set_aside_reason)
        if (alike := self._starts.get(kind)) is None:
            alike = self._starts[kind] = _armed(made)
        return replace(made, next_run_at=alike.next_run_at, set_aside_reason=alike.set_aside_reason)

    def _in_force(self, schedule: Following) -> InForce:
        zone = schedule.tenant_zone
        stands = (schedule.enabled, schedule.paused, schedule.allowed, schedule.is_jobs_own, schedule.in_force)
        kind = (schedule.job_id, zone, schedule.timing, *stands)
        if (wanted := self._wanted.get(kind)) is None:
            spec = ScheduleSpec(from_json(TimingSpec, json.loads(schedule.timing)), schedule.enabled)
            job = self.timings[schedule.job_id]
            wanted = revise(
                spec,
                job,
                schedule.in_force,
                is_jobs_own=schedule.is_jobs_own,
                tenant_zone=zone,
                paused=schedule.paused,
                allowed=schedule.allowed,
            )
            self._wanted[kind] = wanted
        return wanted


def _owners(
    schedule_id: int, wanted: InForce, since: datetime, *, enabled: bool, paused: bool, allowed: bool = True
) -> Revision:
    """A revision, not armed, of a schedule whose owner wants it enabled or not."""
    without = enabled and not paused and not wanted.enabled
    reason = (NO_EXPRESSION if allowed else NOT_ALLOWED) if without else None
    return Revision(schedule_id, wanted, enabled, since, None, reason)


def _armed(made: Revision) -> Revision:
    try:
        return replace(made, next_run_at=start_after(made.schedule_id, made.in_force, made.in_force_from))
    except TimingError as error:
        return replace(made, set_aside_reason=str(error))
