"""docs/operations.md does what it says: each of its blocks is run, and the claims around them are tried."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from carillon import Client, Jobs, NotAuthenticated
from carillon.v1 import (
    audit_service_pb2,
    job_service_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
    schedule_service_pb2,
)

from local_stack.placement import wheel_install
from local_stack.ports import LOCALHOST
from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.migrations import expected_version
from tests.builders import connect, make_attempt, make_ended_run, make_item, make_job, make_schedule
from tests.conftest import DatabaseUrls
from tests.docs.pages import Block, blocks_of, run_blocks
from tests.e2e.cluster import PATIENCE, ROOT, Cluster, Scheduler, eventually, fetch

BLOCKS = blocks_of((ROOT / "docs" / "operations.md").read_text())
APART = ("Upgrade and rollback", "Backup and restore")
"""Headings whose blocks have a test of their own."""
REPORT_WAITS = '\ncarillon_pending_runs{route="handler/email-service/monthly-report"} 1.0\n'
DIGEST = "services/email-service/jobs/weekly-digest"
REPORT = "services/email-service/jobs/monthly-report"
RECORDS = ("runs", "attempts", "items", "live_runs", "schedules", "schedule_revisions", "jobs", "gaps", "job_stats")


def under(heading: str) -> list[Block]:
    return [block for block in BLOCKS if block.heading == heading]


def programs(postgres: EmbeddedPostgres) -> str:
    """Where PostgreSQL's programs and this Python are."""
    return os.pathsep.join([str(wheel_install(postgres.version) / "bin"), str(Path(sys.executable).parent)])


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls) as cluster:
        yield cluster


async def declare(cluster: Cluster, token: str = "") -> None:
    """A job whose runs fail at once, since nothing answers for it, and one whose runs wait, since nobody serves it."""
    jobs = Jobs(
        "email-service",
        target=cluster.target,
        token=token or cluster.secrets.email_service_token,
        base_url=f"http://{LOCALHOST}:1",
    )
    jobs.endpoint("weekly-digest", "/api/jobs/weekly-digest", cron="0 9 * * 1", retries=0, tenant_schedules=True)

    @jobs.handler("monthly-report", cron="0 6 1 * *")
    async def monthly_report() -> None: ...

    await jobs.register()


async def figures(scheduler: Scheduler) -> str:
    return (await fetch(f"http://{LOCALHOST}:{scheduler.metrics_port}/metrics"))[1]


async def readiness(scheduler: Scheduler) -> tuple[int, str]:
    return await fetch(f"http://{LOCALHOST}:{scheduler.metrics_port}/readyz")


async def failed_run(client: Client) -> run_pb2.Run:
    """A run of the digest that has ended."""
    (run,) = await client.trigger_job(DIGEST)
    async with asyncio.timeout(PATIENCE):
        return [state async for state in client.watch_runs(run=run.name)][-1]


def test_every_method_for_people_has_a_command() -> None:
    """Of those who only have a terminal: all but the workers' stream and what targets implement."""
    commands = "".join(block.script for block in BLOCKS)
    methods = {
        f"{service}.{method.name}"
        for module in (
            registry_service_pb2,
            job_service_pb2,
            schedule_service_pb2,
            run_service_pb2,
            audit_service_pb2,
        )
        for service, described in module.DESCRIPTOR.services_by_name.items()
        for method in described.methods
    }
    assert len(methods) >= 19
    assert [name for name in sorted(methods) if f"carillon.v1.{name.replace('.', '/')}" not in commands] == []


async def test_every_command_for_day_and_night_works(
    cluster: Cluster, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    scheduler = await cluster.start_scheduler()
    worker = await cluster.start_worker_service()
    await declare(cluster)
    async with cluster.client() as client:
        await client.trigger_job(REPORT)
        failed = await failed_run(client)
    await eventually(lambda: figures(scheduler), lambda shown: REPORT_WAITS in shown)
    (tmp_path / "admin.jwt").write_text(cluster.secrets.admin_jwt())
    (tmp_path / "email-service.token").write_text(cluster.secrets.email_service_token)
    environment = {
        "SCHEDULER": scheduler.target,
        "METRICS": f"{LOCALHOST}:{scheduler.metrics_port}",
        "WORKER": f"{LOCALHOST}:{worker}",
        "CARILLON_DATABASE_URL": cluster.urls.api,
        "CARILLON_ENGINE_URL": cluster.urls.engine,
        "PATH": programs(postgres),
    }
    blocks = [block for block in BLOCKS if block.heading not in APART]
    printed = await run_blocks(blocks, tmp_path, environment)

    said = {
        block.script.rpartition("carillon.v1.")[2].strip(): text for block, text in zip(blocks, printed, strict=True)
    }
    assert '"state": "RUN_STATE_FAILED"' in said["RunService/WatchRuns"]
    assert failed.name in "".join(printed)
    assert '"state": "RUN_STATE_CANCELLED"' in said["RunService/CancelRun"]
    overridden, reset = said["JobService/ResetJobOverrides"].split('"declared"')[1:]
    assert '"30 7 * * 1-5"' in overridden
    assert '"30 7 * * 1-5"' not in reset
    assert REPORT_WAITS in "".join(printed)
    assert "connected to scheduler" in "".join(printed)
    assert '"action": "PauseJob"' in said["AuditService/ListAuditEvents"]
    assert '"complete": true' in said["AuditService/VerifyAuditTrail"]
    assert "\nholds: " in "".join(printed)


@pytest.fixture
def elsewhere(postgres: EmbeddedPostgres) -> Iterator[DatabaseUrls]:
    """An empty database of another server, which knows none of our roles."""
    home = Path(tempfile.gettempdir()) / f"carillon-restored-{os.getuid()}-{os.getpid()}"
    server = EmbeddedPostgres(home, version=postgres.version)
    try:
        server.start()
        server.create_database("carillon")
        yield DatabaseUrls(
            api=server.url("carillon_api", "another-password"),
            engine=server.url("carillon_engine", "another-password"),
            admin=server.url("carillon_admin"),
        )
    finally:
        server.remove()


@pytest.fixture
def backup_role(database_urls: DatabaseUrls) -> Iterator[str]:
    """The name that the page gives it; roles belong to the whole server."""
    yield "nightly_backup"
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        admin.execute("drop role nightly_backup")


def make_history(url: str) -> None:
    """Rows of the kinds that a run which failed at once leaves none of."""
    with connect(url) as admin:
        job = make_job(admin, "kpi-service", "sync")
        run = make_ended_run(admin, job, tenant="acme", attempt=2)
        make_attempt(admin, run, job, 1, tenant="acme")
        make_item(admin, run, job, "orders", tenant="acme")
        admin.execute(
            "insert into carillon.gaps values (%s, now() - interval '1 hour', now(), 3, 'CATCH_UP_NONE', 1, now())",
            [make_schedule(admin, job, tenant="acme")],
        )


def contents(url: str) -> dict[str, list[str]]:
    """Every row of what must come back, as text."""
    with psycopg.connect(url) as admin:
        queries = {table: f"select t::text from carillon.{table} t order by 1" for table in RECORDS}
        return {table: [row[0] for row in admin.execute(query.encode())] for table, query in queries.items()}


async def test_a_restored_backup_serves_and_has_every_record(
    cluster: Cluster, postgres: EmbeddedPostgres, elsewhere: DatabaseUrls, backup_role: str, tmp_path: Path
) -> None:
    await cluster.start_scheduler()
    await cluster.start_worker_service()
    await declare(cluster)
    async with cluster.client() as client:
        (waiting,) = await client.trigger_job(REPORT)
        ended = await failed_run(client)
    await cluster.terminate("worker-service")
    await cluster.terminate("scheduler")
    make_history(cluster.urls.admin)
    database = cluster.urls.admin.rpartition("/")[2]
    environment = {
        "SUPERUSER_URL": cluster.urls.admin,
        "BACKUP_PASSWORD": "backup",
        "BACKUP_URL": postgres.url(backup_role, "backup", database),
        "RESTORE_URL": elsewhere.admin,
        "CARILLON_DATABASE_URL": elsewhere.api,
        "CARILLON_ENGINE_URL": elsewhere.engine,
        "PATH": programs(postgres),
    }
    await run_blocks(under("Backup and restore"), tmp_path, environment)

    before, after = contents(cluster.urls.admin), contents(elsewhere.admin)
    assert after == before
    assert [table for table, rows in after.items() if not rows] == []
    await cluster.start_scheduler(database_url=elsewhere.api, engine_url=elsewhere.engine)
    async with cluster.client() as client:
        assert (await client.get_run(ended.name)) == ended
        assert (await client.get_run(waiting.name)).state == run_pb2.RUN_STATE_PENDING
        await cluster.start_worker_service()
        assert (await failed_run(client)).name != ended.name


async def test_a_backup_by_a_role_that_policies_bind_fails(
    postgres: EmbeddedPostgres, database_urls: DatabaseUrls
) -> None:
    with connect(database_urls.admin) as admin:
        admin.execute("create role carillon_reader login password 'reader'")
        admin.execute("grant pg_read_all_data to carillon_reader")
        try:
            url = postgres.url("carillon_reader", "reader", database_urls.admin.rpartition("/")[2])
            process = await asyncio.create_subprocess_exec(
                *(wheel_install(postgres.version) / "bin" / "pg_dump", "--schema=carillon", url),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
        finally:
            admin.execute("drop owned by carillon_reader")
            admin.execute("drop role carillon_reader")
    assert process.returncode == 1
    assert b"row-level security" in errors


async def test_a_newer_release_waits_until_its_schema_is_there(cluster: Cluster) -> None:
    newest = "from carillon.migrations where number = (select max(number) from carillon.migrations)"
    with connect(cluster.urls.admin) as admin:
        admin.execute(f"create temp table kept as select * {newest}".encode())
        admin.execute(f"delete {newest}".encode())
        scheduler = await cluster.start_scheduler(ready=False)
        code, why = await eventually(lambda: readiness(scheduler), lambda answer: "the schema is at" in answer[1])
        assert code == 503
        assert "this scheduler needs" in why
        admin.execute("insert into carillon.migrations select * from kept")
        await eventually(lambda: readiness(scheduler), lambda answer: answer[0] == 200)


async def test_a_newer_schema_lets_the_old_release_work_on_or_at_least_finish(
    cluster: Cluster, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    scheduler = await cluster.start_scheduler()
    await cluster.start_worker_service()
    await declare(cluster)
    environment = {
        "CARILLON_DATABASE_URL": cluster.urls.api,
        "CARILLON_ENGINE_URL": cluster.urls.engine,
        "CARILLON_MIGRATION_URL": cluster.urls.admin,
        "PATH": programs(postgres),
    }
    migrated, listed = await run_blocks(under("Upgrade and rollback"), tmp_path, environment)
    assert "the schema is at version" in migrated
    assert " 7 | access      |               7\n      8 | reliability |               7\n" in listed
    add = "insert into carillon.migrations (number, name, compatible_from) values (%s, 'of a newer release', %s)"
    with psycopg.connect(cluster.urls.admin, autocommit=True) as admin:
        admin.execute(add, [9998, expected_version()])
        newer = "a newer release has migrated the schema"
        await eventually(
            lambda: asyncio.to_thread(cluster.processes.tail, scheduler.name, 1_000), lambda log: newer in log
        )
        await eventually(lambda: readiness(scheduler), lambda answer: answer == (200, "serving\n"))
        admin.execute(add, [9999, None])
    sentence = "newer than this scheduler knows"
    code, _ = await eventually(lambda: readiness(scheduler), lambda answer: sentence in answer[1])
    assert code == 503
    async with cluster.client() as client:
        assert (await failed_run(client)).worker == "worker-service"


async def test_two_tokens_of_one_service_are_accepted_side_by_side(cluster: Cluster) -> None:
    old, new, unknown = (f"{year}.{'a-random-secret' * 2}" for year in (2025, 2026, 2027))
    await cluster.start_scheduler(service_tokens=f"email-service={old},email-service={new}")
    await declare(cluster, old)
    await declare(cluster, new)
    with pytest.raises(NotAuthenticated):
        await declare(cluster, unknown)
    await cluster.terminate("scheduler")
    await cluster.start_scheduler(service_tokens=f"email-service={new}")
    await declare(cluster, new)
    with pytest.raises(NotAuthenticated):
        await declare(cluster, old)
