"""What schedules and their jobs have been, read as timelines."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text

from scheduler_service.domain.schedule import InForce
from scheduler_service.domain.timeline import JobChange, RevisionInForce, Stretch, timeline
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy
from scheduler_service.store.database import Transaction

_REVISIONS = text("""
select r.schedule_id, r.revision, r.enabled, r.cron, r.time_zone, r.gap, r.repeat, r.phase, r.jitter, r.in_force_from
from unnest(cast(:schedule_ids as bigint[])) as wanted (schedule_id)
  join carillon.schedule_revisions r using (schedule_id)
order by r.schedule_id, r.revision""")
_JOBS = text("""
select s.schedule_id, s.job_id
from unnest(cast(:schedule_ids as bigint[])) as wanted (schedule_id) join carillon.schedules s using (schedule_id)""")
_CHANGES = text("""
select c.job_id, c.in_force_from, c.halted
from unnest(cast(:job_ids as bigint[])) as wanted (job_id) join carillon.job_changes c using (job_id)
order by c.job_id, c.change_id""")


async def timelines(tx: Transaction, schedule_ids: Iterable[int], until: datetime) -> dict[int, tuple[Stretch, ...]]:
    """The stretches up to `until` of those of these schedules that the caller may see, deleted ones too."""
    wanted = {"schedule_ids": list(schedule_ids)}
    jobs = {row.schedule_id: row.job_id for row in await tx.connection.execute(_JOBS, wanted)}
    revisions: dict[int, list[RevisionInForce]] = {schedule_id: [] for schedule_id in jobs}
    for row in await tx.connection.execute(_REVISIONS, wanted):
        revisions[row.schedule_id].append(_revision_of(row))
    changes: dict[int, list[JobChange]] = {job_id: [] for job_id in jobs.values()}
    for row in await tx.connection.execute(_CHANGES, {"job_ids": list(changes)}):
        changes[row.job_id].append(JobChange(row.in_force_from, row.halted))
    return {each: timeline(revisions[each], changes[job_id], until) for each, job_id in jobs.items()}


def _revision_of(row: Row[Any]) -> RevisionInForce:
    in_force = InForce(
        enabled=row.enabled,
        cron=row.cron,
        time_zone=row.time_zone,
        gap=GapPolicy[row.gap],
        repeat=RepeatPolicy[row.repeat],
        phase=row.phase,
        jitter=row.jitter,
    )
    return RevisionInForce(row.revision, in_force, row.in_force_from)
