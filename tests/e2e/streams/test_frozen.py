"""Processes that stand still for longer than a lease: a stopped scheduler, a worker whose handler blocks its loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import structlog

from tests.builders import make_job, make_live_run
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster
from tests.e2e.streams.house import BOUND, FOUND_OUT, HEARTBEAT, LEASE, PATIENCE, Hands, session_of, until

_log = structlog.get_logger()


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path, lease: float) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls, lease_seconds=lease, heartbeat_seconds=HEARTBEAT) as cluster:
        for name in ("scheduler-1", "scheduler-2"):
            await cluster.start_scheduler(name)
        yield cluster


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("lease", [FOUND_OUT], ids=["found out"])
async def test_a_frozen_scheduler_is_left_and_does_no_harm_when_it_awakes(
    cluster: Cluster, admin: psycopg.Connection[Any], lease: float
) -> None:
    job, hands = make_job(admin), Hands()
    async with session_of(hands, cluster.target, cluster.secrets.worker_token) as session:
        assert await session.wait_until(lambda state: state.connected, PATIENCE)
        hands.may_end.clear()
        run_ids = [make_live_run(admin, job) for _ in range(3)]
        await until(lambda: len(hands.begun) == 3)
        frozen = session.state().replica
        held_under = session.session_id
        with stopped(cluster.processes.pid(frozen)):
            since = time.monotonic()
            assert await session.wait_until(lambda state: state.replica not in ("", frozen), BOUND)
            left_after = time.monotonic() - since
            run_ids += [make_live_run(admin, job) for _ in range(3)]
            hands.may_end.set()
            await until(lambda: len(hands.done) == len(run_ids))
            # Its streams are older than any lease when it awakes.
            assert not await session.wait_until(lambda state: not state.connected, lease)
        run_ids += [make_live_run(admin, job) for _ in range(3)]
        await until(lambda: _outcomes(admin) == [(run_id, "COMPLETED", 1) for run_id in sorted(run_ids)])
        assert session.session_id == held_under
        _log.info("recovered within", seconds=round(left_after, 2))
    assert sorted(run_id for run_id, _ in hands.done) == sorted(run_ids)
    assert admin.execute("select count(*) from carillon.attempts").fetchone() == (0,)


@pytest.mark.parametrize("lease", [LEASE], ids=["short lease"])
async def test_a_worker_that_blocks_past_its_lease_gives_up_its_runs_before_it_claims_them(
    cluster: Cluster, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    job, hands, may_block = make_job(admin), Hands(), tmp_path / "may-block"
    environment = {
        "CARILLON_SERVICE_TOKEN": cluster.secrets.worker_token,
        "BLOCK_FILE": str(may_block),
        "BLOCK_SECONDS": str(2 * LEASE),
    }
    await cluster.start_program("blocking", "tests.e2e.streams.blocking_worker", environment)
    waits = make_live_run(admin, job)
    await until(lambda: _said(cluster, waits) == ["begun"], PATIENCE)
    blocks = make_live_run(admin, job, payload={"block": True})
    await until(lambda: admin.execute("select count(started_at) from carillon.live_runs").fetchone() == (2,))
    may_block.touch()
    async with session_of(hands, cluster.target, cluster.secrets.worker_token):
        since = time.monotonic()
        await until(lambda: _outcomes(admin) == [(run_id, "COMPLETED", 2) for run_id in sorted((waits, blocks))])
        _log.info("recovered within", seconds=round(time.monotonic() - since, 2))
        await until(lambda: "ended" in _said(cluster, blocks))
        await until(lambda: _said(cluster, waits) == ["begun", "stopped"])
    assert sorted(hands.done) == sorted([(waits, 2), (blocks, 2)])
    lines = cluster.processes.tail("blocking", 1_000)
    assert "the session is lost" in lines
    assert admin.execute("select distinct error ->> 'code' from carillon.attempts").fetchall() == [("WORKER_LOST",)]


def _outcomes(admin: psycopg.Connection[Any]) -> Sequence[tuple[UUID, str, int]]:
    return admin.execute("select run_id, state::text, attempt from carillon.runs order by run_id").fetchall()


def _said(cluster: Cluster, run_id: UUID) -> list[str]:
    """What the blocking worker wrote of the run."""
    lines = cluster.processes.log_path("blocking").read_text().splitlines()
    return [line.split()[0] for line in lines if line.endswith(str(run_id)) and line.split()[0].islower()]
