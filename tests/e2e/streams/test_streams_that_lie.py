"""Streams that are not what they say: the worker or the scheduler finds out in time, nothing is lost, nothing twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

import pytest

from tests.e2e.streams.house import BOUND, FOUND_OUT, LEASE, PATIENCE, Hands, House, until
from tests.faults.proxy import Direction, FaultProxy

LIES: dict[str, Callable[[FaultProxy], object]] = {
    "half_open": FaultProxy.half_open,
    "idle_ones_forgotten": FaultProxy.cut_idle,
    "reset": lambda proxy: proxy.reset(refuse=True),
    "closed": FaultProxy.cut,
    "frozen": FaultProxy.hold,
    "worker_not_heard": lambda proxy: proxy.hold(Direction.UP),
    "scheduler_not_heard": lambda proxy: proxy.hold(Direction.DOWN),
    "swallowed": FaultProxy.blackhole,
    "swallowed_upwards": lambda proxy: proxy.blackhole(Direction.UP),
    "swallowed_downwards": lambda proxy: proxy.blackhole(Direction.DOWN),
}


@pytest.mark.parametrize("lease", [FOUND_OUT], ids=["found out"])
@pytest.mark.parametrize("lie", LIES)
async def test_a_run_in_hand_and_those_that_come_are_done_once_through_the_other_replica(
    house: House, lie: str
) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    run_ids = house.make_runs()
    await until(lambda: hands.begun)
    lying = house.replica_of(session)
    held_under = session.session_id
    with house.recovering():
        LIES[lie](lying.proxy)
        hands.may_end.set()
        run_ids += house.make_runs(5)
        await until(lambda: house.completed() == len(run_ids))
    assert session.session_id == held_under
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


@pytest.mark.parametrize("lease", [LEASE], ids=["short lease"])
async def test_a_worker_that_went_without_a_sound_loses_its_run_to_another(house: House) -> None:
    gone, hands = Hands(), Hands()
    session, task = house.begin_worker(gone)
    await house.connected(session)
    gone.may_end.clear()
    [run_id] = house.make_runs()
    await until(lambda: house.one("select started_at from carillon.live_runs"))
    deaf = house.replica_of(session)
    deaf.proxy.hold(Direction.UP)  # its end is not heard either
    with house.recovering():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await house.open_worker(hands, "worker-2", target=house.others(deaf)[0].proxy.address)
        await until(lambda: house.completed() == 1)
    assert house.outcomes() == [(run_id, "COMPLETED", 2)]
    assert (gone.done, hands.done) == ([], [(run_id, 2)])
    assert house.one("select error ->> 'code' from carillon.attempts") == "WORKER_LOST"


async def test_a_result_whose_acknowledgement_is_lost_is_accepted_again_elsewhere(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    run_ids = house.make_runs()
    await until(lambda: hands.begun)
    replica = house.replica_of(session)
    replica.proxy.hold(Direction.DOWN)
    hands.may_end.set()
    await until(lambda: house.completed() == 1)
    assert session.state().unacknowledged == 1
    with house.recovering(), caplog.at_level(logging.WARNING, "carillon"):
        replica.proxy.cut()
        assert await session.wait_until(lambda state: not state.unacknowledged, BOUND)
    assert house.replica_of(session) is not replica
    assert "does not count" not in caplog.text
    house.all_once(run_ids, hands)


async def test_a_claim_that_never_arrived_comes_back_and_costs_nothing(house: House) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    replica = house.replica_of(session)
    replica.proxy.hold(Direction.DOWN)
    run_ids = house.make_runs()
    await until(lambda: house.claimed() == 1)
    with house.recovering():
        replica.proxy.cut()
        await until(lambda: house.completed() == 1)
    house.all_once(run_ids, hands)


@pytest.mark.parametrize("lease", [FOUND_OUT], ids=["a lease that ends later"])
async def test_a_worker_that_begins_again_under_its_name_is_another_session(house: House) -> None:
    before, after = Hands(), Hands()
    session, task = house.begin_worker(before, "worker-1")
    await house.connected(session)
    before.may_end.clear()
    [first] = house.make_runs()
    await until(lambda: house.one("select started_at from carillon.live_runs"))
    for replica in house.replicas:  # it ends without a sound
        replica.proxy.hold(Direction.UP)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for replica in house.replicas:
        replica.proxy.reset()
        replica.proxy.heal()
    with house.recovering():
        await house.open_worker(after, "worker-1")
        [second] = house.make_runs()
        await until(lambda: house.completed() == 1)
        assert (second, "COMPLETED", 1) in house.outcomes(), "the new one waits for nothing"
        await until(lambda: house.completed() == 2)
    assert (first, "COMPLETED", 2) in house.outcomes()
    assert (before.done, sorted(after.done)) == ([], sorted([(first, 2), (second, 1)]))


async def test_many_runs_pass_though_their_connections_are_reset_again_and_again(house: House) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    run_ids: list[UUID] = []
    for resets in range(6):
        run_ids += house.make_runs(30)
        await house.until_completed(30 * resets + 1)
        house.replica_of(session).proxy.reset()
        await house.connected(session)
    with house.recovering():
        await until(lambda: house.completed() == len(run_ids), PATIENCE)
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


async def test_over_a_very_slow_link_each_run_arrives_and_counts_once(house: House) -> None:
    hands = Hands()
    slow = house.replicas[0].proxy
    await house.open_worker(hands, target=slow.address)
    slow.throttle(2_000, Direction.DOWN)
    with house.recovering():
        run_ids = house.make_runs(8, payload={"text": "x" * 1_000})
        await until(lambda: house.completed() == len(run_ids), PATIENCE)
    house.all_once(run_ids, hands)
