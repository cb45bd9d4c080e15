"""A name with an address for each replica, as a headless Service in Kubernetes has: workers and clients go to another
address when theirs is away, and find replicas that were added."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from carillon import Client, SchedulerUnavailable, Tls, blocking
from carillon.session import WorkerSession
from cryptography import x509

from tests.builders import make_job
from tests.conftest import DatabaseUrls
from tests.e2e.streams.calling import JOB, OFTEN, calling
from tests.e2e.streams.house import BOUND, FOUND_OUT, PATIENCE, Hands, House, Replica, a_house, until
from tests.e2e.streams.names import Names, serving_names
from tests.faults.proxy import FaultProxy
from tests.security.authority import Authority
from tests.security.schedulers import admin as admin_token
from tests.security.schedulers import tls

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="its loopback has one address")

NAME = "schedulers.test"
AWAY: dict[str, Callable[[FaultProxy], object]] = {
    "closed": FaultProxy.cut,
    "frozen": FaultProxy.hold,
    "swallowed": FaultProxy.blackhole,
}


@dataclass
class Fleet:
    """Replicas that have the same port, of 127.0.0.1, 127.0.0.2 and so on, and one name."""

    house: House
    names: Names
    port: int = 0

    @property
    def target(self) -> str:
        return self.names.target(NAME, self.port)

    async def add(self, **settings: object) -> Replica:
        """A replica that nobody finds yet."""
        host = f"127.0.0.{len(self.house.replicas) + 1}"
        replica = await self.house.open_replica((host, self.port), **settings)
        self.port = replica.proxy.port
        return replica

    def publish(self, *replicas: Replica) -> None:
        """From here on the name stands for these and no others."""
        self.names.addresses[NAME] = [replica.proxy.host for replica in replicas]

    async def open_worker(self, hands: Hands) -> WorkerSession:
        return await self.house.open_worker(hands, target=self.target)


@pytest.fixture
async def fleet(
    database_urls: DatabaseUrls, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    """Without a replica."""
    monkeypatch.setenv("CARILLON_PLAINTEXT", "true")
    async with serving_names() as names, a_house(database_urls, admin, make_job(admin)) as house:
        yield Fleet(house, names)


@pytest.mark.parametrize("away", AWAY)
async def test_a_worker_goes_to_another_address_of_the_name_when_its_own_is_away(fleet: Fleet, away: str) -> None:
    house, hands = fleet.house, Hands()
    fleet.publish(await fleet.add(lease_seconds=FOUND_OUT), await fleet.add(lease_seconds=FOUND_OUT))
    session = await fleet.open_worker(hands)
    held_under = session.session_id
    hands.may_end.clear()
    run_ids = house.make_runs()
    await until(lambda: hands.begun, PATIENCE)
    left = house.replica_of(session)
    with house.recovering():
        AWAY[away](left.proxy)
        hands.may_end.set()
        await house.connected(session, *house.others(left))
        run_ids += house.make_runs(5)
        await house.until_completed(len(run_ids), PATIENCE)
    assert session.session_id == held_under
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


async def test_a_worker_finds_those_that_took_the_place_of_all_that_it_knew(fleet: Fleet) -> None:
    house, hands = fleet.house, Hands()
    fleet.publish(await fleet.add(), await fleet.add())
    session = await fleet.open_worker(hands)
    hands.may_end.clear()
    run_ids = house.make_runs(3)
    await until(lambda: len(hands.begun) == 3)
    olds = list(house.replicas)
    new = await fleet.add()
    fleet.publish(new)
    with house.recovering():
        for old in olds:
            old.proxy.cut()
        await house.connected(session, new)
        hands.may_end.set()
        await house.until_completed(3)
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


async def test_a_worker_comes_to_a_replica_that_was_added_beside_its_own(fleet: Fleet) -> None:
    first = await fleet.add(stream_age_seconds=1)
    fleet.publish(first)
    session = await fleet.open_worker(Hands())
    added = await fleet.add()
    fleet.publish(first, added)
    await fleet.house.connected(session, added)


async def test_a_worker_waits_for_a_name_that_nobody_has_for_a_while(fleet: Fleet) -> None:
    house, hands = fleet.house, Hands()
    replica = await fleet.add()
    session, _ = house.begin_worker(hands, target=fleet.target)
    await until(lambda: fleet.names.asked >= 3)
    fleet.publish(replica)
    with house.recovering():
        await house.connected(session)


async def test_calls_are_answered_at_another_address_when_theirs_is_away(fleet: Fleet) -> None:
    fleet.publish(await fleet.add(), await fleet.add())
    async with Client(fleet.target, token=admin_token()) as client:
        await client.get_job(JOB)
        # Where the first takes long to connect, gRPC tries the second beside it, and hangs up on one of them.
        await until(lambda: [replica.proxy.connections for replica in fleet.house.replicas] in ([0, 1], [1, 0]))
        [left] = [replica for replica in fleet.house.replicas if replica.proxy.connections]
        left.proxy.cut()
        await client.get_job(JOB)
        assert not left.proxy.connections


@pytest.mark.parametrize("kind", [Client, blocking.Client], ids=["asyncio", "blocking"])
async def test_calls_find_those_that_took_the_place_of_all_that_was_known(
    fleet: Fleet, kind: type[Client | blocking.Client]
) -> None:
    """All replicas were replaced within seconds, and none has its address any more."""
    fleet.publish(await fleet.add(), await fleet.add())
    async with AsyncExitStack() as stack:
        ask = await _asking(stack, kind(fleet.target, token=admin_token()))
        await ask()
        olds = list(fleet.house.replicas)
        fleet.publish(await fleet.add())
        with fleet.house.recovering():
            for old in olds:
                old.proxy.cut()
            await _until_answered(ask)


async def test_calls_come_to_a_replica_that_was_added_though_theirs_is_there(fleet: Fleet) -> None:
    first = await fleet.add(connection_age_seconds=1, **OFTEN)
    fleet.publish(first)
    async with calling(fleet.target) as calls:
        await until(lambda: calls.answered)
        added = await fleet.add(connection_age_seconds=1, **OFTEN)
        fleet.publish(first, added)
        await until(lambda: added.proxy.accepted, PATIENCE)


async def test_certificates_are_for_the_name_and_not_for_its_addresses(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CARILLON_PLAINTEXT")
    authority = Authority(tmp_path)
    pair = authority.signs("schedulers", x509.DNSName(NAME))
    fleet.publish(await fleet.add(**tls(pair)), await fleet.add(**tls(pair)))
    fleet.names.addresses["others.test"] = fleet.names.addresses[NAME]
    trusted = Tls(ca=authority.file)
    session = await fleet.house.open_worker(Hands(), target=fleet.target, tls=trusted)
    left = fleet.house.replica_of(session)
    left.proxy.cut()
    await fleet.house.connected(session, fleet.house.others(left)[0])
    async with Client(fleet.target, token=admin_token(), tls=trusted) as client:
        await client.get_job(JOB)
    left.proxy.heal()  # whichever address was asked last is the one that is spoken of
    async with Client(fleet.names.target("others.test", fleet.port), token=admin_token(), tls=trusted) as client:
        with pytest.raises(SchedulerUnavailable, match="certificate"):
            await client.get_job(JOB)


async def _asking(stack: AsyncExitStack, client: Client | blocking.Client) -> Callable[[], Awaitable[object]]:
    """How to make a call of either client, on one channel."""
    if isinstance(client, Client):
        await stack.enter_async_context(client)
        return partial(client.get_job, JOB)
    stack.enter_context(client)
    return partial(asyncio.to_thread, client.get_job, JOB)


async def _until_answered(ask: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(BOUND):
        while True:
            with suppress(SchedulerUnavailable):
                await ask()
                return
