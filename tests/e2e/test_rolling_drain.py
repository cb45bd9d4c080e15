"""The end of a process: it drains in bounded time, whatever else is wrong, and its workers go over before it closes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from local_stack.ports import LOCALHOST
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually, fetch
from tests.e2e.rolling_load import Load
from tests.faults.proxy import FaultProxy

DRAIN_SECONDS = 4
LONG_DRAIN = 60
"""In seconds. A quarter of it is for workers to go over."""


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls, drain_seconds=DRAIN_SECONDS, changes_per_second=100_000) as cluster:
        yield cluster


@pytest.fixture
def proxy(database_urls: DatabaseUrls) -> Iterator[FaultProxy]:
    """Between schedulers and their database."""
    server = make_url(database_urls.api)
    with FaultProxy((server.host or "", server.port or 0)) as proxy:
        yield proxy


def through(proxy: FaultProxy, urls: DatabaseUrls) -> dict[str, Any]:
    """The settings of a scheduler whose database is behind it."""
    api, engine = (
        make_url(url).set(host=LOCALHOST, port=proxy.port).render_as_string(hide_password=False)
        for url in (urls.api, urls.engine)
    )
    return {"database_url": api, "engine_url": engine}


async def test_workers_go_over_to_the_other_replica_before_theirs_closes(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("scheduler-1", "scheduler-2"):
        await cluster.start_scheduler(name, drain_seconds=LONG_DRAIN)
    load = Load(cluster, tmp_path)
    await load.start_worker("worker-1")
    await load.begin(20)
    (theirs,) = (await load.workers()).values()
    assert await cluster.terminate(theirs) == 0
    (other,) = (await load.workers()).values()
    assert other != theirs
    await load.moves_on()
    await load.end_undisturbed()
    # Had the old stream been cut, the worker would have said so.
    assert " WARNING " not in cluster.processes.tail("worker-1", 10_000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_both_signals_drain(cluster: Cluster, number: signal.Signals) -> None:
    scheduler = await cluster.start_scheduler()
    assert await cluster.processes.end(scheduler.name, number) == 0
    assert "drained" in cluster.processes.tail(scheduler.name)


@pytest.mark.parametrize("how", ["cut", "held"])
async def test_a_drain_ends_in_its_time_though_the_database_is_away(
    cluster: Cluster, proxy: FaultProxy, tmp_path: Path, how: str
) -> None:
    """Held: a database that takes what it is sent and says nothing, which drivers wait for much longer."""
    name = (await cluster.start_scheduler(**through(proxy, cluster.urls))).name
    load = Load(cluster, tmp_path)
    await load.start_worker("worker-1")
    await load.begin(20)
    (proxy.cut if how == "cut" else proxy.hold)()
    assert await cluster.terminate(name) == 0
    log = cluster.processes.log_path(name).read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    began, ended = (
        datetime.fromisoformat(next(line["timestamp"] for line in lines if line["event"].startswith(event)))
        for event in ("draining", "drained")
    )
    assert (ended - began).total_seconds() < DRAIN_SECONDS + 10, "orchestrators kill after 10 s more"


async def test_a_second_signal_ends_it_at_once(cluster: Cluster, proxy: FaultProxy) -> None:
    scheduler = await cluster.start_scheduler(drain_seconds=600, **through(proxy, cluster.urls))
    proxy.hold()
    pid = cluster.processes.pid(scheduler.name)
    os.kill(pid, signal.SIGTERM)
    readyz = f"http://{LOCALHOST}:{scheduler.metrics_port}/readyz"
    await eventually(lambda: fetch(readyz), lambda answer: "draining" in answer[1])
    assert await cluster.terminate(scheduler.name) == 128 + signal.SIGTERM


async def test_a_scheduler_that_waits_to_migrate_stops_when_it_is_asked_to(cluster: Cluster) -> None:
    with psycopg.connect(cluster.urls.admin, autocommit=True) as admin:
        admin.execute("select pg_advisory_lock(hashtext('carillon.migrate'))")
        admin.execute("drop schema carillon cascade")
        scheduler = await cluster.start_scheduler(ready=False, migration_url=cluster.urls.admin)
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"

        async def waits() -> bool:
            return admin.execute(waiting).fetchone() == (1,)

        await eventually(waits)
        assert await cluster.terminate(scheduler.name) == 0
