"""Folding: many counts of one job, hour and outcome become one, and add up to the same."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.store.statistics import fold_all_statistics, fold_statistics
from tests import builders
from tests.builders import MadeJob
from tests.conftest import DatabaseUrls

_COUNTS = "select count(*)::int, sum(runs)::int, sum(timed)::int, max(longest_duration) from carillon.job_stats"


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin)


async def this_hour(connection: psycopg.AsyncConnection[Any]) -> datetime:
    """In a transaction it stays the same, also for who folds in it."""
    row = await (await connection.execute("select date_trunc('hour', now(), 'UTC')")).fetchone()
    assert row is not None
    hour: datetime = row[0]
    return hour


def count(admin: psycopg.Connection[Any], job: MadeJob, hour: datetime, *, times: int) -> None:
    """What ended runs of an hour append."""
    for seconds in range(1, times + 1):
        admin.execute(
            "insert into carillon.job_stats values (%s, %s, 'COMPLETED', 2, 2, %s, %s, 3, 2, 1, now())",
            [job.job_id, hour, timedelta(seconds=2 * seconds), timedelta(seconds=seconds)],
        )


async def test_counts_of_one_hour_become_one(
    hot: psycopg.AsyncConnection[Any], admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    count(admin, job, await this_hour(hot), times=3)
    assert await fold_statistics(hot) == 1
    assert admin.execute(_COUNTS).fetchone() == (1, 6, 6, timedelta(seconds=3))
    assert await fold_statistics(hot) == 0


async def test_old_hours_are_folded_by_the_rare_pass(
    hot: psycopg.AsyncConnection[Any], admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    async with hot.transaction():
        hour = await this_hour(hot)
        for hours_ago in (0, 1, 5):
            count(admin, job, hour - timedelta(hours=hours_ago), times=2)
        assert await fold_statistics(hot) == 2
    assert admin.execute(_COUNTS).fetchone() == (4, 12, 12, timedelta(seconds=2))
    assert await fold_all_statistics(hot) == 1
    assert admin.execute(_COUNTS).fetchone() == (3, 12, 12, timedelta(seconds=2))


async def test_the_frequent_pass_reads_recent_hours_only(
    hot: psycopg.AsyncConnection[Any], admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    admin.execute(
        "insert into carillon.job_stats select %s, date_trunc('hour', now(), 'UTC') - h * interval '1 hour',"
        " 'COMPLETED', 1, 1, '1 s', '1 s', 0, 0, 0, now() from generate_series(2, 20000) h",
        [job.job_id],
    )
    count(admin, job, await this_hour(hot), times=2)
    admin.execute("vacuum analyze carillon.job_stats")
    await hot.execute("select pg_stat_force_next_flush()")
    read = "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relname = 'job_stats'"
    before = admin.execute(read).fetchone()
    assert await fold_statistics(hot) == 1
    await hot.execute("select pg_stat_force_next_flush()")
    await hot.execute("select 1")
    after = admin.execute(read).fetchone()
    assert before is not None
    assert after is not None
    assert after[0] - before[0] < 20


async def test_a_replica_that_is_not_alone_reads_nothing(
    hot: psycopg.AsyncConnection[Any], database_urls: DatabaseUrls, job: MadeJob
) -> None:
    with psycopg.connect(database_urls.admin) as rival:
        rival.execute("select pg_advisory_xact_lock(hashtext('carillon.fold_statistics'))")
        rival.execute("lock table carillon.job_stats in access exclusive mode")
        async with asyncio.timeout(60):
            assert await fold_statistics(hot) == 0
            assert await fold_all_statistics(hot) == 0
