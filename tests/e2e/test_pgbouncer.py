"""Carillon behind the real PgBouncer in transaction mode: it works, tenants stay apart, and nothing is lost with it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from aiohttp import web
from carillon import AlreadyExists, Client, SchedulerUnavailable
from carillon.v1 import run_pb2
from sqlalchemy import text

from scheduler_service.domain.access import ANONYMOUS, Principal
from scheduler_service.store.database import Database
from tests.builders import ADMIN, connect, days_ago, make_ended_run, make_job, make_schedule, service, user
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually
from tests.e2e.conftest import SERVICE, Call, Service
from tests.pgbouncer import NoPgBouncer, PgBouncer, Program, find_pgbouncer

POOL_SIZE = 3
CALLERS = 24
CALLS_EACH = 125
RUNS = 300
JOB = f"{SERVICE}/weekly-digest"


@pytest.fixture(scope="module")
def program() -> Program:
    try:
        return find_pgbouncer()
    except NoPgBouncer as reason:
        pytest.skip(f"there is no PgBouncer here: {reason}")


@dataclass
class Behind:
    """A cluster whose schedulers reach their database through PgBouncer, except to LISTEN."""

    cluster: Cluster
    pgbouncer: PgBouncer

    async def start_pgbouncer(self) -> None:
        await self.cluster.processes.start(
            "pgbouncer", self.pgbouncer.argv, self.pgbouncer.environment, ready=self.pgbouncer.answers
        )


@pytest.fixture
async def behind(program: Program, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Behind]:
    logins = [database_urls.api, database_urls.engine]
    pgbouncer = PgBouncer(tmp_path / "pgbouncer", program, pool_size=POOL_SIZE, logins=logins)
    urls = DatabaseUrls(
        api=pgbouncer.url(database_urls.api), engine=pgbouncer.url(database_urls.engine), admin=database_urls.admin
    )
    async with Cluster(tmp_path, urls, listen_url=database_urls.engine) as cluster:
        behind = Behind(cluster, pgbouncer)
        await behind.start_pgbouncer()
        yield behind


def recorded(urls: DatabaseUrls) -> Counter[tuple[str, str]]:
    """How many records there are of each trigger and outcome."""
    with psycopg.connect(urls.admin) as admin:
        rows = admin.execute("select trigger::text, state::text, count(*) from carillon.runs group by 1, 2").fetchall()
    return Counter({(trigger, state): count for trigger, state, count in rows})


async def test_runs_go_through_it_and_are_all_there_after_it_was_killed(behind: Behind, service: Service) -> None:
    cluster, calls, killed = behind.cluster, Counter[str](), asyncio.Event()

    async def answer(call: Call) -> web.Response:
        calls[call.run] += 1
        if sum(calls.values()) == RUNS // 3:
            killed.set()
        return web.json_response({"items": {"succeeded": 1}})

    service.answer = answer
    await cluster.start_scheduler()
    await cluster.start_worker_service()
    jobs = service.jobs(cluster)
    jobs.endpoint("weekly-digest", "/run", cron="@every 1s", overlap="allow_all", tenant_schedules=True)
    await jobs.register()
    async with cluster.client() as client:
        seen: set[str] = set()
        watching = asyncio.create_task(_watch_to_their_end(client, seen))
        made = await _triggered(client, range(RUNS // 2))
        await killed.wait()
        await cluster.kill("pgbouncer")
        await behind.start_pgbouncer()
        made |= await _triggered(client, range(RUNS // 2, RUNS))

        async def outcomes() -> Counter[tuple[str, str]]:
            return recorded(behind.cluster.urls)

        done = await eventually(outcomes, lambda ended: ended["MANUAL", "COMPLETED"] == len(made) == RUNS)
        # A watch came back as well: it sees what ends from now on.
        seen.clear()

        async def seen_since() -> set[str]:
            return seen

        await eventually(seen_since)
        watching.cancel()
    # Whatever was due has run as well, and nothing has ended otherwise.
    assert {state for _, state in done} == {"COMPLETED"}
    assert done["SCHEDULE", "COMPLETED"] + done["CATCH_UP", "COMPLETED"] > 0
    assert made <= {f"runs/{run}" for run in calls}


async def _triggered(client: Client, keys: range) -> set[str]:
    """The run of each key; asked for again where the database was away, or the answer was lost."""
    return set(await asyncio.gather(*(_made(client, f"key-{key}") for key in keys)))


async def _made(client: Client, key: str) -> str:
    while True:
        try:
            (run,) = await client.trigger_job(JOB, run_key=key)
            return run.name
        except AlreadyExists as there:
            return f"runs/{there.metadata['run'].removeprefix('runs/')}"
        except SchedulerUnavailable:
            await asyncio.sleep(0.1)


async def _watch_to_their_end(client: Client, seen: set[str]) -> None:
    """Adds the runs that a watcher sees complete. A watch ends when the database is away; it is begun again then, and
    says nothing of what ended in between."""
    while True:
        with suppress(SchedulerUnavailable):
            async for run in client.watch_runs(job=JOB):
                if run.state == run_pb2.RUN_STATE_COMPLETED:
                    seen.add(run.name)
        await asyncio.sleep(0.1)


_SEEN = text(
    "select pg_backend_pid(), current_setting('carillon.principal', true),"
    " (select array_agg(distinct tenant_id) from carillon.runs),"
    " (select array_agg(distinct tenant_id) from carillon.schedules)"
)


async def test_tenants_that_share_its_few_connections_see_only_their_own(behind: Behind) -> None:
    with connect(behind.cluster.urls.admin) as admin:
        for name in ("email-service", "sms-service"):
            job = make_job(admin, service=name)
            for tenant in ("acme", "globex"):
                make_schedule(admin, job, tenant=tenant)
                make_ended_run(admin, job, tenant=tenant, created_at=days_ago(1))
    both = ["acme", "globex"]
    expected: list[tuple[Principal, list[str] | None]] = [
        (user("acme"), ["acme"]),
        (user("globex"), ["globex"]),
        (service("email-service"), both),
        (ADMIN, both),
        (user("initech"), None),
        (ANONYMOUS, None),
    ]
    urls = behind.cluster.urls
    database = Database(urls.api, urls.engine, pool_size=CALLERS, through_pgbouncer=True)
    acted: dict[int, set[str]] = defaultdict(set)

    async def call(start: int) -> None:
        for n in range(start, start + CALLS_EACH):
            principal, tenants = expected[n % len(expected)]
            async with database.acting_for(principal) as tx:
                process, said, *seen = (await tx.connection.execute(_SEEN)).one()
            acted[process].add(said)
            assert (said, seen) == (str(principal), [tenants, tenants])

    await asyncio.gather(*(call(start) for start in range(CALLERS)))
    await database.close()
    # It was the same few connections that acted for everyone.
    assert 1 <= len(acted) <= POOL_SIZE
    assert all(len(principals) == len(expected) for principals in acted.values())


async def test_a_transaction_leaves_nothing_in_the_session(behind: Behind) -> None:
    urls = behind.cluster.urls
    database = Database(urls.api, urls.engine, pool_size=2, through_pgbouncer=True)
    async with database.acting_for(user("acme")) as tx:
        await tx.driver_connection()
    async with database.acting_for(ADMIN, one_snapshot=True):
        pass
    for url in (urls.api, urls.engine):
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as later:
            left = later.execute(
                "select name from pg_settings where source = 'session' and name <> 'client_encoding'"
                " union all select name from pg_prepared_statements"
                " union all select name from pg_cursors where is_holdable"
                " union all select locktype from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            ).fetchall()
            kind = later.execute("select coalesce(current_setting('carillon.kind', true), '')").fetchone()
        assert (left, kind) == ([], ("",))
    await database.close()
