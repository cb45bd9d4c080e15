"""Trying ended runs again by hand: what was made for one already, and making the next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.record import CLEARED
from scheduler_service.domain.run import id_floor, scheduled_run_id
from scheduler_service.store.database import Transaction
from scheduler_service.store.turns import arrange

# The least age of what `clear_payloads` clears.
_NOT_CLEARED_BEFORE = timedelta(days=1)

# An ended run never changes, and neither does which one it tried again: both may be read before any lock is held.
_FIND = text("""
with recursive earlier(run_id, depth) as (
  select cast(:run_id as uuid), 0
  union all
  select t.retry_of, e.depth + 1 from earlier e join carillon.retries t on t.run_id = e.run_id
)
select r.run_id, r.schedule_id, case when r.scheduled_local is not null then r.scheduled_for end as occurrence,
  (select e.run_id from earlier e order by e.depth desc limit 1) as first_id
from carillon.runs r where r.run_id = :run_id""")
_LOCK_FIRST = text("select pg_advisory_xact_lock(hashtextextended('carillon.retries ' || :first_id, 0))")
_LOCK_SCHEDULE = text("select deleted_at from carillon.schedules where schedule_id = :schedule_id for no key update")
# Each look is a sub-select of a single value, as in store/backfill_runs.py: an index scan in the one partition of its
# id.
_STANDING = text("""
with recursive made(run_id) as (
  select cast(:first_id as uuid)
  union all
  select t.run_id from made m join carillon.retries t on t.retry_of = m.run_id
)
select w.run_id
from (
  select run_id from made
  union select cast(:occurrence_id as uuid) where cast(:occurrence_id as uuid) is not null
  union select m.run_id from carillon.remedies m
        where m.schedule_id = :schedule_id and m.scheduled_for = cast(:occurrence as timestamptz)
) w
where coalesce((select true from carillon.live_runs l where l.run_id = w.run_id),
               (select r.state = 'COMPLETED' from carillon.runs r where r.run_id = w.run_id), false)
order by w.run_id desc limit 1""")
# The payload is copied where it lies: nothing that reads it could change a number in it. A run that ended with its
# worker may have killed it: its like has no neighbours from the start.
_INSERT = text("""
with made as (
  insert into carillon.live_runs (run_id, schedule_id, revision, job_id, tenant_id, route, trigger, exclusive, blocked,
    scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, triggered_by, origin, labels,
    payload, max_attempts, retry_delay, attempt_timeout, run_timeout, cancel_grace, alone)
  select :run_id, r.schedule_id, r.revision, r.job_id, r.tenant_id, j.route,
    case r.trigger when 'TEST' then r.trigger else 'MANUAL' end,
    r.schedule_id is not null and j.overlap <> 'ALLOW_ALL', r.schedule_id is not null and j.overlap <> 'ALLOW_ALL',
    r.scheduled_for, r.scheduled_local, r.fold, r.time_zone, r.tzdata, :now, :now, :triggered_by, r.origin, r.labels,
    r.payload, j.max_attempts, j.retry_delay, j.attempt_timeout, j.run_timeout, j.cancel_grace,
    coalesce(r.error ->> 'code' = 'WORKER_LOST', false)
  from carillon.runs r join carillon.jobs j using (job_id)
  where r.run_id = :retry_of and not (r.payload = '{}' and
    coalesce(r.error ->> 'message' = :cleared, r.error is null and r.run_id < cast(:may_be_cleared as uuid)))
  returning run_id, schedule_id, job_id, tenant_id, scheduled_for, scheduled_local
),
remedied as (
  insert into carillon.remedies (run_id, schedule_id, scheduled_for, created_at)
  select run_id, schedule_id, scheduled_for, :now from made where scheduled_local is not null
)
insert into carillon.retries (run_id, retry_of, job_id, tenant_id, created_at)
select run_id, :retry_of, job_id, tenant_id, :now from made""")


@dataclass(frozen=True, slots=True)
class EndedRun:
    """An ended run that is to be tried again. `schedule_id` is None for one of no schedule, `occurrence` for one that
    its schedule did not owe. `first_id`: its own, or that of the run which it and others before it tried again."""

    run_id: UUID
    schedule_id: int | None
    occurrence: datetime | None
    first_id: UUID

    @property
    def occurrence_id(self) -> UUID | None:
        """The id that the scheduled run of its occurrence has."""
        if self.schedule_id is None or self.occurrence is None:
            return None
        return scheduled_run_id(self.schedule_id, self.occurrence)


async def find_ended(tx: Transaction, run_id: UUID) -> EndedRun | None:
    """A run of which there is a record; None if that is gone by now."""
    row = (await tx.connection.execute(_FIND, {"run_id": run_id})).one_or_none()
    return None if row is None else EndedRun(*row)


async def lock_retries(tx: Transaction, ended: EndedRun) -> None:
    """Until the transaction ends, nobody else tries the run again, nor one that it tried again. Comes before any lock
    of a row."""
    await tx.connection.execute(_LOCK_FIRST, {"first_id": str(ended.first_id)})


async def lock_schedule(tx: Transaction, schedule_id: int) -> bool:
    """Locks a schedule against the ticks and everybody else who adds a run to it. False if it is deleted, or not
    there."""
    row = (await tx.connection.execute(_LOCK_SCHEDULE, {"schedule_id": schedule_id})).one_or_none()
    return row is not None and row.deleted_at is None


async def find_standing(tx: Transaction, ended: EndedRun) -> UUID | None:
    """The newest run that was made for the same thing, and is live or completed: one that tried it again, or, of an
    occurrence, any that was run for it. With both locks held, none comes up before the transaction ends."""
    values = {
        "first_id": ended.first_id,
        "schedule_id": ended.schedule_id,
        "occurrence": ended.occurrence,
        "occurrence_id": ended.occurrence_id,
    }
    run_id: UUID | None = (await tx.connection.execute(_STANDING, values)).scalar_one_or_none()
    return run_id


async def insert_retry(tx: Transaction, ended: EndedRun, run_id: UUID) -> bool:
    """Makes a run that tries an ended one again, due now: what it is about is the other's, how it behaves the job's.
    That of a locked schedule waits its turn, and stands beside the occurrence as its remedy. False if the ended one's
    payload is not kept any more, or nobody can tell, since that is said in its error and it has none: no lock keeps
    that from being cleared, so this statement looks."""
    values = {
        "run_id": run_id,
        "retry_of": ended.run_id,
        "now": tx.now,
        "triggered_by": str(tx.principal),
        "cleared": CLEARED,
        "may_be_cleared": id_floor(tx.now - _NOT_CLEARED_BEFORE),
    }
    if not (await tx.connection.execute(_INSERT, values)).rowcount:
        return False
    if ended.schedule_id is not None:
        await arrange(await tx.driver_connection(), [ended.schedule_id])
    return True
