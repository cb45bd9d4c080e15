"""Registration: a service says what its jobs are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog

from scheduler_service.domain.access import Action, Principal, Resource, require
from scheduler_service.domain.audit import Change, job_document, made, removed, updated
from scheduler_service.domain.errors import Conflict, NotFound, Violation
from scheduler_service.domain.fields import Violations, check_json_size
from scheduler_service.domain.job import (
    NO_OVERRIDES,
    Job,
    JobSpec,
    Manifest,
    changed_fields,
    endpoint_of,
    in_force,
    overridden_fields,
)
from scheduler_service.domain.job_rules import check_manifest
from scheduler_service.domain.names import JobName
from scheduler_service.store import audit, job_changes
from scheduler_service.store import jobs as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.jobs import JobValues, StoredJob
from scheduler_service.store.services import Service, lock_service, save_service
from scheduler_service.usecases import arming
from scheduler_service.usecases.wakeups import Topic, Wakeups

_SMALLEST_GUARDED = 2
_ENDPOINT = "target.http.endpoint"
_log = structlog.get_logger()


class ChangeKind(StrEnum):
    """What registration does to a job."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    UNCHANGED = "UNCHANGED"
    REMOVED = "REMOVED"


@dataclass(frozen=True, slots=True)
class JobChange:
    """What registration did to one job. `job` is as it is after it."""

    kind: ChangeKind
    job: Job
    changed_fields: Sequence[str] = ()
    overridden_fields: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Registration:
    """What a manifest changed: its jobs in its order, then those that were removed."""

    changes: Sequence[JobChange]
    generation: int


class _NotMeant(Exception):
    """Rolls a transaction back whose answer is all that was wanted."""

    def __init__(self, registration: Registration) -> None:
        self.registration = registration


async def register_jobs(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    manifest: Manifest,
    *,
    validate_only: bool = False,
    default_time_zone: str = "UTC",
    problems: Iterable[Violation] = (),
) -> Registration:
    """Makes a service's jobs what its manifest says. `problems` is what was found wrong while reading the request.

    Errors: Forbidden; InvalidInput with every wrong field; Conflict (STALE_GENERATION, MASS_REMOVAL).
    """
    require(principal, Action.REGISTER, Resource(service=manifest.service))
    wrong = Violations(problems)
    check_manifest(manifest, wrong)
    wrong.refuse_if_any()
    try:
        async with database.acting_for(principal) as tx:
            registration, runs = await _register(tx, manifest, default_time_zone)
            if validate_only:
                raise _NotMeant(registration)
    except _NotMeant as answer:
        return answer.registration
    if any(change.kind is not ChangeKind.UNCHANGED for change in registration.changes):
        arming.announce(wakeups, runs)
    _report(principal, manifest, registration)
    return registration


async def remove_job(database: Database, wakeups: Wakeups, principal: Principal, name: JobName) -> Job:
    """Archives a job: its schedules owe nothing more, its pending runs are cancelled, its history stays. An archived
    one stays as it is. Errors: Forbidden, NotFound."""
    require(principal, Action.REGISTER, Resource(service=name.service))
    async with database.acting_for(principal) as tx:
        await lock_service(tx, name.service)
        stored = await store.lock_job(tx, name)
        if stored is None:
            raise NotFound(f"there is no job {name}")
        if stored.job.archived_at is not None:
            return stored.job
        runs = await arming.settle_jobs(tx, [stored.job.job_id])
        await store.archive(tx, [stored.job.job_id])
        await job_changes.record(tx, [stored.job.job_id])
        await audit.record(tx, [removed(name, _document(stored))])
        archived = await store.get_job(tx, name)
    assert archived is not None
    arming.announce(wakeups, runs)
    wakeups.wake(Topic.RUNS)
    return archived


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to become of one declared job. `before` is None for one that was never there."""

    kind: ChangeKind
    values: JobValues
    before: Job | None
    changed: Sequence[str] = ()
    moves_schedules: bool = True
    """Whether the job's timing in force is another than before."""


async def _register(tx: Transaction, manifest: Manifest, default_time_zone: str) -> tuple[Registration, int]:
    service = await lock_service(tx, manifest.service)
    if manifest.generation < service.generation:
        raise Conflict(
            f"generation {service.generation} of {manifest.service} is registered, which is newer than"
            f" {manifest.generation}: this replica is of an older deploy, and changed nothing",
            reason="STALE_GENERATION",
            generation=str(service.generation),
        )
    stored = {each.job.declared.job: each for each in await store.lock_jobs_of(tx, manifest.service)}
    await tx.look_at_clock()
    plans = [_planned(spec, stored.get(spec.job), manifest.base_url, default_time_zone) for spec in manifest.jobs]
    _refuse_oversize(plans)
    gone = _removed(manifest, stored)
    runs = await _carry_out(tx, manifest, plans, [each.job.job_id for each in gone])
    wanted = Service(manifest.service, manifest.base_url, manifest.generation)
    if wanted != service:
        await save_service(tx, wanted)
    after = {each.job.declared.job: each for each in await store.lock_jobs_of(tx, manifest.service)}
    changes = [_change(plan, after[plan.values.declared.job].job) for plan in plans]
    changes += [JobChange(ChangeKind.REMOVED, after[each.job.declared.job].job) for each in gone]
    audited = [_audited(change, stored, after) for change in changes if change.kind is not ChangeKind.UNCHANGED]
    await audit.record(tx, _audited_service(service, wanted) + audited)
    return Registration(changes, manifest.generation), runs


def _planned(spec: JobSpec, stored: StoredJob | None, base_url: str, default_time_zone: str) -> _Plan:
    before = stored.job if stored else None
    overrides = before.overrides if before else NO_OVERRIDES
    values = JobValues(
        declared=spec,
        overrides=overrides,
        in_force=in_force(spec, overrides, default_time_zone),
        endpoint=endpoint_of(spec, base_url),
        job_id=before.job_id if before else 0,
        revived=before is not None and before.archived_at is not None,
    )
    if before is None or stored is None or values.revived:
        moves = before is None or _timing_differs(before, values, default_time_zone)
        return _Plan(ChangeKind.CREATED, values, before, moves_schedules=moves)
    changed = changed_fields(before.declared, spec)
    if spec.target.http is not None and values.endpoint != stored.endpoint and _ENDPOINT not in changed:
        changed.append(_ENDPOINT)  # the service's base URL moved under it
    kind = ChangeKind.UPDATED if changed else ChangeKind.UNCHANGED
    return _Plan(kind, values, before, changed, _timing_differs(before, values, default_time_zone))


def _timing_differs(before: Job, values: JobValues, default_time_zone: str) -> bool:
    allows = before.declared.tenant_schedules != values.declared.tenant_schedules
    return allows or before.in_force(default_time_zone).timing != values.in_force.timing


def _refuse_oversize(plans: Sequence[_Plan]) -> None:
    """What operators put over a config comes on top of its size."""
    wrong = Violations()
    for index, plan in enumerate(plans):
        if plan.values.overrides.config:
            check_json_size(plan.values.in_force.config, f"jobs[{index}].config", wrong)
    wrong.refuse_if_any()


def _removed(manifest: Manifest, stored: dict[str, StoredJob]) -> list[StoredJob]:
    """The jobs that the manifest no longer has. Refuses (MASS_REMOVAL) to lose more than half by mistake."""
    declared = {spec.job for spec in manifest.jobs}
    there = [each for each in stored.values() if each.job.archived_at is None]
    removed = sorted((each for each in there if each.job.declared.job not in declared), key=lambda each: each.job.name)
    # One or two jobs may be renamed at will; a manifest without any is a mistake however few there were.
    guarded = len(there) > _SMALLEST_GUARDED or not manifest.jobs
    if guarded and not manifest.allow_mass_removal and 2 * len(removed) > len(there):
        raise Conflict(
            f"this manifest would remove {len(removed)} of the {len(there)} jobs of {manifest.service}; if that is"
            " meant, register with `allow_mass_removal`",
            reason="MASS_REMOVAL",
            removed=str(len(removed)),
            registered=str(len(there)),
        )
    return removed


async def _carry_out(tx: Transaction, manifest: Manifest, plans: Sequence[_Plan], removed: Sequence[int]) -> int:
    """Settles what was owed, then writes the jobs, then what is in force for their schedules. Answers how many runs
    settling made."""
    changed = [plan for plan in plans if plan.kind is not ChangeKind.UNCHANGED]
    old = [plan.values for plan in changed if plan.before is not None]
    new = [plan.values for plan in changed if plan.before is None]
    touched = [values.job_id for values in old]
    runs = await arming.settle_jobs(tx, [*touched, *removed]) if touched or removed else 0
    if removed:
        await store.archive(tx, removed)
    if old:
        await store.update_jobs(tx, manifest.service, old)
    made = await store.insert_jobs(tx, manifest.service, new, generation=manifest.generation) if new else {}
    if changed_owing := [*removed, *(values.job_id for values in old if values.revived), *made.values()]:
        await job_changes.record(tx, changed_owing)
    there = [plan.values.job_id for plan in plans if plan.before is not None]
    if any(plan.before is not None and plan.before.generation != manifest.generation for plan in plans):
        await store.stamp_generation(tx, there, manifest.generation)
    await arming.follow_jobs(
        tx,
        [
            arming.JobTiming(plan.values.job_id or made[plan.values.declared.job], plan.values.in_force.timing)
            for plan in changed
            if plan.moves_schedules
        ],
    )
    return runs


def _change(plan: _Plan, job: Job) -> JobChange:
    overridden = overridden_fields(job.declared, job.overrides)
    return JobChange(plan.kind, job, plan.changed, overridden)


def _audited(change: JobChange, before: Mapping[str, StoredJob], after: Mapping[str, StoredJob]) -> Change:
    job = change.job.declared.job
    match change.kind:
        case ChangeKind.CREATED:
            return made(change.job.name, _document(after[job]))
        case ChangeKind.REMOVED:
            return removed(change.job.name, _document(before[job]))
        case _:
            return updated(change.job.name, _document(before[job]), _document(after[job]))


def _audited_service(before: Service, after: Service) -> list[Change]:
    documents = [{"base_url": each.base_url, "generation": each.generation} for each in (before, after)]
    return [updated(f"services/{after.service}", *documents)] if before != after else []


def _document(stored: StoredJob) -> dict[str, Any]:
    return job_document(stored.job.declared, stored.job.overrides, stored.endpoint)


def _report(principal: Principal, manifest: Manifest, registration: Registration) -> None:
    counts = {kind.value.lower(): 0 for kind in ChangeKind}
    for change in registration.changes:
        counts[change.kind.value.lower()] += 1
    _log.info(
        "jobs registered",
        service=manifest.service,
        generation=registration.generation,
        principal=str(principal),
        **counts,
    )
