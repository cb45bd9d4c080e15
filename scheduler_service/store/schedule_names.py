"""Schedules' resource names, for those who have worked with their ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection

_NAMES: LiteralString = """
select j.service, j.job, s.tenant_id, s.schedule from carillon.schedules s join carillon.jobs j using (job_id)
where s.schedule_id = any(%(schedule_ids)s::bigint[]) order by s.schedule_id"""


async def names_of(connection: Connection, schedule_ids: Iterable[int]) -> list[ScheduleName]:
    """In the order of their ids."""
    rows = await connection.execute(_NAMES, {"schedule_ids": arrays.plain(schedule_ids)})
    return [ScheduleName(JobName(service, job), tenant, name) for service, job, tenant, name in await rows.fetchall()]
