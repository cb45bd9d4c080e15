"""LISTEN connections are lost, and come back; nothing depends on them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from local_stack.ports import LOCALHOST
from local_stack.postgres import EmbeddedPostgres
from scheduler_service.domain.names import JobName
from scheduler_service.loops.notifier import Listener, Teller
from scheduler_service.store.database import Database
from scheduler_service.usecases.trigger import TriggerRequest, trigger_job
from scheduler_service.usecases.wakeups import Topic, Wakeups, direct_connection
from tests.builders import ADMIN, connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, eventually
from tests.e2e.database_away.place import SERVICE, Place, placed, through
from tests.faults.proxy import FaultProxy

_LISTENING = "where datname = current_database() and query ilike 'listen %'"


@pytest.fixture
def to_listen(postgres: EmbeddedPostgres) -> FaultProxy:
    return FaultProxy((LOCALHOST, postgres.port))


@asynccontextmanager
async def listening(urls: DatabaseUrls, proxy: FaultProxy) -> AsyncIterator[Place]:
    settings = {"listen_url": through(urls.engine, proxy)}
    async with placed(urls, lambda: urls.admin, ticks=False, **settings) as place:
        yield place


async def listeners(urls: DatabaseUrls) -> int:
    with connect(urls.admin) as admin:
        [(found,)] = admin.execute(f"select count(*) from pg_stat_activity {_LISTENING}".encode()).fetchall()
    return int(found)


async def test_what_another_replica_wrote_is_seen_without_it(
    database: Database, database_urls: DatabaseUrls, to_listen: FaultProxy
) -> None:
    with to_listen:
        async with listening(database_urls, to_listen) as place:
            await eventually(lambda: listeners(database_urls), lambda count: count == 1)
            to_listen.cut()
            await eventually(lambda: listeners(database_urls), lambda count: count == 0)
            for number in range(1, 5):
                # Another replica's: nobody is woken for it here.
                request = TriggerRequest(JobName(SERVICE, "count"))
                await trigger_job(database, Wakeups(), ADMIN, request, lambda _runs: b"")
                await eventually(place.carried_out, number.__eq__)
            await place.is_ready()
            to_listen.heal()
            await eventually(lambda: listeners(database_urls), lambda count: count == 1)


async def test_a_listener_whose_backend_is_killed_listens_again(
    database_urls: DatabaseUrls, to_listen: FaultProxy
) -> None:
    with to_listen:
        async with listening(database_urls, to_listen) as place:
            await eventually(lambda: listeners(database_urls), lambda count: count == 1)
            with connect(database_urls.admin) as admin:
                admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity {_LISTENING}".encode())
            await eventually(lambda: _failures(place), lambda failures: failures >= 1)
            await eventually(lambda: listeners(database_urls), lambda count: count == 1)


async def _failures(place: Place) -> int:
    return place.loop_failures()["listener"]


async def test_a_listener_behind_a_proxy_that_lost_its_server_notices(
    database: Database, database_urls: DatabaseUrls, to_listen: FaultProxy
) -> None:
    """Its connection looks whole, and nothing will ever come."""
    wakeups = Wakeups()
    with to_listen:
        url = through(database_urls.engine, to_listen)
        teller = Teller(database.hot_connection, wakeups)
        listener = Listener(lambda: direct_connection(url), wakeups, teller, silence=0.0)
        told = wakeups.listen(Topic.RUNS)
        listener.start()
        async with asyncio.timeout(PATIENCE):
            assert await told.wait(PATIENCE)
            to_listen.half_open()
            # Whoever listens anew wakes all.
            assert await told.wait(PATIENCE)
        assert listener.failures >= 1
        await listener.stop(within=0)
