"""What waits, as operators and scalers see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.engine.backlog import PERIOD, Backlog
from scheduler_service.store.backlog import Waiting, count_backlog
from tests.builders import claim, make_job, make_live_run, make_session
from tests.store.engine_case import Connection

Admin = psycopg.Connection[Any]
NOW = datetime.now(UTC)
NOTHING = Waiting(0, 0.0)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


async def test_what_is_due_is_counted_by_route_from_when_it_was_due(admin: Admin, hot: Connection) -> None:
    job = make_job(admin)
    make_job(admin, job="report", route="handler/email-service/report")
    for seconds in (40, 7, -60):  # the last is due in a minute
        make_live_run(admin, job, at=ago(100), run_after=ago(seconds))
    claim(admin, make_live_run(admin, job, at=ago(300)), make_session(admin))
    make_live_run(admin, job, at=ago(200), schedule_id=1, revision=1, exclusive=True, blocked=True)
    make_live_run(admin, job, at=ago(30), route="handler/email-service/gone")
    counts = await count_backlog(hot, now=NOW)
    assert counts.waiting == {
        "http": Waiting(2, 40.0),
        "handler/email-service/report": NOTHING,
        "handler/email-service/gone": Waiting(1, 30.0),
    }
    assert counts.live == {"PENDING": 4, "RUNNING": 1}


async def test_what_is_caught_up_is_counted_with_what_is_due(admin: Admin, hot: Connection) -> None:
    job = make_job(admin)
    make_live_run(admin, job, at=ago(5))
    for seconds in (40, 30, -60):
        make_live_run(admin, job, at=ago(seconds), priority=1)
    assert (await count_backlog(hot, now=NOW)).waiting == {"http": Waiting(3, 40.0)}
    assert (await count_backlog(hot, cap=2, now=NOW)).waiting == {"http": Waiting(2, 40.0)}


async def test_counting_stops_at_the_cap_and_still_knows_the_oldest(admin: Admin, hot: Connection) -> None:
    job = make_job(admin)
    session = make_session(admin)
    for seconds in range(1, 6):
        make_live_run(admin, job, at=ago(seconds))
        claim(admin, make_live_run(admin, job, at=ago(seconds)), session)
    counts = await count_backlog(hot, cap=3, now=NOW)
    assert counts.waiting == {"http": Waiting(3, 5.0)}
    assert counts.live == {"PENDING": 3, "RUNNING": 3}


async def test_archived_jobs_without_runs_are_left_out(admin: Admin, hot: Connection) -> None:
    make_job(admin, job="old", route="handler/email-service/old", archived_at=NOW)
    assert (await count_backlog(hot)).waiting == {}


class TestBacklog:
    """When it is counted, by a clock that the test steps."""

    @pytest.fixture
    def backlog(self) -> Backlog:
        self.now = 1000.0
        return Backlog(lambda: self.now)

    async def test_it_is_counted_at_once_and_then_every_few_seconds(self, hot: Connection, backlog: Backlog) -> None:
        assert await backlog.step(hot)
        assert not await backlog.step(hot)
        assert backlog.seconds_to_next() == PERIOD
        self.now += PERIOD
        assert await backlog.step(hot)

    async def test_a_count_that_takes_long_is_rarer(self, hot: Connection) -> None:
        ticks = iter([0.0, 0.0, 0.5, 0.5])  # made, began, ended half a second later, asked
        backlog = Backlog(lambda: next(ticks))
        assert await backlog.step(hot)
        assert backlog.seconds_to_next() == 25.0

    async def test_there_are_no_figures_before_the_first_count_nor_long_after_the_last(
        self, hot: Connection, backlog: Backlog
    ) -> None:
        shown = [backlog.counts]
        await backlog.step(hot)
        for age in (0, 119, 121):
            self.now = 1000.0 + age
            shown.append(backlog.counts)
        assert [counts is not None for counts in shown] == [False, True, True, False]
