"""What the ledger's tests share: reading it page by page, and ending what runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg

from scheduler_service.domain.access import Principal
from scheduler_service.domain.job import Policies
from scheduler_service.domain.ledger import Entry, Outcome
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.run import RunState
from scheduler_service.usecases import ledger
from tests.builders import (
    ADMIN,
    finish,
    rewriting_records,
)
from tests.store.definitions_case import (
    MINUTE,
    START,
    Scheduler,
    own,
)

Admin = psycopg.Connection[Any]
ALLOW_ALL = Policies(overlap=Overlap.ALLOW_ALL)
SECOND = timedelta(seconds=1)


async def read(
    scheduler: Scheduler, name: ScheduleName | None = None, by: Principal = ADMIN, **asked: Any
) -> list[Entry]:
    """The whole ledger since START, page by page."""
    asked.setdefault("since", START)
    size: int = asked.setdefault("size", 1000)
    entries: list[Entry] = []
    token = ""
    while True:
        page = await ledger.list_ledger(scheduler.database, by, name or own(), token=token, **asked)
        assert len(page.entries) <= size
        entries += page.entries
        if not (token := page.next_page_token):
            return entries


def lines(entries: Sequence[Entry]) -> list[tuple[Outcome, int, int]]:
    """Outcome, minutes after START and count of each."""
    return [(each.outcome, (each.owed.first - START) // MINUTE, each.owed.count) for each in entries]


def end_all(scheduler: Scheduler, state: RunState = RunState.COMPLETED, **columns: Any) -> None:
    for (run_id,) in scheduler.admin.execute("select run_id from carillon.live_runs").fetchall():
        finish(scheduler.admin, run_id, state, finished_at=scheduler.database.now, **columns)


def age_all(scheduler: Scheduler, since: datetime) -> None:
    """As if everything had been there and standing still since then."""
    with rewriting_records(scheduler.admin):
        scheduler.admin.execute("update carillon.schedule_revisions set in_force_from = %s", [since])
        scheduler.admin.execute("update carillon.job_changes set in_force_from = %s", [since])
    scheduler.admin.execute("update carillon.jobs set owed_from = %s", [since])
    scheduler.admin.execute("update carillon.schedules set settled_to = %s, next_run_at = %s", [since, since])
