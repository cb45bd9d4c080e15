"""The migration files as docker-entrypoint-initdb.d: psql applies them, and a scheduler goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from carillon import Jobs, SchedulerUnavailable
from carillon.v1 import (
    job_service_pb2,
    job_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)

from local_stack.ports import LOCALHOST
from local_stack.postgres import ADMIN, EmbeddedPostgres
from operations.probe import probe
from scheduler_service.store.migrations import FOLDER
from tests import canary
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, Cluster, Scheduler, eventually, fetch
from tests.migrations.catalogue import catalogue

_PASSWORD = canary.secret("database")


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server without any role of Carillon's, as a new container has it."""
    server = EmbeddedPostgres(tmp_path / "own")
    server.start()
    yield server
    server.remove()


def urls_on(server: EmbeddedPostgres, database: str) -> DatabaseUrls:
    server.create_database(database)
    return DatabaseUrls(
        api=server.url("carillon_api", _PASSWORD, database),
        engine=server.url("carillon_engine", _PASSWORD, database),
        admin=server.url(ADMIN, database=database),
    )


def as_initdb_does(server: EmbeddedPostgres, database: str) -> None:
    """The entrypoint of PostgreSQL's image hands each file that ends in .sql to psql, by name, and passes over
    folders."""
    for file in sorted(FOLDER.glob("*.sql")):
        server.psql(file, database)


async def health(scheduler: Scheduler, status: str) -> None:
    """Returns once the scheduler's health is as said."""
    wanted = (status == "SERVING", f"{scheduler.target} says {status}")
    await eventually(lambda: asyncio.to_thread(probe, scheduler.target), lambda answer: answer == wanted)


async def catalogue_once_serving(home: Path, urls: DatabaseUrls) -> list[str]:
    """What a scheduler that may migrate makes of the database. `home` gets its logs."""
    async with Cluster(home, urls) as cluster:
        scheduler = await cluster.start_scheduler(migration_url=urls.admin)
        await health(scheduler, "SERVING")
        return await asyncio.to_thread(catalogue, urls.admin)


async def test_psql_twice_and_then_a_scheduler_is_as_a_scheduler_alone(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    by_psql = urls_on(own_postgres, "by_psql")
    as_initdb_does(own_postgres, "by_psql")
    once = catalogue(by_psql.admin)
    as_initdb_does(own_postgres, "by_psql")
    assert catalogue(by_psql.admin) == once

    fresh = urls_on(own_postgres, "fresh")
    alone = await catalogue_once_serving(tmp_path / "fresh", fresh)
    after_psql = await catalogue_once_serving(tmp_path / "by_psql", by_psql)
    assert once == after_psql == alone
    kinds = {line.partition(" ")[0] for line in alone}
    assert kinds >= {"schema", "table", "column", "constraint", "index", "trigger", "policy", "function", "migration"}


@pytest.fixture
async def without_schema(
    postgres: EmbeddedPostgres, database_urls: DatabaseUrls, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """Schedulers' logins are there, and a database that has nothing in it."""
    postgres.create_database("without_schema")
    try:
        api, engine, admin = (
            url.rpartition("/")[0] + "/without_schema"
            for url in (database_urls.api, database_urls.engine, database_urls.admin)
        )
        async with Cluster(tmp_path, DatabaseUrls(api, engine, admin)) as cluster:
            yield cluster
    finally:
        postgres.drop_database("without_schema")


async def listed(cluster: Cluster) -> dict[str, tuple[int, str]]:
    """For each list: how many entries it has, and what its `carillon-degraded` trailer says."""
    metadata = (("authorization", f"Bearer {cluster.secrets.admin_jwt()}"),)
    async with grpc.aio.insecure_channel(cluster.target) as channel:
        jobs: Any = job_service_pb2_grpc.JobServiceStub(channel)
        schedules: Any = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
        runs: Any = run_service_pb2_grpc.RunServiceStub(channel)
        calls = {
            "jobs": jobs.ListJobs(job_service_pb2.ListJobsRequest(), metadata=metadata),
            "schedules": schedules.ListSchedules(schedule_service_pb2.ListSchedulesRequest(), metadata=metadata),
            "runs": runs.ListRuns(run_service_pb2.ListRunsRequest(), metadata=metadata),
        }
        answers = {}
        for name, call in calls.items():
            entries = len(getattr(await call, name))
            trailers = dict(tuple(await call.trailing_metadata() or ()))
            answers[name] = (entries, str(trailers.get("carillon-degraded", "")))
        return answers


async def test_a_scheduler_without_a_schema_says_so_and_serves_once_psql_has_made_it(
    without_schema: Cluster, postgres: EmbeddedPostgres
) -> None:
    cluster = without_schema
    scheduler = await cluster.start_scheduler(ready=False)
    readyz = f"http://{LOCALHOST}:{scheduler.metrics_port}/readyz"
    status, _ = await eventually(lambda: fetch(readyz), lambda answer: "no carillon schema" in answer[1])
    assert status == 503
    await health(scheduler, "NOT_SERVING")
    for entries, degraded in (await listed(cluster)).values():
        assert entries == 0
        assert "schema" in degraded
    async with cluster.client() as client:
        with pytest.raises(SchedulerUnavailable, match="schema"):
            await client.get_job("email-service/weekly-digest")

    await asyncio.to_thread(as_initdb_does, postgres, "without_schema")
    await eventually(lambda: fetch(readyz), lambda answer: answer[0] == 200)
    await health(scheduler, "SERVING")

    jobs = Jobs("email-service", target=cluster.target, token=cluster.secrets.email_service_token)
    ran = asyncio.Event()

    @jobs.handler("weekly-digest", cron="@every 1s")
    async def weekly_digest() -> None:
        ran.set()

    async with jobs, asyncio.timeout(PATIENCE):
        await ran.wait()
        lists = await eventually(lambda: listed(cluster), lambda lists: lists["runs"][0] > 0)
    assert lists["jobs"] == lists["schedules"] == (1, "")
    assert lists["runs"][1] == ""
    assert await cluster.terminate(scheduler.name) == 0
