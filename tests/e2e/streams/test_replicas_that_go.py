"""Replicas that go, come, cannot write, or are all away: workers find one that serves, and keep what they owe."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from tests.e2e.streams.house import BOUND, FOUND_OUT, HEARTBEAT, Hands, House, until

FLEET = 50


async def test_a_replica_that_drains_hands_its_worker_over_and_disturbs_no_run(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    run_ids = house.make_runs(10)
    await until(lambda: len(hands.begun) == 10)
    going = house.replica_of(session)
    with caplog.at_level(logging.WARNING, "carillon"), house.recovering():
        draining = asyncio.create_task(going.app.drain())
        await house.connected(session, house.others(going)[0])
    hands.may_end.set()
    run_ids += house.make_runs(10)
    await until(lambda: house.completed() == len(run_ids))
    assert await draining
    assert await session.wait_until(lambda state: not state.held, BOUND)
    assert not caplog.records
    house.all_once(run_ids, hands)


async def test_streams_are_renewed_before_they_are_too_old_and_disturb_no_run(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """As a proxy would end them that lets no connection live for more than a second."""
    hands = Hands()
    renewing = await house.open_replica(stream_age_seconds=1)
    run_ids = []
    with caplog.at_level(logging.WARNING, "carillon"):
        session = await house.open_worker(hands, target=renewing.proxy.address)
        while house.one("select stream from carillon.sessions") < 4:
            run_ids += house.make_runs(5)
            await house.until_completed(len(run_ids) - 4)
        await until(lambda: house.completed() == len(run_ids))
        assert await session.wait_until(lambda state: not state.held, BOUND)
    assert renewing.proxy.accepted >= 4
    assert not caplog.records
    house.all_once(run_ids, hands)


async def test_a_replica_that_came_later_serves_when_the_others_are_gone_for_good(house: House) -> None:
    hands = Hands()
    late = await house.open_replica()
    late.proxy.cut()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    run_ids = house.make_runs(3)
    await until(lambda: len(hands.begun) == 3)
    late.proxy.heal()
    with house.recovering():
        for replica in house.others(late):
            replica.proxy.cut()
        await house.connected(session, late)
        hands.may_end.set()
        await until(lambda: house.completed() == 3)
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


async def test_a_fleet_whose_replicas_were_away_comes_back_soon_and_not_at_once(house: House) -> None:
    [first, second] = house.replicas
    second.proxy.cut()
    sessions = [
        await house.open_worker(Hands(), f"worker-{number}", target=first.proxy.address) for number in range(FLEET)
    ]
    first.proxy.cut()
    await asyncio.gather(*(session.wait_until(lambda state: not state.connected, BOUND) for session in sessions))
    # By how much each waits longer is shown in tests/unit/client; here they have been apart for some time by then.
    await asyncio.sleep(3)  # the time that passes is the fault
    await until(lambda: first.proxy.refused >= FLEET)
    before = first.proxy.accepted
    came_at: list[float] = []
    first.proxy.heal()
    with house.recovering():
        while len(came_at) < FLEET:
            await asyncio.sleep(0.05)
            came_at += [time.monotonic()] * (first.proxy.accepted - before - len(came_at))
        await asyncio.gather(*(house.connected(session) for session in sessions))
    # Without the first and the last of them. Those that come while nobody looks seem to come together.
    assert came_at[FLEET * 9 // 10] - came_at[FLEET // 10] > 1, came_at


async def test_a_heartbeat_that_the_database_refuses_leads_elsewhere_and_costs_no_run(house: House) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    run_ids = house.make_runs(2)
    await until(lambda: len(hands.begun) == 2)
    left = house.replica_of(session)
    _let_heartbeats_be_written(house, False)
    with house.recovering():
        assert await session.wait_until(lambda state: not state.connected, BOUND)
        _let_heartbeats_be_written(house, True)
        await house.connected(session)
        hands.may_end.set()
        await until(lambda: house.completed() == 2)
    assert house.replica_of(session) is not left
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once(run_ids, hands)


# A tenth of the lease is left then: this process may stand still for a second.
@pytest.mark.parametrize("lease", [12.0], ids=["a lease that ends"])
async def test_where_no_heartbeat_is_written_runs_are_stopped_before_their_lease_ends(
    house: House, lease: float
) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    [run_id] = house.make_runs()
    await until(lambda: house.one("select started_at from carillon.live_runs"))
    _let_heartbeats_be_written(house, False)
    ends = house.one("select extract(epoch from expires_at)::float8 from carillon.sessions")
    with house.recovering():
        await until(lambda: run_id in hands.stopped_at)
        assert ends - lease < hands.stopped_at[run_id] < ends
        _let_heartbeats_be_written(house, True)
        hands.may_end.set()
        await until(lambda: house.completed() == 1)
    assert house.outcomes() == [(run_id, "COMPLETED", 2)]
    assert hands.done == [(run_id, 2)]
    assert await session.wait_until(lambda state: not state.held, BOUND)


@pytest.mark.parametrize("lease", [FOUND_OUT], ids=["a lease that ends"])
async def test_a_result_that_was_there_in_time_counts_after_the_lease_if_the_session_is_there(
    house: House, lease: float
) -> None:
    hands = Hands()
    session = await house.open_worker(hands)
    hands.may_end.clear()
    [going_on] = house.make_runs()
    await until(lambda: house.one("select started_at from carillon.live_runs"))
    for replica in house.replicas:
        replica.proxy.hold()
    with house.recovering():
        held_under = session.session_id
        hands.may_end.set()
        await until(lambda: hands.done)
        hands.may_end.clear()
        since = time.monotonic()
        await until(lambda: not session.state().connected)
        _let_leases_outlast(house, seconds=600)  # no heartbeat is on its way any more that would shorten it
        await session.wait_until(lambda state: time.monotonic() - since > lease, lease + HEARTBEAT)
        assert session.state().unacknowledged == 1
        for replica in house.replicas:
            replica.proxy.reset()
            replica.proxy.heal()
        await until(lambda: house.completed() == 1)
    assert session.session_id == held_under
    assert await session.wait_until(lambda state: not state.held, BOUND)
    house.all_once([going_on], hands)


def _let_heartbeats_be_written(house: House, may: bool) -> None:
    house.admin.execute(
        f"{'grant' if may else 'revoke'} update on carillon.sessions {'to' if may else 'from'} carillon_engine"
    )


def _let_leases_outlast(house: House, seconds: float) -> None:
    """As if the reapers were away too."""
    house.admin.execute("update carillon.sessions set expires_at = now() + %s * interval '1 second'", [seconds])
