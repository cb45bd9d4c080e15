"""A worker that goes: what can end does, and what cannot is tried elsewhere at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from local_stack.ports import LOCALHOST
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually, fetch
from tests.e2e.conftest import SERVICE, Call, Service, ended


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    # Leases so long that nothing comes back by their end.
    async with Cluster(tmp_path, database_urls, lease_seconds=600) as cluster:
        yield cluster


async def test_a_worker_that_drains_reports_what_ends_and_gives_the_rest_to_another(
    cluster: Cluster, service: Service
) -> None:
    draining = asyncio.Event()

    async def answer(call: Call) -> web.Response:
        if call.body["job"].endswith("long"):
            await draining.wait()
        elif call.attempt == 1:
            await asyncio.Event().wait()
        return web.Response()

    service.answer = answer
    await cluster.start_scheduler()
    probes = await cluster.start_worker_service("worker-1", drain_seconds=12, worker_concurrency=2)
    jobs = service.jobs(cluster)
    for name in ("long", "endless"):
        jobs.endpoint(name, f"/{name}", retries=1)
    await jobs.register()
    async with cluster.client() as client:
        (long,) = await client.trigger_job(f"{SERVICE}/long")
        (endless,) = await client.trigger_job(f"{SERVICE}/endless")
        assert {(await service.next_call()).attempt, (await service.next_call()).attempt} == {1}
        (waiting,) = await client.trigger_job(f"{SERVICE}/long")
        going = asyncio.create_task(cluster.terminate("worker-1"))
        await eventually(lambda: fetch(f"http://{LOCALHOST}:{probes}/readyz"), lambda said: "draining" in said[1])
        draining.set()
        run = await ended(client, long.name)
        assert (run.attempt, run.worker) == (1, "worker-1")
        assert await going == 0

        await cluster.start_worker_service("worker-2")
        run = await ended(client, waiting.name)
        assert (run.attempt, run.worker) == (1, "worker-2")
        run = await ended(client, endless.name)
        assert (run.attempt, run.worker) == (2, "worker-2")
        lost, _ = await client.list_attempts(endless.name)
        assert (lost.worker, lost.error.code) == ("worker-1", "WORKER_LEFT")
