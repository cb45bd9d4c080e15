"""The evidence of a fault run, gathered when everything has ended: from the database, effect files and the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, LiteralString

import psycopg

from tests.faults.effects import read_effects
from tests.faults.evidence import Evidence, FailedAttempt, Gap, Occurrence, Record
from tests.faults.journal import now
from tests.faults.names import ALWAYS
from tests.faults.site import Site

_RECORDS: LiteralString = """
select r.run_id, j.service || '/' || j.job, r.tenant_id, coalesce(s.schedule, ''), r.trigger::text, r.scheduled_for,
  r.created_at, r.started_at, r.finished_at, r.state::text, r.attempt, r.max_attempts, coalesce(r.error->>'code', ''),
  r.worker, coalesce(r.metadata->>'result', ''), r.cancel_requested_at
from carillon.runs r join carillon.jobs j using (job_id)
left join carillon.schedules s using (schedule_id)
order by r.run_id"""
_ATTEMPTS: LiteralString = """
select run_id, attempt, coalesce(error->>'code', ''), finished_at from carillon.attempts order by run_id, attempt"""
_LIVE: LiteralString = "select run_id from carillon.live_runs order by run_id"
_GAPS: LiteralString = """
select j.service || '/' || j.job, s.tenant_id, s.schedule, g.first_at, g.last_at, g.occurrences, g.reason
from carillon.gaps g join carillon.schedules s using (schedule_id) join carillon.jobs j using (job_id)
order by 1, 2, 3, 4"""


async def gather(site: Site, occurrences: Sequence[Occurrence], grace: float, notes: Mapping[str, str]) -> Evidence:
    """Of a site on which nothing happens any more."""
    journal = site.journal
    rows = await site.as_admin(_read)
    return Evidence(
        began=journal.began,
        ended=now(),
        grace=grace,
        occurrences=occurrences,
        calls=journal.calls,
        effects=read_effects(site.effects),
        records=[_record(row, site.workers_by_pid) for row in rows[_RECORDS]],
        attempts=[FailedAttempt(*row) for row in rows[_ATTEMPTS]],
        live=[run_id for (run_id,) in rows[_LIVE]],
        gaps=[Gap(*row) for row in rows[_GAPS]],
        faults=journal.faults,
        foreign=journal.foreign,
        ways=ALWAYS,
        notes=notes,
    )


def _read(admin: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    with admin.transaction():
        admin.execute("set transaction isolation level repeatable read")
        return {query: admin.execute(query).fetchall() for query in (_RECORDS, _ATTEMPTS, _LIVE, _GAPS)}


def _record(row: tuple[Any, ...], workers_by_pid: Mapping[int, str]) -> Record:
    """With the worker's name in the plan, where the record has that of its process."""
    record = Record(*row)
    pid = record.worker.rpartition(":")[2]
    return replace(record, worker=workers_by_pid.get(int(pid), record.worker)) if pid.isdigit() else record
