"""Reading and steering jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from scheduler_service.domain.access import Action, Kind, Principal, Resource, require
from scheduler_service.domain.audit import updated
from scheduler_service.domain.catching_up import NOTHING, CatchUpPlan
from scheduler_service.domain.errors import Conflict, NotFound, Violation
from scheduler_service.domain.fields import Violations, check_labels
from scheduler_service.domain.job import NO_OVERRIDES, OVERRIDE_PATHS, Job, JobOverrides, in_force
from scheduler_service.domain.job_rules import check_overrides
from scheduler_service.domain.names import JobName
from scheduler_service.domain.timing import CatchUp
from scheduler_service.domain.values import take, to_json
from scheduler_service.store import audit, job_changes
from scheduler_service.store import jobs as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.jobs import JobValues, StoredJob
from scheduler_service.store.pages import Pages, page_size
from scheduler_service.usecases import arming, catching_up
from scheduler_service.usecases.wakeups import Wakeups


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list: those of a service (None: all) that carry all labels."""

    service: str | None = None
    labels: Mapping[str, str] | None = None
    archived: bool = False


async def get_job(database: Database, principal: Principal, name: JobName) -> Job:
    """Errors: NotFound, Forbidden (a service that asks for another's)."""
    _require_reader(principal, name)
    async with database.acting_for(principal) as tx:
        return _found(await store.get_job(tx, name), name)


async def list_jobs(
    database: Database, principal: Principal, wanted: JobFilter, *, size: int = 0, token: str = ""
) -> tuple[list[Job], str]:
    """One page of jobs by service and job, and the token of the next (empty on the last). A user sees none."""
    require(principal, Action.READ, Resource(service=wanted.service or ""))
    labels = dict(wanted.labels or {})
    wrong = Violations()
    check_labels(labels, "labels", wrong)
    wrong.refuse_if_any()
    limit = page_size(size)
    pages = Pages("jobs", {"caller": str(principal), "of": [wanted.service, labels, wanted.archived]})
    position = pages.position(token, str, str)
    if principal.kind is Kind.USER:
        return [], ""
    async with database.acting_for(principal) as tx:
        found = await store.list_jobs(
            tx,
            service=wanted.service,
            labels=labels,
            archived=wanted.archived,
            after=(position[0], position[1]) if position else None,
            limit=limit + 1,
        )
    page = found[:limit]
    more = len(found) > limit
    return page, pages.token([page[-1].service, page[-1].declared.job]) if more else ""


async def update_job(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    name: JobName,
    overrides: JobOverrides,
    mask: Sequence[str],
    *,
    default_time_zone: str = "UTC",
    problems: Sequence[Violation] = (),
) -> Job:
    """Takes the fields of `overrides` that the mask names; one that is not set clears that override. What was owed up
    to now is settled under the old values. Errors: NotFound, InvalidInput, Conflict (JOB_ARCHIVED), Forbidden."""
    require(principal, Action.STEER, Resource(service=name.service))
    wrong = Violations(problems)
    _check_mask(mask, "update_mask", wrong)
    if not mask:
        wrong.add("update_mask", f"it is empty; name the fields to take, such as {', '.join(OVERRIDE_PATHS[:3])}")
    wrong.refuse_if_any()

    def changed(job: Job) -> JobOverrides:
        found = take(job.overrides, overrides, mask)
        check_overrides(found, job.declared, wrong)
        wrong.refuse_if_any()
        return found

    return await _override(database, wakeups, principal, name, changed, default_time_zone)


async def reset_job_overrides(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    name: JobName,
    mask: Sequence[str] = (),
    *,
    default_time_zone: str = "UTC",
) -> Job:
    """Clears the overrides that the mask names, or all. Errors: as `update_job`."""
    require(principal, Action.STEER, Resource(service=name.service))
    wrong = Violations()
    _check_mask(mask, "mask", wrong)
    wrong.refuse_if_any()

    def changed(job: Job) -> JobOverrides:
        return take(job.overrides, NO_OVERRIDES, mask) if mask else NO_OVERRIDES

    return await _override(database, wakeups, principal, name, changed, default_time_zone)


async def pause_job(database: Database, wakeups: Wakeups, principal: Principal, name: JobName) -> Job:
    """Holds a job: from now on its schedules owe nothing. Pausing twice changes nothing. Errors: NotFound, Conflict
    (JOB_ARCHIVED), Forbidden."""
    require(principal, Action.STEER, Resource(service=name.service))
    runs = 0
    async with database.acting_for(principal) as tx:
        job = await _locked(tx, name)
        if job.paused_at is None:
            runs = await arming.settle_jobs(tx, [job.job_id])
            await store.pause(tx, job.job_id)
            await job_changes.record(tx, [job.job_id])
            await audit.record(tx, [updated(name, {"paused": False}, {"paused": True})])
        paused = _found(await store.get_job(tx, name), name)
    arming.announce(wakeups, runs)
    return paused


async def resume_job(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    name: JobName,
    policy: CatchUp = CatchUp.NONE,
    *,
    validate_only: bool = False,
) -> tuple[Job, CatchUpPlan]:
    """Lets a paused job go on from now; with a policy of LATEST or ALL, what its schedules would have owed since it was
    paused is caught up within its window. A schedule that was changed meanwhile catches up from then on, and one that
    is paused itself, or disabled, nothing. `validate_only` answers what would be caught up, also where that is too much
    for one call, and changes nothing. Resuming twice changes nothing.

    Errors: NotFound, Conflict (JOB_ARCHIVED; more than 10,000 runs), Forbidden.
    """
    require(principal, Action.STEER, Resource(service=name.service))
    if validate_only:
        return await _plan_resuming(database, principal, name, policy)
    runs, plan = 0, NOTHING
    async with database.acting_for(principal) as tx:
        job = await _locked(tx, name)
        if job.paused_at is not None:
            await arming.hold_still(tx, [job.job_id])
            if policy is CatchUp.NONE:
                await _resume(tx, job.job_id, tx.now)
            else:
                plan, runs = await _resume_catching_up(tx, job, policy)
            await audit.record(tx, [updated(name, {"paused": True}, {"paused": False, **plan.to_document(policy)})])
        resumed = _found(await store.get_job(tx, name), name)
    arming.announce(wakeups, runs)
    return resumed, plan


async def _plan_resuming(
    database: Database, principal: Principal, name: JobName, policy: CatchUp
) -> tuple[Job, CatchUpPlan]:
    # Without a lock: to look at a million schedules takes a while, and nobody is to wait for it.
    async with database.acting_for(principal) as tx:
        job = _open(_found(await store.get_job(tx, name), name))
        if job.paused_at is None or policy is CatchUp.NONE:
            return job, NOTHING
        wanted = await catching_up.wish(tx, job.job_id, policy)
        return job, await catching_up.plan_of_job(tx, job.job_id, _held_since(job), wanted)


async def _resume_catching_up(tx: Transaction, job: Job, policy: CatchUp) -> tuple[CatchUpPlan, int]:
    since = _held_since(job)
    wanted = await catching_up.wish(tx, job.job_id, policy)
    plan = await catching_up.plan_of_job(tx, job.job_id, since, wanted)
    catching_up.refuse_too_many(plan, policy)
    await _resume(tx, job.job_id, since)
    return plan, await catching_up.carry_out_for_job(tx, job.job_id, since, wanted)


async def _resume(tx: Transaction, job_id: int, since: datetime) -> None:
    """`since`: from when on it owes something."""
    await store.resume(tx, job_id)
    await job_changes.record(tx, [job_id], since)


def _held_since(job: Job) -> datetime:
    """From when on a paused job owed nothing because it was paused."""
    assert job.paused_at is not None
    return max(job.paused_at, job.owed_from)


async def _override(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    name: JobName,
    changed: Callable[[Job], JobOverrides],
    default_time_zone: str,
) -> Job:
    async with database.acting_for(principal) as tx:
        stored = await _locked_row(tx, name)
        overrides = changed(stored.job)
        if to_json(overrides) == to_json(stored.job.overrides):
            return stored.job
        runs = await _rewrite(tx, stored, overrides, default_time_zone)
        before, after = ({"overrides": to_json(each)} for each in (stored.job.overrides, overrides))
        await audit.record(tx, [updated(name, before, after)])
        job = _found(await store.get_job(tx, name), name)
    arming.announce(wakeups, runs)
    return job


async def _rewrite(tx: Transaction, stored: StoredJob, overrides: JobOverrides, default_time_zone: str) -> int:
    job = stored.job
    wanted = in_force(job.declared, overrides, default_time_zone)
    runs = await arming.settle_jobs(tx, [job.job_id])
    values = JobValues(job.declared, overrides, wanted, stored.endpoint, job.job_id)
    await store.update_jobs(tx, job.service, [values])
    if wanted.timing != job.in_force(default_time_zone).timing:
        await arming.follow_jobs(tx, [arming.JobTiming(job.job_id, wanted.timing)])
    return runs


async def _locked(tx: Transaction, name: JobName) -> Job:
    return (await _locked_row(tx, name)).job


async def _locked_row(tx: Transaction, name: JobName) -> StoredJob:
    stored = await store.lock_job(tx, name)
    if stored is None:
        raise _not_found(name)
    _open(stored.job)
    return stored


def _open(job: Job) -> Job:
    if job.archived_at is not None:
        raise Conflict(
            f"{job.name} is archived: its service no longer declares it; it comes back with its next registration",
            reason="JOB_ARCHIVED",
        )
    return job


def _found(job: Job | None, name: JobName) -> Job:
    if job is None:
        raise _not_found(name)
    return job


def _not_found(name: JobName) -> NotFound:
    return NotFound(f"there is no job {name}, or it is not yours to see")


def _require_reader(principal: Principal, name: JobName) -> None:
    """Jobs are read by operators and their own service; a user learns of them through its schedules."""
    require(principal, Action.READ, Resource(service=name.service))
    if principal.kind is Kind.USER:
        raise _not_found(name)


def _check_mask(mask: Sequence[str], field: str, wrong: Violations) -> None:
    for path in mask:
        if path not in OVERRIDE_PATHS:
            wrong.add(field, f"there is no field {path!a} to override; there are {', '.join(OVERRIDE_PATHS)}")
