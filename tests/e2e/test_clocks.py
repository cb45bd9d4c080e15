"""A process's clock may jump: no occurrence is early, twice or missing. PostgreSQL's clock is the one that counts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web
from carillon import Client

from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually
from tests.e2e.conftest import SERVICE, Call, Service
from tests.e2e.moved_clock import MovedClock
from tests.faults.verdict import count_records

JOB = f"{SERVICE}/weekly-digest"
SCHEDULES = 12
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
YEAR = timedelta(days=365)
JUMPS = (SECOND, -SECOND, HOUR, -HOUR, YEAR, -YEAR)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the clock is moved by LD_PRELOAD")


def test_a_moved_clock_is_moved_and_its_monotonic_clock_is_not(tmp_path: Path) -> None:
    """What the other tests stand on."""
    clock = MovedClock(tmp_path)
    clock.move(-YEAR)
    program = "import time; print(time.time(), time.monotonic())"
    said = subprocess.run([sys.executable, "-c", program], env=clock.environment, capture_output=True, check=True)
    wall, monotonic = map(float, said.stdout.split())
    assert abs(wall - (datetime.now(UTC) - YEAR).timestamp()) < 60
    assert abs(monotonic - time.monotonic()) < 60


@pytest.mark.parametrize("whose", ["scheduler", "worker-service"])
async def test_a_clock_that_jumps_makes_nothing_early_twice_or_missing(
    database_urls: DatabaseUrls, tmp_path: Path, service: Service, whose: str
) -> None:
    clock = MovedClock(tmp_path)
    calls: Counter[str] = Counter()
    service.answer = _counting(calls)
    async with Cluster(tmp_path, database_urls) as cluster:
        cluster.environments[whose] = clock.environment
        await cluster.start_scheduler()
        await cluster.start_worker_service()
        with psycopg.connect(database_urls.admin, autocommit=True) as admin:
            async with cluster.client() as client:
                await _declare(cluster, client, service)
                for jump in (timedelta(), *JUMPS):
                    clock.move(jump)
                    await _every_schedule_runs(admin)
                # An admin's token is of its time; so is this client's.
                clock.move(timedelta())
                await client.pause_job(JOB)
            await eventually(lambda: _live(admin), lambda live: live == 0)
        with psycopg.connect(database_urls.admin, autocommit=True) as admin:
            _compare(admin, calls)


def _counting(calls: Counter[str]) -> Any:
    async def answer(call: Call) -> web.Response:
        calls[call.run] += 1
        return web.Response()

    return answer


async def _declare(cluster: Cluster, client: Client, service: Service) -> None:
    """Schedules that come due each second, all from one instant on."""
    jobs = service.jobs(cluster)
    jobs.endpoint("weekly-digest", "/run", tenant_schedules=True, overlap="allow_all")
    await jobs.register()
    await client.pause_job(JOB)
    for number in range(SCHEDULES):
        await client.put_schedule(JOB, tenant=f"tenant-{number}", cron="@every 1s", time_zone="UTC")
    await client.resume_job(JOB)


async def _every_schedule_runs(admin: psycopg.Connection[Any]) -> None:
    """Until each has completed two occurrences that came due after now, which is PostgreSQL's."""
    row = admin.execute("select clock_timestamp()").fetchone()
    assert row is not None

    async def completed() -> int:
        found = admin.execute(
            "select count(*) from (select from carillon.runs where scheduled_for > %s and state = 'COMPLETED'"
            " group by schedule_id having count(*) >= 2) done",
            row,
        ).fetchone()
        return 0 if found is None else int(found[0])

    await eventually(completed, lambda schedules: schedules == SCHEDULES)


async def _live(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("select count(*) from carillon.live_runs").fetchone()
    assert row is not None
    return int(row[0])


def _compare(admin: psycopg.Connection[Any], calls: Counter[str]) -> None:
    records = count_records(admin)
    assert records.are_whole, records
    assert records.occurrences >= SCHEDULES * 2 * (1 + len(JUMPS))
    rows = admin.execute(
        "select run_id::text, created_at < scheduled_for, trigger::text, attempt from carillon.runs"
    ).fetchall()
    assert {row[1:] for row in rows} == {(False, "SCHEDULE", 1)}
    assert calls == Counter(run for run, *_ in rows)
