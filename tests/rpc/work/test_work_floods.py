"""What one worker's stream may cost a replica."""

from __future__ import annotations

import grpc
import pytest

from scheduler_service.rpc.work_decode import MAX_HELD_CLAIMS, Malformed
from scheduler_service.rpc.work_pace import CLAIMS_ON_THEIR_WAY, HeartbeatPace
from tests.rpc.work.rig import Clock, RawWorker, Replica


async def test_a_flood_of_heartbeats_ends_the_stream(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    for sequence in range(76):
        await worker.beat(sequence)
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("heartbeat: came")
    assert len(replica.sessions) == 0


async def test_a_list_of_claims_that_nobody_sent_ends_the_stream_at_once(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    await worker.beat(1, held=range(1, MAX_HELD_CLAIMS + 1))
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("heartbeat.held_claims: lists 100,000 claims, although the Hello listed 0 and 0 were")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(("interval", "lease"), [(5.0, 30.0), (0.2, 2.0), (30.0, 600.0), (120.0, 600.0), (1.0, 600.0)])
@pytest.mark.parametrize("held", [0, 1_000, MAX_HELD_CLAIMS])
def test_a_worker_that_does_as_it_is_told_is_never_too_fast(
    clock: Clock, interval: float, lease: float, held: int
) -> None:
    pace = HeartbeatPace(interval, lease, held, clock)
    for _ in range(1_000):
        clock.now += interval * 0.75
        pace.check(held, 0)


@pytest.mark.parametrize("held", [0, MAX_HELD_CLAIMS])
def test_what_a_stalled_network_delivers_together_is_not_too_fast(clock: Clock, held: int) -> None:
    pace = HeartbeatPace(5.0, 30.0, held, clock)
    for _ in range(6):
        pace.check(held, 0)


@pytest.mark.parametrize(("held", "most"), [(0, 75), (MAX_HELD_CLAIMS, 6)])
def test_at_once_so_many_come_through_and_then_five_a_second_or_two_full_lists_an_interval(
    clock: Clock, held: int, most: int
) -> None:
    pace = HeartbeatPace(5.0, 30.0, held, clock)
    for _ in range(most):
        pace.check(held, 0)
    with pytest.raises(Malformed, match="send one each `heartbeat_interval`"):
        pace.check(held, 0)
    clock.now += 100.0
    pace.check(held, 0)


def test_a_list_is_as_long_as_what_was_held_and_sent(clock: Clock) -> None:
    pace = HeartbeatPace(5.0, 30.0, held=10, clock=clock)
    pace.check(10 + 7 + CLAIMS_ON_THEIR_WAY, sent=7)
    with pytest.raises(Malformed, match="the Hello listed 10 and 7 were sent since"):
        pace.check(10 + 7 + CLAIMS_ON_THEIR_WAY + 1, sent=7)
