"""The main job from end to end: a service registers, a schedule comes due, a worker calls it, the record is there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from carillon import AlreadyExists, Client
from carillon.v1 import run_pb2

from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, Cluster, eventually
from tests.e2e.conftest import SERVICE, Call, Service, ended

JOB = f"{SERVICE}/weekly-digest"
DRAIN_SECONDS = 6
WORKERS_DRAIN_SECONDS = 30
"""It ends with what the worker has in hand."""


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls, drain_seconds=DRAIN_SECONDS) as cluster:
        await cluster.start_scheduler()
        await cluster.start_worker_service(drain_seconds=WORKERS_DRAIN_SECONDS)
        yield cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


@pytest.fixture
async def shared_client(shared_cluster: Cluster) -> AsyncIterator[Client]:
    async with shared_cluster.client() as client:
        yield client


async def declare(service: Service, cluster: Cluster, **options: object) -> None:
    jobs = service.jobs(cluster)
    jobs.endpoint("weekly-digest", "/api/jobs/weekly-digest", **options)  # type: ignore[arg-type]  # as Jobs checks
    await jobs.register()


async def test_a_scheduled_job_reaches_its_service_and_is_recorded(
    cluster: Cluster, client: Client, service: Service
) -> None:
    async def answer(_call: Call) -> web.Response:
        return web.json_response({"items": {"succeeded": 4, "failed": 1}, "metrics": {"bytes": 12}})

    service.answer = answer
    await declare(service, cluster, cron="@every 1s", config={"batchSize": 5}, labels={"team": "growth"})
    first, second = await service.next_call(), await service.next_call()
    assert first.run != second.run
    assert (first.attempt, first.body["job"], first.body["payload"]) == (1, "weekly-digest", {"batchSize": 5})

    run = await ended(client, first.run)
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert run.trigger_source == run_pb2.TRIGGER_SOURCE_SCHEDULE
    assert (run.items.processed, run.items.succeeded, run.items.failed) == (5, 4, 1)
    assert dict(run.metrics) == {"bytes": 12}
    assert dict(run.labels) == {"team": "growth"}
    assert run.worker == "worker-service"
    times = [run.scheduled_time, run.create_time, run.start_time, run.finish_time]
    assert times == sorted(times, key=lambda time: time.ToNanoseconds())
    listed = {run.name async for run in client.list_runs(JOB, labels={"team": "growth"})}
    assert {run.name, f"runs/{second.run}"} <= listed


async def test_a_failing_endpoint_is_tried_again_and_its_attempts_are_listed(
    shared_cluster: Cluster, shared_client: Client, service: Service
) -> None:
    async def answer(call: Call) -> web.Response:
        return web.Response(status=503, text="not yet") if call.attempt < 3 else web.Response()

    service.answer = answer
    await declare(service, shared_cluster, retry_delay=1)
    (made,) = await shared_client.trigger_job(JOB)
    run = await ended(shared_client, made.name)
    assert (run.state, run.attempt, run.max_attempts) == (run_pb2.RUN_STATE_COMPLETED, 3, 3)
    calls = [await service.next_call() for _ in range(3)]
    assert [call.attempt for call in calls] == [1, 2, 3]
    assert {f"runs/{call.run}" for call in calls} == {made.name}

    attempts = await shared_client.list_attempts(made.name)
    failed, completed = run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_COMPLETED
    assert [(each.attempt, each.state) for each in attempts] == [(1, failed), (2, failed), (3, completed)]
    assert (attempts[0].error.code, attempts[0].error.detail) == ("HTTP_503", "not yet")
    for earlier, later in itertools.pairwise(attempts):
        assert later.start_time.ToNanoseconds() - earlier.finish_time.ToNanoseconds() >= 1e9


async def test_an_endpoint_says_when_it_is_to_be_tried_again(
    shared_cluster: Cluster, shared_client: Client, service: Service
) -> None:
    async def answer(call: Call) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "1"}) if call.attempt == 1 else web.Response()

    service.answer = answer
    await declare(service, shared_cluster, retry_delay=3_600)
    (made,) = await shared_client.trigger_job(JOB)
    run = await ended(shared_client, made.name)
    assert (run.state, run.attempt) == (run_pb2.RUN_STATE_COMPLETED, 2)
    first, second = await shared_client.list_attempts(made.name)
    assert first.error.code == "HTTP_429"
    assert second.start_time.ToNanoseconds() - first.finish_time.ToNanoseconds() >= 1e9


@pytest.mark.parametrize(
    ("status", "headers", "code"), [(422, {"Carillon-Retry": "false"}, "HTTP_422"), (404, {}, "HTTP_404")]
)
async def test_a_failure_that_no_retry_can_mend_ends_the_run(
    shared_cluster: Cluster, shared_client: Client, service: Service, status: int, headers: dict[str, str], code: str
) -> None:
    async def answer(_call: Call) -> web.Response:
        return web.Response(status=status, headers=headers)

    service.answer = answer
    await declare(service, shared_cluster, retry_delay=0, retries=5, never_retry=["HTTP_40*"])
    (made,) = await shared_client.trigger_job(JOB)
    run = await ended(shared_client, made.name)
    assert (run.state, run.attempt, run.error.code) == (run_pb2.RUN_STATE_FAILED, 1, code)


async def test_a_run_that_is_cancelled_stops_at_its_service(
    shared_cluster: Cluster, shared_client: Client, service: Service
) -> None:
    hung_up = asyncio.Event()

    async def answer(_call: Call) -> web.Response:
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()
        return web.Response()

    service.answer = answer
    await declare(service, shared_cluster)
    (made,) = await shared_client.trigger_job(JOB)
    await service.next_call()
    await shared_client.cancel_run(made.name, reason="sent to the wrong list")
    run = await ended(shared_client, made.name)
    assert run.state == run_pb2.RUN_STATE_CANCELLED
    assert (run.error.code, run.error.message) == (
        "CANCELLED",
        "cancelled by admin:local-admin: sent to the wrong list",
    )
    await asyncio.wait_for(hung_up.wait(), PATIENCE)


async def test_a_run_key_makes_one_run_and_a_repeat_names_it(
    shared_cluster: Cluster, shared_client: Client, service: Service
) -> None:
    await declare(service, shared_cluster)
    (made,) = await shared_client.trigger_job(JOB, {"week": 31}, run_key="week-31")
    with pytest.raises(AlreadyExists) as repeated:
        await shared_client.trigger_job(JOB, {"week": 31}, run_key="week-31")
    assert f"runs/{repeated.value.metadata['run'].removeprefix('runs/')}" == made.name
    assert (await service.next_call()).body["payload"] == {"week": 31}
    await ended(shared_client, made.name)
    assert service.calls.empty()


async def test_a_scheduler_and_a_worker_that_are_told_to_end_lose_nothing(
    cluster: Cluster, client: Client, service: Service
) -> None:
    go_on = asyncio.Event()

    async def answer(_call: Call) -> web.Response:
        await go_on.wait()
        return web.json_response({"items": {"succeeded": 1}})

    service.answer = answer
    await declare(service, cluster)
    (over_scheduler,) = await client.trigger_job(JOB)
    await service.next_call()
    async with asyncio.timeout(DRAIN_SECONDS + 10):  # orchestrators kill then
        assert await cluster.terminate("scheduler") == 0
    go_on.set()  # the result finds no scheduler, and is kept until there is one
    await cluster.start_scheduler()
    assert (await ended(client, over_scheduler.name)).state == run_pb2.RUN_STATE_COMPLETED

    go_on.clear()
    (over_worker,) = await client.trigger_job(JOB)
    call = await service.next_call()
    ending = asyncio.create_task(cluster.terminate("worker-service"))
    await eventually(lambda: logged(cluster, "draining"))
    go_on.set()
    async with asyncio.timeout(WORKERS_DRAIN_SECONDS):
        assert await ending == 0
    run = await ended(client, over_worker.name)
    assert (run.state, run.attempt, run.items.succeeded) == (run_pb2.RUN_STATE_COMPLETED, 1, 1)
    assert call.run in over_worker.name
    assert service.calls.empty()


async def logged(cluster: Cluster, event: str) -> bool:
    return event in cluster.processes.tail("worker-service")
