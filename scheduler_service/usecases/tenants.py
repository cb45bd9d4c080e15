"""Tenants' time zones."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler_service.domain.access import Action, Principal, Resource, require
from scheduler_service.domain.audit import made, updated
from scheduler_service.domain.errors import Violation
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import tenant_name
from scheduler_service.domain.tenant import Tenant
from scheduler_service.domain.timing import TimingError, zone
from scheduler_service.store import audit, jobs, schedules
from scheduler_service.store import tenants as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases import arming
from scheduler_service.usecases.wakeups import Wakeups


async def get_tenant(database: Database, principal: Principal, tenant: str) -> Tenant:
    """One that was never set has no time zone. Errors: NotFound (another's tenant, for a user), Forbidden."""
    require(principal, Action.TENANT, Resource(tenant=tenant))
    async with database.acting_for(principal) as tx:
        return await store.get_tenant(tx, tenant)


async def put_tenant(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    tenant: str,
    time_zone: str,
    *,
    default_time_zone: str = "UTC",
    problems: Sequence[Violation] = (),
) -> Tenant:
    """Sets a tenant's time zone; an empty one clears it. What its schedules that name no zone owed up to now is settled
    first; they follow from now on.

    Errors: InvalidInput, NotFound (another's tenant, for a user), Forbidden.
    """
    require(principal, Action.TENANT, Resource(tenant=tenant))
    wrong = Violations(problems)
    _check_zone(time_zone, wrong)
    wrong.refuse_if_any()
    async with database.acting_for(principal) as tx:
        await store.lock_tenant(tx, tenant)
        before = await store.get_tenant(tx, tenant)
        if time_zone == before.time_zone:
            return before
        after, runs = await _change(tx, tenant, time_zone, default_time_zone)
        await _record(tx, before, after)
    arming.announce(wakeups, runs)
    return after


async def _change(tx: Transaction, tenant: str, time_zone: str, default_time_zone: str) -> tuple[Tenant, int]:
    """Answers also how many runs settling made."""
    held = await jobs.hold_jobs(tx, await store.jobs_following(tx, tenant))
    following = await store.lock_schedules_following(tx, tenant, [job.job_id for job in held])
    await tx.look_at_clock()
    runs = await arming.settle_schedules(tx, await schedules.owing_of(tx, following))
    after = await store.put_tenant(tx, tenant, time_zone)
    timings = (arming.JobTiming(job.job_id, job.in_force(default_time_zone).timing) for job in held)
    await arming.follow_tenant(tx, tenant, timings)
    return after, runs


async def _record(tx: Transaction, before: Tenant, after: Tenant) -> None:
    resource, tenant = tenant_name(after.tenant), after.tenant
    documents = [{"time_zone": each.time_zone} for each in (before, after)]
    is_new = before.created_at is None
    change = made(resource, documents[1], tenant=tenant) if is_new else updated(resource, *documents, tenant=tenant)
    await audit.record(tx, [change])


def _check_zone(time_zone: str, wrong: Violations) -> None:
    if not time_zone:
        return
    try:
        zone(time_zone)
    except TimingError as error:
        wrong.add("tenant.time_zone", str(error))
