"""How processes start when something is in the way: a sentence, nothing half done, and recovery by themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from carillon import Client, NotAuthenticated, SchedulerUnavailable
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_stack.ports import LOCALHOST
from local_stack.postgres import ADMIN, EmbeddedPostgres
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, ROOT, Cluster, Scheduler, environment_without_carillon, eventually, fetch
from tests.ports import lasting_port

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls) as cluster:
        yield cluster


async def run_to_end(module: str, settings: Mapping[str, str]) -> tuple[int | None, str]:
    """The exit code of a process that does not go on, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        cwd=ROOT,
        env={**environment_without_carillon(), **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode, said.decode()


async def health(scheduler: Scheduler, service: str = "") -> int:
    async with grpc.aio.insecure_channel(scheduler.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        return int(answer.status)


@pytest.mark.parametrize("variable", ["CARILLON_PORT", "CARILLON_METRICS_PORT"])
async def test_a_scheduler_on_a_port_that_is_taken_says_so_in_one_line_and_harms_nobody(
    cluster: Cluster, variable: str
) -> None:
    running = await cluster.start_scheduler()
    taken = running.port if variable == "CARILLON_PORT" else running.metrics_port
    settings = {
        "CARILLON_DATABASE_URL": cluster.urls.api,
        "CARILLON_ENGINE_URL": cluster.urls.engine,
        "CARILLON_PORT": "0",
        "CARILLON_METRICS_PORT": "0",
    }
    code, said = await run_to_end("scheduler_service", settings | {variable: str(taken)})
    assert code == 2
    complaints = [line for line in said.splitlines() if not line.startswith("{")]
    assert len(complaints) == 1
    assert variable in complaints[0]
    assert str(taken) in complaints[0]
    assert await health(running) == SERVING


async def test_a_scheduler_without_its_settings_names_them(cluster: Cluster) -> None:
    code, said = await run_to_end("scheduler_service", {"CARILLON_PORT": "many"})
    assert code == 2
    assert "Traceback" not in said
    for variable in ("CARILLON_DATABASE_URL", "CARILLON_ENGINE_URL", "CARILLON_PORT"):
        assert variable in said


async def test_credentials_that_do_not_count_are_refused_with_a_sentence(cluster: Cluster) -> None:
    await cluster.start_scheduler()
    strangers = [{"token": "no.jwt.atall"}, {"service_token": "worker.wrong-secret-of-some-length"}]
    for stranger in strangers:
        async with Client(cluster.target, **stranger) as client:  # type: ignore[arg-type]  # as Client takes them
            with pytest.raises(NotAuthenticated) as refused:
                await client.get_job("email-service/weekly-digest")
        assert refused.value.message.count("\n") == 0
        assert not any(value in refused.value.message for value in stranger.values())
    async with Client(cluster.target, service_token="") as nobody:
        with pytest.raises(NotAuthenticated, match="authorization"):
            await nobody.get_job("email-service/weekly-digest")


async def test_a_worker_with_a_wrong_token_says_why_it_gets_nothing(cluster: Cluster) -> None:
    await cluster.start_scheduler()
    port = lasting_port()
    settings = {
        "CARILLON_TARGET": cluster.target,
        "CARILLON_WORKER_TOKEN": "worker.wrong-secret-of-some-length",
        "CARILLON_WORKER_PORT": str(port),
    }
    await cluster.processes.start("stranger", [sys.executable, "-m", "worker_service"], settings, cwd=ROOT)
    status, said = await eventually(
        lambda: fetch(f"http://{LOCALHOST}:{port}/readyz"), lambda answer: "UNAUTHENTICATED" in answer[1]
    )
    assert status == 503
    assert "wrong-secret" not in said
    assert "wrong-secret" not in cluster.processes.tail("stranger")
    assert await cluster.terminate("stranger") == 0


@pytest.fixture
def late_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that the test starts and stops; it keeps its port."""
    server = EmbeddedPostgres(tmp_path / "late", port=lasting_port())
    yield server
    server.remove()


async def test_a_scheduler_waits_for_its_database_and_recovers_by_itself(
    late_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    urls = DatabaseUrls(
        api=late_postgres.url("carillon_api", "only-for-this-test"),
        engine=late_postgres.url("carillon_engine", "only-for-this-test"),
        admin="",
    )
    # The superuser's password is made with the data, so the server has to have been there once.
    await asyncio.to_thread(late_postgres.start)
    await asyncio.to_thread(late_postgres.create_database, "carillon")
    admin_url = late_postgres.url(ADMIN)
    await asyncio.to_thread(late_postgres.stop)

    async with Cluster(tmp_path, urls) as cluster:
        scheduler = await cluster.start_scheduler(ready=False, migration_url=admin_url)
        readyz = f"http://{LOCALHOST}:{scheduler.metrics_port}/readyz"
        code, _ = await eventually(lambda: fetch(readyz), lambda said: "the database cannot be reached" in said[1])
        assert code == 503
        assert await health(scheduler) == NOT_SERVING
        livez = f"http://{LOCALHOST}:{scheduler.metrics_port}/livez"
        await eventually(lambda: fetch(livez), lambda said: said == (200, "alive\n"))
        async with cluster.client() as client:
            with pytest.raises(SchedulerUnavailable, match="the database cannot be reached"):
                await client.get_job("email-service/weekly-digest")

            await asyncio.to_thread(late_postgres.start)
            await eventually(lambda: fetch(readyz), lambda answer: answer[0] == 200)
            await eventually(lambda: health(scheduler, "carillon.v1.JobService"), lambda state: state == SERVING)
            assert [job async for job in client.list_jobs()] == []

            await asyncio.to_thread(late_postgres.stop)
            await eventually(lambda: health(scheduler, "carillon.v1.JobService"), lambda state: state == NOT_SERVING)
            await asyncio.to_thread(late_postgres.start)
            await eventually(lambda: health(scheduler), lambda state: state == SERVING)
            assert [job async for job in client.list_jobs()] == []
        assert await cluster.terminate(scheduler.name) == 0
