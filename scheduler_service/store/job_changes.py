"""Rows of `job_changes`: from when on a job's schedules owed something, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import text

from scheduler_service.domain.timeline import JobChange
from scheduler_service.store.database import Transaction

_RECORD = text("""
insert into carillon.job_changes (job_id, in_force_from, halted, recorded_at, changed_by)
select job_id, :in_force_from, paused_at is not null or archived_at is not null, :now, :principal
from carillon.jobs where job_id = any(:job_ids)""")
_CHANGES = text("select in_force_from, halted from carillon.job_changes where job_id = :job_id order by change_id")


async def record(tx: Transaction, job_ids: Iterable[int], in_force_from: datetime | None = None) -> None:
    """Records whether these jobs are halted, as their rows now say, from an instant on (default: now). Call it in the
    transaction that made, paused, resumed, archived or revived them."""
    await tx.connection.execute(
        _RECORD,
        {
            "job_ids": list(job_ids),
            "in_force_from": in_force_from or tx.now,
            "now": tx.now,
            "principal": str(tx.principal),
        },
    )


async def changes_of(tx: Transaction, job_id: int) -> list[JobChange]:
    """Every change of a job, in the order in which they were made."""
    rows = await tx.connection.execute(_CHANGES, {"job_id": job_id})
    return [JobChange(row.in_force_from, row.halted) for row in rows]
