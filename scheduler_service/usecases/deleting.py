"""Deleting schedules, one or all of a tenant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_service.domain.access import Action, Principal, Resource, require
from scheduler_service.domain.audit import removed, schedule_document
from scheduler_service.domain.errors import Conflict, NotFound
from scheduler_service.domain.names import ScheduleName, tenant_name
from scheduler_service.domain.record import RunError
from scheduler_service.store import audit, jobs, schedules, tenants
from scheduler_service.store import deleting as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases import arming
from scheduler_service.usecases.wakeups import Topic, Wakeups

BATCH = 500
"""How many schedules of a tenant one transaction deletes."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted: how many schedules, and how many waiting runs were cancelled with them. `settled`: how many
    runs were made of what was still owed."""

    schedules: int = 0
    cancelled_runs: int = 0
    settled: int = 0

    def plus(self, other: Deleted) -> Deleted:
        return Deleted(
            self.schedules + other.schedules,
            self.cancelled_runs + other.cancelled_runs,
            self.settled + other.settled,
        )


async def delete_schedule(database: Database, wakeups: Wakeups, principal: Principal, name: ScheduleName) -> Deleted:
    """From now on it owes nothing, and its waiting runs are cancelled; running ones go on, and its history stays.

    Errors: NotFound, Conflict (the job's own schedule), Forbidden.
    """
    require(principal, Action.SET_SCHEDULE, Resource(service=name.job.service, tenant=name.tenant))
    async with database.acting_for(principal) as tx:
        job = await jobs.hold_job(tx, name.job)
        if job is not None and name.is_jobs_own:
            raise Conflict(
                f"{name} is made from the job's own timing; to stop it, pause the job with JobService.PauseJob, or"
                " override `timing.cron` with an empty one by JobService.UpdateJob"
            )
        found = await schedules.lock_schedule(tx, name)
        if job is None or found is None:
            raise NotFound(f"there is no schedule {name}, or it is not yours to see")
        deleted = await _delete(tx, [found.schedule_id])
    announce(wakeups, deleted)
    return deleted


async def remove_tenant(database: Database, wakeups: Wakeups, principal: Principal, tenant: str) -> Deleted:
    """Deletes all schedules of a tenant, as `delete_schedule` does, and forgets its time zone; by the batch, so that
    it can be asked again where it was cut off. Errors: Forbidden."""
    require(principal, Action.REMOVE_TENANT)
    deleted = Deleted()
    while (batch := await _remove_batch(database, principal, tenant)) is not None:
        announce(wakeups, batch)
        deleted = deleted.plus(batch)
    return deleted


def announce(wakeups: Wakeups, deleted: Deleted) -> None:
    """Tells the loops of committed deletions."""
    arming.announce(wakeups, deleted.settled)
    if deleted.cancelled_runs:
        wakeups.wake(Topic.RUNS)


async def _remove_batch(database: Database, principal: Principal, tenant: str) -> Deleted | None:
    """None once there is no schedule left, and the tenant is forgotten."""
    async with database.acting_for(principal) as tx:
        await tenants.lock_tenant(tx, tenant)
        first = await tenants.first_schedules(tx, tenant, BATCH)
        if not first:
            if (zone := await tenants.forget_tenant(tx, tenant)) is not None:
                await audit.record(tx, [removed(tenant_name(tenant), {"time_zone": zone}, tenant=tenant)])
            return None
        await jobs.hold_jobs(tx, sorted(set(first.values())))
        return await _delete(tx, await store.lock_schedules(tx, list(first)))


async def _delete(tx: Transaction, schedule_ids: Sequence[int]) -> Deleted:
    """Deletes locked schedules, whose jobs are held."""
    await tx.look_at_clock()
    settled = await arming.settle_schedules(tx, await schedules.owing_of(tx, schedule_ids))
    gone = await store.get_schedules(tx, schedule_ids)
    await store.delete_schedules(tx, schedule_ids)
    error = RunError("CANCELLED", f"its schedule was deleted by {tx.principal}")
    cancelled = await store.end_waiting(tx, schedule_ids, error)
    await audit.record(tx, [removed(each.name, schedule_document(each.spec), tenant=each.name.tenant) for each in gone])
    return Deleted(len(schedule_ids), cancelled, settled)
