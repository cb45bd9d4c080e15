"""What the loops say that they did, for the metrics."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from scheduler_service.domain.attempt import AttemptOutcome, AttemptRef, Result
from scheduler_service.domain.record import RunError
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Cancels, Reaped, Reaper
from scheduler_service.engine.sessions import Sessions
from scheduler_service.loops.reaper import ReaperLoop
from scheduler_service.loops.ticker import SecondTicker, Ticker, TickTotals
from scheduler_service.store.claim import claim
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import days_ago, make_job, make_live_run, make_schedule, make_session, now
from tests.store.engine_case import SECOND, Connection, rows, session_of

Admin = psycopg.Connection[Any]
WRONG = RunError("HTTP_STATUS", "the target answered 500", "")


def reported(ref: AttemptRef, session_id: UUID, outcome: AttemptOutcome) -> Result:
    return Result(ref, session_id, outcome, 0.1, error=None if outcome == "COMPLETED" else WRONG)


@pytest.mark.parametrize(
    ("outcome", "columns", "ended"),
    [
        ("COMPLETED", {}, {"COMPLETED": 1}),
        ("FAILED", {"max_attempts": 1}, {"FAILED": 1}),
        ("FAILED", {"max_attempts": 2}, {}),
        ("FAILED", {"cancel_requested_at": now()}, {"CANCELLED": 1}),
        ("RETURNED", {}, {}),
    ],
    ids=["completed", "failed for good", "to be tried again", "cancelled", "returned"],
)
async def test_only_results_that_end_a_run_are_counted_as_its_end(
    admin: Admin, hot: Connection, outcome: AttemptOutcome, columns: dict[str, Any], ended: dict[str, int]
) -> None:
    session, _ = session_of(admin, Sessions(on_credit=lambda: None), credit=1)
    make_live_run(admin, make_job(admin), at=days_ago(0.01), **columns)
    made = await claim(hot, session.session_id, ["http"], 1, now())
    assert made is not None
    (run,) = made.runs
    completer = Completer(Wakeups())
    result = reported(AttemptRef(run.run_id, run.attempt, made.claim_id), session.session_id, outcome)
    for _ in range(2):  # sent again, it counts no second time
        completer.submit([result], session)
        await completer.step(hot)
        assert +completer.ended == ended


async def test_ticks_count_the_runs_that_they_make_and_skip(admin: Admin, database: Database, hot: Connection) -> None:
    job = make_job(admin, owed_from=days_ago(30), created_at=days_ago(30))
    row: dict[str, Any] = {"cron": "@every 10s", "settled_to": now() - 15 * SECOND, "next_run_at": now()}
    make_schedule(admin, job, "free", **row)
    make_live_run(
        admin, job, schedule_id=make_schedule(admin, job, "busy", **row), revision=1, exclusive=True, trigger="SCHEDULE"
    )
    wakeups = Wakeups()
    dispatcher = Dispatcher(Sessions(on_credit=lambda: None), wakeups)
    second = SecondTicker(database.hot_connection, dispatcher, wakeups)
    ticker = Ticker(database.hot_connection, dispatcher, wakeups, second)
    await ticker.step(hot)
    ((skipped,),) = rows(admin, "select count(*) from carillon.runs where state = 'SKIPPED'")
    assert skipped >= 1
    assert second.totals == TickTotals(ticks=1, runs=1, skipped=skipped)


async def test_the_reapers_loop_sums_up_its_steps(admin: Admin, database: Database, hot: Connection) -> None:
    wakeups, sessions = Wakeups(), Sessions(on_credit=lambda: None)
    leases = Leases(database, sessions, wakeups, replica="replica")
    loop = ReaperLoop(database.hot_connection, Reaper(sessions, leases, wakeups), Cancels(sessions), wakeups)
    for _ in range(2):
        make_session(admin)
        admin.execute("update carillon.sessions set expires_at = now() - interval '1 s'")
        await loop.step(hot)
    assert loop.total == Reaped(sessions=2)
