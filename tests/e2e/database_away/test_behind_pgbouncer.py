"""PgBouncer is restarted, and the server connections behind it are killed: what was under way is done, once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import psycopg
import pytest
from aiohttp import web
from carillon import AlreadyExists, Client, SchedulerUnavailable
from sqlalchemy import text

from scheduler_service.store.database import Database
from scheduler_service.store.errors import is_database_away
from tests.builders import ADMIN
from tests.e2e.cluster import eventually
from tests.e2e.conftest import SERVICE, Call, Service, service
from tests.e2e.test_pgbouncer import Behind, behind, program, recorded

__all__ = ["behind", "program", "service"]

RUNS = 60
_OURS = "where datname = current_database() and usename in ('carillon_api', 'carillon_engine')"


async def test_a_restart_and_server_connections_that_are_killed(behind: Behind, service: Service) -> None:
    cluster, calls = behind.cluster, Counter[str]()

    async def answer(call: Call) -> web.Response:
        calls[call.run] += 1
        return web.Response()

    service.answer = answer
    await cluster.start_scheduler()
    await cluster.start_worker_service()
    jobs = service.jobs(cluster)
    jobs.endpoint("weekly-digest", "/run", overlap="allow_all")
    await jobs.register()
    async with cluster.client() as client:
        for part in range(3):
            making = asyncio.gather(*(_made(client, f"{part}-{number}") for number in range(RUNS // 3)))
            await _break(behind, part)
            await making

    async def outcomes() -> Counter[tuple[str, str]]:
        return recorded(cluster.urls)

    await eventually(outcomes, lambda ended: ended == {("MANUAL", "COMPLETED"): RUNS})
    assert len(calls) == RUNS
    assert set(calls.values()) == {1}


async def test_a_transaction_whose_server_connection_was_killed_finds_the_database_away(behind: Behind) -> None:
    """PgBouncer passes on the server's last word, and adds its own."""
    urls = behind.cluster.urls
    database = Database(urls.api, urls.engine, pool_size=1, through_pgbouncer=True)
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        for _ in range(5):
            with pytest.raises(Exception, match="connection") as caught:
                await _cut_off_in_the_middle(database, admin)
            assert is_database_away(caught.value), repr(caught.value)
        async with database.acting_for(ADMIN) as tx:
            assert (await tx.connection.execute(text("select 1"))).scalar_one() == 1
    await database.close()


async def _cut_off_in_the_middle(database: Database, admin: psycopg.Connection[Any]) -> None:
    async with database.acting_for(ADMIN) as tx:
        process = (await tx.connection.execute(text("select pg_backend_pid()"))).scalar_one()
        admin.execute("select pg_terminate_backend(%s)", [process])

        async def is_gone() -> bool:
            return not admin.execute("select from pg_stat_activity where pid = %s", [process]).fetchall()

        await eventually(is_gone)


async def _break(behind: Behind, part: int) -> None:
    if part == 0:
        with psycopg.connect(behind.cluster.urls.admin, autocommit=True) as admin:
            admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity {_OURS}".encode())
    else:
        await (behind.cluster.terminate if part == 1 else behind.cluster.kill)("pgbouncer")
        await behind.start_pgbouncer()


async def _made(client: Client, key: str) -> None:
    while True:
        try:
            await client.trigger_job(f"{SERVICE}/weekly-digest", run_key=key)
            return
        except AlreadyExists:
            return
        except SchedulerUnavailable:
            await asyncio.sleep(0.1)
