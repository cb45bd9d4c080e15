"""What became of occurrences: the schedules of a name, their gaps, their runs, and what was run afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from scheduler_service.domain.ledger import TICK, Account, FoundRun, Gap, Owed, Remedy
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.run import RunState
from scheduler_service.store.database import Transaction
from scheduler_service.store.run_rows import LIVE_STATE
from scheduler_service.store.timeline import timelines

# In two halves, because the indexes by name are of the one and of the others.
_NAMED = """
select s.schedule_id, s.revision, s.settled_to, s.next_run_at, s.set_aside_reason
from carillon.jobs j join carillon.schedules s using (job_id)
where j.service = :service and j.job = :job and s.tenant_id = :tenant and s.schedule = :schedule and s.deleted_at is"""
_OF_NAME = text(f"{_NAMED} null union all {_NAMED} not null order by schedule_id")
# A schedule's gaps do not overlap: of those that begin by `after`, only the last can reach beyond it.
# The coalesce stands inside, because row level security keeps one in the condition from the index.
_GAPS = text("""
select g.schedule_id, g.first_at, g.last_at, g.occurrences, g.reason, g.revision
from unnest(cast(:schedule_ids as bigint[])) as wanted (schedule_id)
  cross join lateral (
    select coalesce(max(b.first_at), '-infinity') as first_at from carillon.gaps b
    where b.schedule_id = wanted.schedule_id and b.first_at <= :after
  ) earlier
  cross join lateral (
    select g.* from carillon.gaps g
    where g.schedule_id = wanted.schedule_id and g.last_at > :after
      and g.first_at >= earlier.first_at and g.first_at <= :until
    order by g.first_at limit :limit
  ) g
order by g.first_at, g.schedule_id limit :limit""")
# `offset 0` keeps each look-up by its id: a join of its own choosing may read whole partitions.
_RUNS = text(f"""
select wanted.run_id, found.state, found.code, found.message
from unnest(cast(:run_ids as uuid[])) as wanted (run_id)
  cross join lateral (
    select {LIVE_STATE} as state, '' as code, '' as message
    from carillon.live_runs r where r.run_id = wanted.run_id
    union all
    select r.state::text, coalesce(r.error->>'code', ''), coalesce(r.error->>'message', '')
    from carillon.runs r where r.run_id = wanted.run_id
    offset 0
  ) found""")
_REMEDIES = text(f"""
select wanted.place, newest.run_id, state.state, completed.occurrences
from unnest(cast(:places as int[]), cast(:schedule_ids as bigint[]), cast(:firsts as timestamptz[]),
            cast(:lasts as timestamptz[])) as wanted (place, schedule_id, first_at, last_at)
  cross join lateral (
    select m.run_id from carillon.remedies m
    where m.schedule_id = wanted.schedule_id and m.scheduled_for between wanted.first_at and wanted.last_at
    order by m.scheduled_for desc, m.created_at desc, m.run_id desc limit 1
  ) newest
  left join lateral (
    select {LIVE_STATE} as state from carillon.live_runs r where r.run_id = newest.run_id
    union all
    select r.state::text from carillon.runs r where r.run_id = newest.run_id
    limit 1
  ) state on true
  cross join lateral (
    select count(distinct m.scheduled_for) as occurrences
    from carillon.remedies m
      cross join lateral (
        select from carillon.runs r where r.run_id = m.run_id and r.state = 'COMPLETED' offset 0
      ) done
    where m.schedule_id = wanted.schedule_id and m.scheduled_for between wanted.first_at and wanted.last_at
  ) completed""")
_KEPT_FROM = text("""
select min(right(p.relname, 7)) from pg_inherits i join pg_class p on p.oid = i.inhrelid
where i.inhparent = 'carillon.runs'::regclass and p.relname ~ '^runs_[0-9]{4}_[0-9]{2}$'""")


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of a time, oldest first, of which none is left out up to `until`."""

    gaps: Sequence[Gap]
    until: datetime


async def accounts(tx: Transaction, name: ScheduleName, until: datetime) -> list[Account]:
    """Every schedule that has this name or had it, deleted ones too, with its timeline up to `until`; those that the
    caller may see."""
    of_name = {
        "service": name.job.service,
        "job": name.job.job,
        "tenant": name.tenant,
        "schedule": name.schedule,
    }
    rows = (await tx.connection.execute(_OF_NAME, of_name)).all()
    stretches = await timelines(tx, [row.schedule_id for row in rows], until)
    return [
        Account(
            schedule_id=row.schedule_id,
            revision=row.revision,
            settled_to=row.settled_to,
            armed=row.next_run_at is not None,
            set_aside_reason=row.set_aside_reason or "",
            stretches=stretches[row.schedule_id],
        )
        for row in rows
    ]


async def gaps(tx: Transaction, schedule_ids: Iterable[int], after: datetime, until: datetime, *, at_most: int) -> Gaps:
    """The first gaps of these schedules that reach into `(after, until]`."""
    values = {"schedule_ids": list(schedule_ids), "after": after, "until": until, "limit": at_most}
    found = [_gap_of(row) for row in await tx.connection.execute(_GAPS, values)]
    return Gaps(found, found[-1].first - TICK if len(found) == at_most else until)


async def runs(tx: Transaction, run_ids: Iterable[UUID]) -> dict[UUID, FoundRun]:
    """How those of these runs stand that are live or recorded. Touches their partitions only."""
    rows = await tx.connection.execute(_RUNS, {"run_ids": list(run_ids)})
    return {row.run_id: FoundRun(row.run_id, RunState(row.state), row.code, row.message) for row in rows}


async def remedies(tx: Transaction, entries: Sequence[Owed]) -> dict[int, Remedy]:
    """What was run afterwards, by the place of the entry."""
    values = {
        "places": list(range(len(entries))),
        "schedule_ids": [each.account.schedule_id for each in entries],
        "firsts": [each.first for each in entries],
        "lasts": [each.last for each in entries],
    }
    rows = await tx.connection.execute(_REMEDIES, values)
    return {row.place: Remedy(row.run_id, RunState(row.state) if row.state else None, row.occurrences) for row in rows}


async def kept_from(tx: Transaction) -> datetime | None:
    """Where the records that are kept begin: the first month that has a partition. None if there is none."""
    month = (await tx.connection.execute(_KEPT_FROM)).scalar_one()
    return None if month is None else datetime.strptime(month, "%Y_%m").replace(tzinfo=UTC)


def _gap_of(row: Row[Any]) -> Gap:
    return Gap(row.schedule_id, row.first_at, row.last_at, row.occurrences, row.reason, row.revision)
