"""Writing what resuming catches up: runs that take their turn, gaps, and where the schedules then stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from sqlalchemy import TextClause, text

from scheduler_service.domain.settling import OwedRun
from scheduler_service.domain.timing import Missed, tzdata_version
from scheduler_service.store import arrays
from scheduler_service.store.database import Transaction
from scheduler_service.store.turns import arrange


@dataclass(slots=True)  # not frozen: one of a million perhaps, where freezing costs four times the making
class CaughtUpSchedule:
    """What one schedule catches up: runs of the revision in force now, and what was missed, of a revision."""

    schedule_id: int
    revision: int
    runs: Sequence[OwedRun]
    missed: Sequence[Missed]


# A run that is there already stays as it is, live or ended: its id is made of schedule and instant.
_WRITE: LiteralString = """
with moved as (
  update carillon.schedules set settled_to = greatest(settled_to, %(now)s)
  where schedule_id = any(%(schedules)s::bigint[])
),
missed as (
  insert into carillon.gaps (schedule_id, first_at, last_at, occurrences, reason, revision, recorded_at)
  select g.schedule_id, g.first_at, g.last_at, g.occurrences, g.reason, g.revision, %(now)s
  from unnest(%(gap_schedules)s::bigint[], %(revisions)s::int[], %(first_at)s::timestamptz[],
              %(last_at)s::timestamptz[], %(occurrences)s::bigint[], %(reasons)s::text[])
       as g(schedule_id, revision, first_at, last_at, occurrences, reason)
)
insert into carillon.live_runs (run_id, schedule_id, revision, job_id, tenant_id, route, trigger, priority, exclusive,
  blocked, scheduled_for, scheduled_local, fold, time_zone, tzdata, run_after, created_at, triggered_by, labels,
  payload, max_attempts, attempt_timeout, run_timeout, cancel_grace)
select r.run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, j.route, r.trigger,
  case when r.trigger = 'CATCH_UP' then 1 else 0 end, j.overlap <> 'ALLOW_ALL', j.overlap <> 'ALLOW_ALL',
  r.scheduled_for, r.scheduled_local, r.fold, s.time_zone, %(tzdata)s, r.run_after, %(now)s, %(principal)s,
  j.labels || s.labels, j.config || s.config, j.max_attempts, j.attempt_timeout, j.run_timeout,
  j.cancel_grace
from unnest(%(run_schedules)s::bigint[], %(run_ids)s::uuid[], %(triggers)s::carillon.trigger_source[],
            %(scheduled_for)s::timestamptz[], %(scheduled_local)s::timestamp[], %(folds)s::smallint[],
            %(run_after)s::timestamptz[])
     as r(schedule_id, run_id, trigger, scheduled_for, scheduled_local, fold, run_after)
join carillon.schedules s on s.schedule_id = r.schedule_id
join carillon.jobs j on j.job_id = s.job_id
where (select true from carillon.runs e where e.run_id = r.run_id) is null
on conflict (run_id) do nothing"""


# A look at each is a sub-select of a single value, as in store/backfill_runs.py.
_REMEDIED = """
select m.schedule_id, array_agg(distinct m.scheduled_for) as instants
from carillon.schedules s join carillon.remedies m using (schedule_id)
where m.scheduled_for > :since and m.scheduled_for <= :now
  and coalesce((select true from carillon.live_runs l where l.run_id = m.run_id),
               (select r.state = 'COMPLETED' from carillon.runs r where r.run_id = m.run_id), false)
  and {of_whom} = :of_whom
group by m.schedule_id"""
_OF_SCHEDULE = text(_REMEDIED.format(of_whom="s.schedule_id"))
_OF_JOB = text(_REMEDIED.format(of_whom="s.job_id"))


async def remedied_of_schedule(tx: Transaction, schedule_id: int, since: datetime) -> frozenset[datetime]:
    """A schedule's occurrences after `since` for which a run was made by hand that is live or completed."""
    found = await _remedied(tx, _OF_SCHEDULE, schedule_id, since)
    return found.get(schedule_id, frozenset())


async def remedied_of_job(tx: Transaction, job_id: int, since: datetime) -> dict[int, frozenset[datetime]]:
    """The same for all schedules of a job that have any."""
    return await _remedied(tx, _OF_JOB, job_id, since)


async def _remedied(
    tx: Transaction, statement: TextClause, of_whom: int, since: datetime
) -> dict[int, frozenset[datetime]]:
    rows = await tx.connection.execute(statement, {"of_whom": of_whom, "since": since, "now": tx.now})
    return {row.schedule_id: frozenset(row.instants) for row in rows}


async def write(tx: Transaction, caught_up: Iterable[CaughtUpSchedule]) -> int:
    """Makes the runs, records what was missed, and moves these schedules on to now; answers how many runs that made.
    Nobody else may be at the schedules. Wake Topic.PENDING once the transaction is committed, if there are any."""
    wanted = list(caught_up)
    runs = [(each.schedule_id, run) for each in wanted for run in each.runs]
    gaps = [(each, gap) for each in wanted for gap in each.missed]
    connection = await tx.driver_connection()
    cursor = await connection.execute(
        _WRITE,
        {
            "now": tx.now,
            "tzdata": tzdata_version(),
            "principal": str(tx.principal),
            "schedules": arrays.plain({each.schedule_id for each in wanted}),
            "gap_schedules": arrays.plain(each.schedule_id for each, _ in gaps),
            "revisions": arrays.plain(each.revision for each, _ in gaps),
            "first_at": arrays.instants(gap.first for _, gap in gaps),
            "last_at": arrays.instants(gap.last for _, gap in gaps),
            "occurrences": arrays.plain(gap.count for _, gap in gaps),
            "reasons": arrays.plain(gap.reason.upper() for _, gap in gaps),
            "run_schedules": arrays.plain(schedule_id for schedule_id, _ in runs),
            "run_ids": arrays.uuids(run.run_id for _, run in runs),
            "triggers": arrays.plain(run.trigger for _, run in runs),
            "scheduled_for": arrays.instants(run.occurrence.instant for _, run in runs),
            "scheduled_local": arrays.local_times(run.occurrence.local for _, run in runs),
            "folds": arrays.plain(run.occurrence.fold for _, run in runs),
            "run_after": arrays.instants(run.run_after for _, run in runs),
        },
    )
    if runs:
        await arrange(connection, {schedule_id for schedule_id, _ in runs})
    return cursor.rowcount
