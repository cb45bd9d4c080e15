"""Reading schedules by the page, and what jobs offer a tenant that has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text

from scheduler_service.domain.access import SYSTEM_TENANT, Kind
from scheduler_service.domain.job import TimingSpec
from scheduler_service.domain.names import DEFAULT_SCHEDULE, JobName, ScheduleName, ScheduleParent
from scheduler_service.domain.schedule import JobDefault, Schedule
from scheduler_service.domain.values import from_json
from scheduler_service.store.database import Transaction
from scheduler_service.store.schedules import SELECT, schedule_of

_OFFER = """
select j.job_id as offered_id, j.service as offered_by, j.job as offered_job, j.owed_from as offered_from,
  j.paused_at is not null as offered_halted, coalesce(j.declared -> 'timing', '{}') as declared,
  coalesce(j.overrides -> 'timing', '{}') as overridden, cast(:tenant as text) as offered_to,
  coalesce((select t.time_zone from carillon.tenants t where t.tenant_id = :tenant), '') as tenant_zone
from carillon.jobs j"""
# Only where the tenant has no schedule of the job at all.
_OFFERS = """
j.tenant_schedules and j.archived_at is null and not exists (
  select from carillon.schedules s where s.job_id = j.job_id and s.tenant_id = :tenant and s.deleted_at is null)"""
_NAMED_OFFER = text(f"{_OFFER} where j.service = :service and j.job = :job and {_OFFERS}")

# Of the job at which the page before ended, only what comes after its last one; of later jobs, everything.
_JOBS = """
select j.*, case when is_that_job then :after_tenant else '' end as after_tenant,
  case when is_that_job then :after_schedule else '' end as after_schedule
from carillon.jobs j cross join lateral (select (j.service, j.job) = (:after_service, :after_job) as is_that_job) that
where (cast(:service as text) is null or j.service = :service) and (cast(:job as text) is null or j.job = :job)
  and (j.service, j.job) >= (:after_service, :after_job)"""
_IS_LATER = "(s.tenant_id, s.schedule) > (j.after_tenant, j.after_schedule)"
# A page: jobs in order, and of each no more than a page's schedules, so that a job with a million is not sorted.
_KEYS = f"""
select j.job_id, j.service, j.job, s.tenant_id, s.schedule, s.schedule_id
from ({_JOBS}) j cross join lateral (%s) s
order by j.service, j.job, s.tenant_id, s.schedule limit :limit"""
_OF_EVERYONE = (
    _KEYS
    % f"""
select s.tenant_id, s.schedule, s.schedule_id from carillon.schedules s
where s.job_id = j.job_id and s.deleted_at is null and {_IS_LATER}
order by s.tenant_id, s.schedule limit :limit"""
)
_OF_ONE_TENANT = (
    _KEYS
    % f"""
(select s.tenant_id, s.schedule, s.schedule_id from carillon.schedules s
where s.job_id = j.job_id and s.tenant_id = :tenant and s.deleted_at is null and {_IS_LATER}
order by s.schedule limit :limit)
union all
select s.tenant_id, s.schedule, null from (select cast(:tenant as text), :default) as s (tenant_id, schedule)
where :tenant <> '-' and {_IS_LATER} and {_OFFERS}"""
)


def _page(keys: str) -> str:
    return f"""
select page.schedule_id as key, stored.*, offer.*
from ({keys}) page
left join lateral ({SELECT} where s.schedule_id = page.schedule_id) stored on true
left join lateral ({_OFFER} where page.schedule_id is null and j.job_id = page.job_id) offer on true
order by page.service, page.job, page.tenant_id, page.schedule"""


_LIST = text(_page(_OF_EVERYONE))
_LIST_TENANT = text(_page(_OF_ONE_TENANT))


async def get_default(tx: Transaction, name: ScheduleName) -> JobDefault | None:
    """What the job offers the tenant under this name. None where the tenant has a schedule of the job, the job allows
    none, or the name is another than the default's."""
    if name.tenant == SYSTEM_TENANT or name.schedule != DEFAULT_SCHEDULE:
        return None
    values = {"service": name.job.service, "job": name.job.job, "tenant": name.tenant}
    row = (await tx.connection.execute(_NAMED_OFFER, values)).one_or_none()
    return None if row is None else _default_of(row)


async def list_schedules(
    tx: Transaction, parent: ScheduleParent, *, after: Sequence[str] | None, limit: int
) -> list[Schedule | JobDefault]:
    """Schedules after a (service, job, tenant, schedule), in that order; of one tenant, with what jobs offer it."""
    service, job, tenant, schedule = after or ("", "", "", "")
    # Row level security says the same of a user; said here, the planner can use an index.
    of = tx.principal.tenant if tx.principal.kind is Kind.USER else parent.tenant
    values = {
        "service": parent.service,
        "job": parent.job,
        "after_service": service,
        "after_job": job,
        "after_tenant": tenant,
        "after_schedule": schedule,
        "limit": limit,
    }
    if of is None:
        rows = await tx.connection.execute(_LIST, values | {"tenant": None})
    else:
        rows = await tx.connection.execute(_LIST_TENANT, values | {"tenant": of, "default": DEFAULT_SCHEDULE})
    return [_default_of(row) if row.key is None else schedule_of(row) for row in rows]


def _default_of(row: Row[Any]) -> JobDefault:
    return JobDefault(
        job_id=row.offered_id,
        job=JobName(row.offered_by, row.offered_job),
        tenant=row.offered_to,
        tenant_zone=row.tenant_zone,
        declared=from_json(TimingSpec, row.declared),
        overridden=from_json(TimingSpec, row.overridden),
        owed_from=row.offered_from,
        halted=row.offered_halted,
    )
