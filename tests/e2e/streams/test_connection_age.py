"""Connections that end at an age: a scheduler's own (`CARILLON_CONNECTION_AGE_SECONDS`), which disturbs nothing, and a
harsher one that ends what goes on."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest
from carillon import Client

from local_stack.ports import LOCALHOST
from scheduler_service.rpc.server import ConnectionLimits
from scheduler_service.settings import SettingsError, read_settings
from tests.conftest import DatabaseUrls
from tests.e2e.streams.calling import JOB, OFTEN, calling
from tests.e2e.streams.house import BOUND, PATIENCE, Hands, House, Replica, until
from tests.faults.proxy import FaultProxy
from tests.security.schedulers import admin as admin_token

AGES = 5
AGE = 1
"""In seconds, of each connection; gRPC takes a tenth more or less."""


async def replicas_of_age(house: House, **settings: Any) -> list[Replica]:
    """Two more, whose connections end."""
    given = {"connection_age_seconds": AGE} | OFTEN | settings
    return [await house.open_replica(**given) for _ in range(2)]


def target(replicas: list[Replica]) -> str:
    return "ipv4:" + ",".join(replica.proxy.address for replica in replicas)


async def test_calls_go_on_over_many_connections_and_streams_stay_where_they_are(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    ageing = await replicas_of_age(house)
    workers = {f"worker-{number}": Hands() for number in range(3)}
    with caplog.at_level(logging.WARNING, "carillon"):
        sessions = [await house.open_worker(hands, name, target=target(ageing)) for name, hands in workers.items()]
        before = sum(replica.proxy.accepted for replica in ageing)
        async with calling(*(replica.proxy.address for replica in ageing)) as calls:
            await until(
                lambda: sum(replica.proxy.accepted for replica in ageing) >= before + 2 * AGES and calls.answered > 50,
                PATIENCE,
            )
        await house.until_completed(len(calls.made), PATIENCE)
        for session in sessions:
            assert await session.wait_until(lambda state: not state.held, BOUND)
    assert house.admin.execute("select stream from carillon.sessions").fetchall() == [(1,)] * 3
    assert not caplog.records
    house.all_once(calls.made, *workers.values())


async def test_a_client_that_calls_without_a_pause_comes_to_the_replica_that_a_balancer_has_now(house: House) -> None:
    """One address for all replicas: whoever stays connected never sees another."""
    first, added = await replicas_of_age(house)
    with FaultProxy((LOCALHOST, first.proxy.port)) as balancer:
        async with calling(balancer.address) as calls:
            await until(lambda: calls.answered)
            balancer.target = (LOCALHOST, added.proxy.port)
            await until(lambda: added.proxy.connections and not first.proxy.connections, PATIENCE)
    assert balancer.accepted >= 2


async def test_without_an_age_a_connection_stays(house: House) -> None:
    replica = await house.open_replica(connection_age_seconds=0)
    async with Client(replica.proxy.address, token=admin_token()) as client:
        for _ in range(20):
            await client.get_job(JOB)
    assert replica.proxy.accepted == 1


def test_an_age_below_a_second_is_refused_with_what_to_give(database_urls: DatabaseUrls) -> None:
    with pytest.raises(SettingsError, match=r"CARILLON_CONNECTION_AGE_SECONDS is wrong: .* give at least 1, or 0 to"):
        read_settings(database_url=database_urls.api, engine_url=database_urls.engine, connection_age_seconds=0.5)


async def test_streams_that_are_ended_again_and_again_lose_nothing_and_do_nothing_twice(
    house: House, ends_at_an_age: None
) -> None:
    ageing = await replicas_of_age(house)
    workers = {f"worker-{number}": Hands() for number in range(3)}
    sessions = [await house.open_worker(hands, name, target=target(ageing)) for name, hands in workers.items()]
    run_ids: list[UUID] = []
    while house.one("select min(stream) from carillon.sessions") < AGES:
        run_ids += house.make_runs(5)
        await house.until_completed(len(run_ids) - 14, PATIENCE)
    with house.recovering():
        await house.until_completed(len(run_ids), PATIENCE)
    for session in sessions:
        assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, *workers.values())


@pytest.fixture
def ends_at_an_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """At their age connections are not left but ended, with what goes on, as some load balancers do."""
    options = ConnectionLimits.options

    def ending(self: ConnectionLimits) -> list[tuple[str, int]]:
        return [*options(self), ("grpc.max_connection_age_grace_ms", 100)]

    monkeypatch.setattr(ConnectionLimits, "options", ending)
