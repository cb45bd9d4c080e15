"""Deleting schedules: the rows stay, disarmed, with a last revision that says they owe nothing."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from scheduler_service.domain.record import RunError
from scheduler_service.domain.schedule import Schedule
from scheduler_service.store.cancel import end_pending_runs
from scheduler_service.store.database import Transaction
from scheduler_service.store.schedules import SELECT, schedule_of

_LOCK = text("""
select schedule_id from carillon.schedules
where schedule_id = any(:schedule_ids) and deleted_at is null
order by schedule_id for no key update""")
_THESE = text(f"{SELECT} where s.schedule_id = any(:schedule_ids) order by s.schedule_id")
_DELETE = text("""
with gone as (
  update carillon.schedules set deleted_at = :now, enabled = false, next_run_at = null, revision = revision + 1,
    settled_to = greatest(settled_to, :now), updated_at = :now, updated_by = :principal
  where schedule_id = any(:schedule_ids)
  returning *
)
insert into carillon.schedule_revisions (schedule_id, revision, enabled, cron, time_zone, gap, repeat, phase, jitter,
  in_force_from, changed_by)
select schedule_id, revision, false, cron, time_zone, gap, repeat, phase, jitter, settled_to, :principal from gone""")
# In the order of locks that store/turns.py gives: those whose turn it is before those that wait for them. No index
# finds all live runs of a schedule; joined, they are looked through once, however many schedules there are.
_LOCK_WAITING = text("""
select r.run_id, r.claim_id is null as is_waiting
from unnest(cast(:schedule_ids as bigint[])) as s (schedule_id) join carillon.live_runs r using (schedule_id)
where r.claim_id is null or r.followed
order by r.blocked, r.run_id for update of r""")


async def lock_schedules(tx: Transaction, schedule_ids: Sequence[int]) -> list[int]:
    """Locks those of these schedules that are not deleted, in the order of their ids."""
    rows = await tx.connection.execute(_LOCK, {"schedule_ids": list(schedule_ids)})
    return list(rows.scalars())


async def get_schedules(tx: Transaction, schedule_ids: Sequence[int]) -> list[Schedule]:
    """These schedules, in the order of their ids."""
    rows = await tx.connection.execute(_THESE, {"schedule_ids": list(schedule_ids)})
    return [schedule_of(row) for row in rows]


async def delete_schedules(tx: Transaction, schedule_ids: Sequence[int]) -> None:
    """Locked schedules, whose names are free from now on. What they owed must be settled."""
    values = {"schedule_ids": list(schedule_ids), "now": tx.now, "principal": str(tx.principal)}
    await tx.connection.execute(_DELETE, values)


async def end_waiting(tx: Transaction, schedule_ids: Sequence[int], error: RunError) -> int:
    """Ends the runs of these schedules that no worker holds as CANCELLED, and answers how many there were."""
    locked = await tx.connection.execute(_LOCK_WAITING, {"schedule_ids": list(schedule_ids)})
    waiting = [row.run_id for row in locked if row.is_waiting]
    if not waiting:
        return 0
    return await end_pending_runs(await tx.driver_connection(), waiting, error, tx.now)
