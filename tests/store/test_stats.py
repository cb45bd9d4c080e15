"""Counts of a job's ended runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.errors import Forbidden, InvalidInput, NotFound
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import ItemCounts
from scheduler_service.domain.run import RunState
from scheduler_service.store.database import Database
from scheduler_service.usecases.stats import get_job_stats
from tests import builders
from tests.builders import ADMIN, MadeJob

NAME = JobName("email-service", "weekly-digest")
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=6)


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin)


async def test_runs_are_counted_by_outcome_without_tests(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    for n, seconds in enumerate((2, 4, 9)):
        at = HOUR + timedelta(minutes=n)
        duration = timedelta(seconds=seconds)
        builders.make_ended_run(
            admin, job, at=at, duration=duration, items_processed=3, items_succeeded=2, items_failed=1
        )
    builders.make_ended_run(admin, job, RunState.FAILED, at=HOUR, duration=timedelta(hours=30))
    builders.make_ended_run(admin, job, RunState.SKIPPED, at=HOUR)
    builders.make_ended_run(admin, job, RunState.CANCELLED, at=HOUR + timedelta(hours=1))
    builders.make_ended_run(admin, job, at=HOUR + timedelta(hours=2), trigger="TEST")
    builders.make_ended_run(admin, builders.make_job(admin, job="other"), at=HOUR)
    stats = await get_job_stats(database, ADMIN, NAME, since=None, until=None)
    assert stats.counts == {
        RunState.COMPLETED: 3,
        RunState.FAILED: 1,
        RunState.SKIPPED: 1,
        RunState.CANCELLED: 1,
    }
    assert (stats.average_duration, stats.longest_duration) == (timedelta(seconds=5), timedelta(seconds=9))
    assert stats.items == ItemCounts(9, 6, 3)
    assert stats.last_finished_at == HOUR + timedelta(hours=1, seconds=1)
    assert stats.last_state is RunState.CANCELLED


async def test_the_window_is_of_hours(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    for hours in range(4):
        builders.make_ended_run(admin, job, at=HOUR + timedelta(hours=hours, minutes=10))
    middle = await get_job_stats(
        database, ADMIN, NAME, since=HOUR + timedelta(hours=1, minutes=30), until=HOUR + timedelta(hours=3)
    )
    assert middle.counts == {RunState.COMPLETED: 2}
    none = await get_job_stats(database, ADMIN, NAME, since=HOUR - timedelta(hours=2), until=HOUR)
    assert (none.counts, none.average_duration, none.last_state) == ({}, None, None)
    with pytest.raises(InvalidInput):
        await get_job_stats(database, ADMIN, NAME, since=HOUR, until=HOUR)


async def test_the_first_instant_of_all_is_no_fault(database: Database, job: MadeJob) -> None:
    first = datetime.min.replace(tzinfo=UTC)
    none = await get_job_stats(database, ADMIN, NAME, since=None, until=first + timedelta(days=1))
    assert none.counts == {}
    with pytest.raises(InvalidInput):
        await get_job_stats(database, ADMIN, NAME, since=None, until=first)


async def test_who_sees_the_counts(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    builders.make_ended_run(admin, job, at=HOUR)
    own = await get_job_stats(database, builders.service("email-service"), NAME, since=None, until=None)
    assert own.counts == {RunState.COMPLETED: 1}
    with pytest.raises(Forbidden):
        await get_job_stats(database, builders.service("kpi-service"), NAME, since=None, until=None)
    with pytest.raises(NotFound):
        await get_job_stats(database, builders.user("tenant-a"), NAME, since=None, until=None)
    with pytest.raises(NotFound):
        await get_job_stats(database, ADMIN, JobName("email-service", "other"), since=None, until=None)
