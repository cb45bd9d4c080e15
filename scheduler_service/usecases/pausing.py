"""Pausing schedules, and letting them go on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from scheduler_service.domain.access import SYSTEM_TENANT, Action, Principal, Resource, require
from scheduler_service.domain.audit import updated
from scheduler_service.domain.catching_up import NOTHING, CatchUpPlan, CaughtUp
from scheduler_service.domain.errors import Conflict, NotFound
from scheduler_service.domain.job import Job
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.schedule import InForce, Schedule, revise
from scheduler_service.domain.timing import CatchUp, TimingError
from scheduler_service.store import audit, jobs, schedules, tenants
from scheduler_service.store import pausing as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases import arming, catching_up
from scheduler_service.usecases.wakeups import Wakeups


async def pause_schedule(database: Database, wakeups: Wakeups, principal: Principal, name: ScheduleName) -> Schedule:
    """Holds a schedule: it owes nothing from now on, whatever its owner asks for. Live runs go on. Pausing twice
    changes nothing. Errors: NotFound, Forbidden."""
    require(principal, Action.SET_SCHEDULE, Resource(service=name.job.service, tenant=name.tenant))
    async with database.acting_for(principal) as tx:
        _, schedule = await _locked(tx, name)
        if schedule.paused_at is not None:
            return schedule
        runs = await arming.settle_schedules(tx, [schedule.schedule_id])
        await _pause(tx, schedule)
        await audit.record(tx, [updated(name, {"paused": False}, {"paused": True}, tenant=name.tenant)])
        paused = _stored(await schedules.get_schedule(tx, name), name)
    arming.announce(wakeups, runs)
    return paused


async def resume_schedule(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    name: ScheduleName,
    policy: CatchUp = CatchUp.NONE,
    *,
    validate_only: bool = False,
    default_time_zone: str = "UTC",
) -> tuple[Schedule, CatchUpPlan]:
    """Lets a paused schedule go on from now; with a policy of LATEST or ALL, what came due since it was paused (or last
    changed, if that was later) is caught up within its job's window. `validate_only` answers what that would be, and
    changes nothing. Resuming twice changes nothing.

    Errors: NotFound, Forbidden, Conflict (more than 10,000 runs; JOB_ARCHIVED, where something is to be caught up).
    """
    require(principal, Action.SET_SCHEDULE, Resource(service=name.job.service, tenant=name.tenant))
    async with database.acting_for(principal) as tx:
        await tenants.hold_tenant(tx, name.tenant)
        job, schedule = await _locked(tx, name)
        if schedule.paused_at is None:
            return schedule, NOTHING
        _refuse_archived(job, policy)
        resumption = await _resumption(tx, job, schedule, policy, default_time_zone)
        if validate_only:
            return schedule, resumption.plan
        catching_up.refuse_too_many(resumption.plan, policy)
        runs = await _resume(tx, schedule, resumption)
        after = {"paused": False, **resumption.plan.to_document(policy)}
        await audit.record(tx, [updated(name, {"paused": True}, after, tenant=name.tenant)])
        resumed = _stored(await schedules.get_schedule(tx, name), name)
    arming.announce(wakeups, runs)
    return resumed, resumption.plan


@dataclass(frozen=True, slots=True)
class _Resumption:
    """What is to be in force, from when on (None: now), and what is caught up of the time since then."""

    in_force: InForce
    enabled: bool
    allowed: bool
    since: datetime | None = None
    caught_up: CaughtUp | None = None

    @property
    def plan(self) -> CatchUpPlan:
        return self.caught_up.plan() if self.caught_up else NOTHING


async def _resumption(
    tx: Transaction, job: Job, schedule: Schedule, policy: CatchUp, default_time_zone: str
) -> _Resumption:
    timing = job.in_force(default_time_zone).timing
    is_jobs_own = schedule.name.is_jobs_own
    tenant = await tenants.get_tenant(tx, schedule.name.tenant)
    allowed = job.declared.tenant_schedules or schedule.name.tenant == SYSTEM_TENANT
    in_force = revise(
        schedule.spec,
        timing,
        schedule.in_force,
        is_jobs_own=is_jobs_own,
        tenant_zone=tenant.time_zone,
        allowed=allowed,
    )
    enabled = bool(timing.cron) if is_jobs_own else schedule.spec.enabled
    if policy is CatchUp.NONE or not _owes(in_force):
        return _Resumption(in_force, enabled, allowed)
    since = await store.in_force_from(tx, schedule.schedule_id)
    wanted = await catching_up.wish(tx, job.job_id, policy)
    return _Resumption(
        in_force, enabled, allowed, since, await catching_up.of_schedule(tx, schedule, in_force, since, wanted)
    )


def _owes(in_force: InForce) -> bool:
    """Whether it is enabled, and can be evaluated."""
    with suppress(TimingError):
        return in_force.enabled and bool(in_force.timing)
    return False


async def _resume(tx: Transaction, schedule: Schedule, resumption: _Resumption) -> int:
    """Answers how many runs catching up made."""
    await store.resume(tx, schedule.schedule_id)
    resumed = replace(schedule, paused_at=None)
    revision = arming.revision(tx, resumed, resumption.in_force, enabled=resumption.enabled, allowed=resumption.allowed)
    if resumption.since is None:
        await schedules.put_in_force(tx, [revision])
        return 0
    await schedules.put_in_force(tx, [replace(revision, in_force_from=resumption.since)])
    return await catching_up.carry_out(tx, schedule, resumption.in_force.jitter, resumption.caught_up)


async def _pause(tx: Transaction, schedule: Schedule) -> None:
    """Its live runs go on; what it owed must be settled."""
    paused = replace(schedule, paused_at=tx.now)
    in_force = replace(schedule.in_force, enabled=False)
    revision = arming.revision(tx, paused, in_force, enabled=schedule.spec.enabled)
    await schedules.put_in_force(tx, [revision])
    await store.pause(tx, schedule.schedule_id, revision.in_force_from)


async def _locked(tx: Transaction, name: ScheduleName) -> tuple[Job, Schedule]:
    """The job, held, and the schedule, locked; what is done counts from when nobody else was at them any more."""
    job = await jobs.hold_job(tx, name.job)
    schedule = _stored(await schedules.lock_schedule(tx, name), name)
    assert job is not None  # who sees the schedule sees its job
    await tx.look_at_clock()
    return job, schedule


def _stored(schedule: Schedule | None, name: ScheduleName) -> Schedule:
    if schedule is None:
        raise NotFound(
            f"there is no schedule {name} that is stored, or it is not yours to see;"
            " ScheduleService.PutSchedule stores one"
        )
    return schedule


def _refuse_archived(job: Job, policy: CatchUp) -> None:
    if job.archived_at is not None and policy is not CatchUp.NONE:
        raise Conflict(
            f"{job.name} is archived: its service no longer declares it, and nothing of it can be caught up; resume"
            " with `CATCH_UP_NONE`",
            reason="JOB_ARCHIVED",
        )
