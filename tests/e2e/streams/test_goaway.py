"""GOAWAY from a peer that is not ours, in the middle of what goes on: streams and calls come to their end, here or on
another connection, and nothing is done twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from carillon import Client, blocking
from carillon.v1 import run_pb2

from tests.e2e.streams.calling import JOB
from tests.e2e.streams.house import BOUND, PATIENCE, Hands, House, until
from tests.e2e.streams.http2_relay import CALMING, INTERNAL_ERROR, Farewell, Http2Relay
from tests.security.schedulers import admin as admin_token

ENDS: dict[str, Farewell] = {
    "spares_nothing": Farewell(spares=False),
    "asks_for_calm": Farewell(spares=False, error=CALMING),
    "spares_and_hangs_up": Farewell(hangs_up=True),
    "fails_and_hangs_up": Farewell(error=INTERNAL_ERROR, hangs_up=True),
    "hangs_up_within_a_frame": Farewell(hangs_up=True, torn=True),
}


@pytest.fixture
async def relays(house: House) -> AsyncIterator[list[Http2Relay]]:
    """One before each replica."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Http2Relay(replica.app.port)) for replica in house.replicas]


Trigger = Callable[[], Awaitable[run_pb2.Run]]


@asynccontextmanager
async def awaiting(address: str) -> AsyncIterator[Trigger]:
    """How to trigger the job, through one channel of `carillon.Client`."""
    async with Client(address, token=admin_token()) as client:

        async def trigger() -> run_pb2.Run:
            [run] = await client.trigger_job(JOB)
            return run

        yield trigger


@asynccontextmanager
async def waiting(address: str) -> AsyncIterator[Trigger]:
    """The same of `carillon.blocking.Client`."""
    with blocking.Client(address, token=admin_token()) as client:

        async def trigger() -> run_pb2.Run:
            [run] = await asyncio.to_thread(client.trigger_job, JOB)
            return run

        yield trigger


CLIENTS = {"asyncio": awaiting, "blocking": waiting}


def target(relays: list[Http2Relay]) -> str:
    return "ipv4:" + ",".join(relay.address for relay in relays)


def say(relays: list[Http2Relay], farewell: Farewell) -> None:
    for relay in relays:
        relay.say(farewell)


async def test_a_stream_that_is_spared_goes_on_where_it_is(
    house: House, relays: list[Http2Relay], caplog: pytest.LogCaptureFixture
) -> None:
    hands = Hands()
    with caplog.at_level(logging.WARNING, "carillon"):
        session = await house.open_worker(hands, target=target(relays))
        hands.may_end.clear()
        run_ids = house.make_runs(5)
        await until(lambda: len(hands.begun) == 5)
        say(relays, Farewell())
        hands.may_end.set()
        run_ids += house.make_runs(5)
        await house.until_completed(len(run_ids))
        assert await session.wait_until(lambda state: not state.held, BOUND)
    assert house.one("select stream from carillon.sessions") == 1
    assert sum(relay.calls for relay in relays) == 1
    assert not caplog.records
    house.all_once(run_ids, hands)


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_that_is_ended_goes_on_elsewhere_with_what_it_held(
    house: House, relays: list[Http2Relay], end: str
) -> None:
    hands = Hands()
    session = await house.open_worker(hands, target=target(relays))
    held_under = session.session_id
    hands.may_end.clear()
    run_ids = house.make_runs(5)
    await until(lambda: len(hands.begun) == 5)
    with house.recovering():
        say(relays, ENDS[end])
        hands.may_end.set()
        run_ids += house.make_runs(5)
        await house.until_completed(len(run_ids))
    assert session.session_id == held_under
    assert house.one("select stream from carillon.sessions") >= 2
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


async def test_many_runs_pass_though_each_stream_is_soon_ended(house: House, relays: list[Http2Relay]) -> None:
    workers = {f"worker-{number}": Hands() for number in range(3)}
    sessions = [await house.open_worker(hands, name, target=target(relays)) for name, hands in workers.items()]
    run_ids = []
    for farewell in [*ENDS.values(), *ENDS.values()]:
        run_ids += house.make_runs(30)
        await house.until_completed(len(run_ids) - 29, PATIENCE)
        say(relays, farewell)
        await asyncio.gather(*(house.connected(session) for session in sessions))
    with house.recovering():
        await house.until_completed(len(run_ids), PATIENCE)
    for session in sessions:
        assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, *workers.values())


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_call_that_meets_a_goaway_is_made_on_another_connection_and_once(
    house: House, relays: list[Http2Relay], client: str
) -> None:
    """Also one that must not be done twice: the peer says that it did not take it."""
    ask = CLIENTS[client]
    [relay, *_] = relays
    made = []
    async with ask(relay.address) as trigger:
        made.append(await trigger())
        for _ in range(3):
            relay.refuse_next_call()
            made.append(await trigger())
            assert not relay.refuses
    assert relay.accepted == 4
    assert house.one("select count(*) from carillon.live_runs") == len({run.name for run in made}) == 4


async def test_a_watch_that_is_spared_sees_the_end_of_its_run(house: House, relays: list[Http2Relay]) -> None:
    hands = Hands()
    hands.may_end.clear()
    await house.open_worker(hands, target=relays[1].address)
    async with Client(relays[0].address, token=admin_token()) as client:
        [run] = await client.trigger_job(JOB)
        watch = client.watch_runs(run=run.name)
        seen = [await anext(watch)]
        relays[0].say(Farewell())
        hands.may_end.set()
        seen += [change async for change in watch]
    assert seen[-1].state == run_pb2.RUN_STATE_COMPLETED
    assert relays[0].calls == 2
