"""Reading and setting schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scheduler_service.domain.access import SYSTEM_TENANT, Action, Principal, Resource, require
from scheduler_service.domain.audit import made, schedule_document, updated
from scheduler_service.domain.errors import Conflict, NotFound, Violation
from scheduler_service.domain.fields import Violations, check_json, check_json_size, check_labels, compact_json
from scheduler_service.domain.job import Job, TimingSpec
from scheduler_service.domain.job_rules import check_timing
from scheduler_service.domain.names import ScheduleName, ScheduleParent
from scheduler_service.domain.schedule import (
    ALL_FIELDS,
    SCHEDULE_PATHS,
    InForce,
    Schedule,
    ScheduleSpec,
    revise,
)
from scheduler_service.domain.values import take, to_json
from scheduler_service.store import audit, jobs, schedule_lists, tenants
from scheduler_service.store import schedules as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.pages import Pages, page_size
from scheduler_service.store.schedules import NewSchedule
from scheduler_service.usecases import arming
from scheduler_service.usecases.wakeups import Wakeups


async def get_schedule(
    database: Database, principal: Principal, name: ScheduleName, *, default_time_zone: str = "UTC"
) -> Schedule:
    """The schedule, or what its job offers a tenant that has none. Errors: NotFound, Forbidden (a service that asks for
    another's)."""
    require(principal, Action.READ, Resource(service=name.job.service, tenant=name.tenant))
    async with database.acting_for(principal) as tx:
        if (found := await store.get_schedule(tx, name)) is not None:
            return found
        offered = await schedule_lists.get_default(tx, name)
        return _found(offered.shown(default_time_zone) if offered else None, name)


async def list_schedules(
    database: Database,
    principal: Principal,
    parent: ScheduleParent,
    *,
    size: int = 0,
    token: str = "",
    default_time_zone: str = "UTC",
) -> tuple[list[Schedule], str]:
    """One page of schedules by name, and the token of the next (empty on the last). Of one tenant, it shows the default
    of each job that allows some and of which the tenant has none."""
    require(principal, Action.READ, Resource(service=parent.service or "", tenant=parent.tenant or ""))
    limit = page_size(size)
    filters = {"caller": str(principal), "tenant": principal.tenant, "of": [parent.service, parent.job, parent.tenant]}
    pages = Pages("schedules", filters)
    position = pages.position(token, str, str, str, str)
    async with database.acting_for(principal) as tx:
        found = await schedule_lists.list_schedules(tx, parent, after=position, limit=limit + 1)
    page = [each if isinstance(each, Schedule) else each.shown(default_time_zone) for each in found[:limit]]
    return page, _token(pages, page[-1].name) if len(found) > limit else ""


async def put_schedule(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    name: ScheduleName,
    spec: ScheduleSpec,
    mask: Sequence[str] = ALL_FIELDS,
    *,
    default_time_zone: str = "UTC",
    problems: Sequence[Violation] = (),
) -> Schedule:
    """Creates a schedule, or takes into it the fields that the mask names. One that is made without naming `enabled` is
    enabled. What it owed up to now is settled first; what is new counts from now.

    Errors: NotFound (the job), InvalidInput, Conflict (JOB_ARCHIVED, a job without tenants' schedules, the job's own
    schedule), Forbidden.
    """
    require(principal, Action.SET_SCHEDULE, Resource(service=name.job.service, tenant=name.tenant))
    wrong = Violations(problems)
    _check_mask(mask, wrong)
    _check(spec, wrong)
    wrong.refuse_if_any()
    async with database.acting_for(principal) as tx:
        await tenants.hold_tenant(tx, name.tenant)
        job = _allowed(await jobs.hold_job(tx, name.job), name)
        zone = (await tenants.get_tenant(tx, name.tenant)).time_zone
        around = _Around(job, job.in_force(default_time_zone).timing, zone)
        runs = await _put(tx, around, name, spec, mask)
        stored = _found(await store.get_schedule(tx, name), name)
    arming.announce(wakeups, runs)
    return stored


@dataclass(frozen=True, slots=True)
class _Around:
    """What a schedule takes its timing from where it says nothing itself: its job's in force, and its tenant's zone."""

    job: Job
    timing: TimingSpec
    tenant_zone: str

    def revise(self, spec: ScheduleSpec, before: InForce | None = None, *, paused: bool = False) -> InForce:
        return revise(spec, self.timing, before, is_jobs_own=False, tenant_zone=self.tenant_zone, paused=paused)


async def _put(tx: Transaction, around: _Around, name: ScheduleName, spec: ScheduleSpec, mask: Sequence[str]) -> int:
    """Answers how many runs settling made."""
    while True:
        before = await _locked(tx, name)
        wanted = take(before.spec if before else ScheduleSpec(), spec, mask)
        _check_over_job(wanted, around, is_new=before is None)
        if before is not None:
            return await _change(tx, before, wanted, around)
        if await _create(tx, around, name, wanted):
            return 0
        # Somebody else made it meanwhile.


async def _locked(tx: Transaction, name: ScheduleName) -> Schedule | None:
    """The schedule, locked, if there is one; what is put counts from when nobody else was at it or its job any more."""
    found = await store.lock_schedule(tx, name)
    await tx.look_at_clock()
    return found


async def _create(tx: Transaction, around: _Around, name: ScheduleName, spec: ScheduleSpec) -> bool:
    """False if it is there already."""
    in_force = around.revise(spec)
    new = NewSchedule(around.job.job_id, name.tenant, name.schedule, spec, in_force)
    added = await store.insert_schedules(tx, [new])
    await store.put_in_force(tx, [arming.first_revision(tx, schedule_id, in_force) for schedule_id in added.values()])
    if added:
        await audit.record(tx, [made(name, schedule_document(spec), tenant=name.tenant)])
    return bool(added)


async def _change(tx: Transaction, before: Schedule, wanted: ScheduleSpec, around: _Around) -> int:
    if compact_json(to_json(wanted)) == compact_json(to_json(before.spec)):
        return 0
    runs = await arming.settle_schedules(tx, [before.schedule_id])
    in_force = around.revise(wanted, before.in_force, paused=before.paused_at is not None)
    if in_force != before.in_force or wanted.enabled != before.spec.enabled:
        await store.put_in_force(tx, [arming.revision(tx, before, in_force, enabled=wanted.enabled)])
    await store.save_spec(tx, before.schedule_id, wanted)
    documents = (schedule_document(each) for each in (before.spec, wanted))
    await audit.record(tx, [updated(before.name, *documents, tenant=before.name.tenant)])
    return runs


def _allowed(job: Job | None, name: ScheduleName) -> Job:
    """The job, if this schedule of it may be put."""
    if job is None:
        raise NotFound(f"there is no job {name.job}, or it is not yours to see")
    if name.is_jobs_own:
        raise Conflict(
            f"{name} is made from the job's own timing; change that with JobService.UpdateJob, or stop it with PauseJob"
        )
    if job.archived_at is not None:
        raise Conflict(f"{name.job} is archived: its service no longer declares it", reason="JOB_ARCHIVED")
    if name.tenant != SYSTEM_TENANT and not job.declared.tenant_schedules:
        raise Conflict(
            f"{name.job} allows no schedules for tenants; its service has to declare it with `tenant_schedules`"
        )
    return job


def _check(spec: ScheduleSpec, wrong: Violations) -> None:
    # Its phase has to fit an expression that may be the job's.
    check_timing(replace(spec.timing, phase=None), "schedule.timing", wrong)
    check_labels(spec.labels, "schedule.labels", wrong)
    check_json(spec.config, "schedule.config", wrong)


def _check_over_job(spec: ScheduleSpec, around: _Around, *, is_new: bool) -> None:
    """What only shows together with the job: an expression must be somewhere, and a phase fit it. One that is there
    may be disabled whatever it lacks."""
    wrong = Violations()
    job, timing = around.job, around.timing
    if (spec.enabled or is_new) and not (timing.cron if spec.timing.cron is None else spec.timing.cron):
        wrong.add(
            "schedule.timing.cron",
            "neither the schedule nor its job says when; write a cron expression such as `0 9 * * 1`"
            " (to stop a schedule, set `enabled` to false)",
        )
    if spec.timing.phase is not None:
        check_timing(TimingSpec(cron=spec.timing.cron, phase=spec.timing.phase), "schedule.timing", wrong, base=timing)
    check_json_size({**job.declared.config, **job.overrides.config, **spec.config}, "schedule.config", wrong)
    wrong.refuse_if_any()


def _check_mask(mask: Sequence[str], wrong: Violations) -> None:
    for path in mask:
        if path not in SCHEDULE_PATHS:
            wrong.add("update_mask", f"a schedule has no field {path!a} to set; there are {', '.join(SCHEDULE_PATHS)}")


def _token(pages: Pages, last: ScheduleName) -> str:
    return pages.token([last.job.service, last.job.job, last.tenant, last.schedule])


def _found(schedule: Schedule | None, name: ScheduleName) -> Schedule:
    if schedule is None:
        raise NotFound(f"there is no schedule {name}, or it is not yours to see")
    return schedule
