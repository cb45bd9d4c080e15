"""Rows of `tenants`, and which schedules are a tenant's."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from scheduler_service.domain.tenant import Tenant
from scheduler_service.store.database import Transaction

# By name, not by row: a tenant that set no zone has none.
_KEY = "hashtextextended('carillon.tenants ' || :tenant, 0)"
_HOLD = text(f"select pg_advisory_xact_lock_shared({_KEY})")
_LOCK = text(f"select pg_advisory_xact_lock({_KEY})")
_GET = text(
    "select tenant_id, time_zone, created_at, updated_at, updated_by from carillon.tenants where tenant_id = :tenant"
)
_PUT = text("""
insert into carillon.tenants (tenant_id, time_zone, created_at, updated_at, updated_by)
values (:tenant, :time_zone, :now, :now, :principal)
on conflict (tenant_id) do update
set time_zone = excluded.time_zone, updated_at = excluded.updated_at, updated_by = excluded.updated_by
returning tenant_id, time_zone, created_at, updated_at, updated_by""")
_FORGET = text("delete from carillon.tenants where tenant_id = :tenant returning time_zone")
# As the index on schedules of tenants has it.
_OF_TENANT = "s.tenant_id = :tenant and s.tenant_id <> '-' and s.deleted_at is null"
_JOBS_FOLLOWING = text(f"""
select distinct s.job_id from carillon.schedules s
where {_OF_TENANT} and not jsonb_exists(s.timing, 'time_zone')""")
_LOCK_FOLLOWING = text(f"""
select s.schedule_id from carillon.schedules s
where {_OF_TENANT} and s.job_id = any(:job_ids) and not jsonb_exists(s.timing, 'time_zone')
order by s.schedule_id for no key update of s""")
# A range of one: were the tenant a constant, the planner might walk all schedules in the order of their ids.
_FIRST = text("""
select s.schedule_id, s.job_id from carillon.schedules s
where s.tenant_id between :tenant and :tenant and s.tenant_id <> '-' and s.deleted_at is null
order by s.tenant_id, s.schedule_id limit :limit""")


async def hold_tenant(tx: Transaction, tenant: str) -> None:
    """Until the transaction ends, nobody changes the tenant; any number may hold it. Comes before any other lock."""
    await tx.connection.execute(_HOLD, {"tenant": tenant})


async def lock_tenant(tx: Transaction, tenant: str) -> None:
    """Until the transaction ends, nobody else changes the tenant, or puts a schedule of it. Comes before any other
    lock."""
    await tx.connection.execute(_LOCK, {"tenant": tenant})


async def get_tenant(tx: Transaction, tenant: str) -> Tenant:
    """One that was never set has no zone, and no times."""
    row = (await tx.connection.execute(_GET, {"tenant": tenant})).one_or_none()
    return Tenant(tenant) if row is None else Tenant(*row)


async def put_tenant(tx: Transaction, tenant: str, time_zone: str) -> Tenant:
    values = {"tenant": tenant, "time_zone": time_zone, "now": tx.now, "principal": str(tx.principal)}
    return Tenant(*(await tx.connection.execute(_PUT, values)).one())


async def forget_tenant(tx: Transaction, tenant: str) -> str | None:
    """Answers the zone that it had; None for one that was never set."""
    zone: str | None = (await tx.connection.execute(_FORGET, {"tenant": tenant})).scalar_one_or_none()
    return zone


async def jobs_following(tx: Transaction, tenant: str) -> list[int]:
    """The jobs of which the tenant has schedules that name no zone."""
    return list((await tx.connection.execute(_JOBS_FOLLOWING, {"tenant": tenant})).scalars())


async def lock_schedules_following(tx: Transaction, tenant: str, job_ids: Sequence[int]) -> list[int]:
    """Locks the tenant's schedules of these jobs that name no zone."""
    rows = await tx.connection.execute(_LOCK_FOLLOWING, {"tenant": tenant, "job_ids": job_ids})
    return list(rows.scalars())


async def first_schedules(tx: Transaction, tenant: str, limit: int) -> dict[int, int]:
    """Up to `limit` of the tenant's schedules, each with its job."""
    rows = await tx.connection.execute(_FIRST, {"tenant": tenant, "limit": limit})
    return {row.schedule_id: row.job_id for row in rows}
