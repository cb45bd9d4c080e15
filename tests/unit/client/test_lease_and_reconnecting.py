"""How long a worker's session may hold its runs, and how it finds a replica again."""

from __future__ import annotations

import asyncio
import math

import pytest
from carillon.address import Turns
from carillon.backoff import Backoff
from carillon.lease import Lease
from carillon.lease_watch import LeaseWatch


def test_the_lease_counts_from_the_sending_of_the_acknowledged_heartbeat() -> None:
    lease = Lease()
    assert lease.stop_by == math.inf
    lease.begin(30.0, sent_at=100.0)
    assert lease.stop_by == 127.0
    first, second = lease.sending(105.0), lease.sending(110.0)
    lease.acknowledged(second)
    assert lease.end == 140.0
    lease.acknowledged(first)
    lease.acknowledged(99)
    assert lease.end == 140.0


def test_a_reconnect_alone_does_not_extend_the_lease() -> None:
    lease = Lease()
    lease.begin(30.0, sent_at=100.0)
    lease.begin(30.0, sent_at=120.0)
    assert lease.end == 130.0


def test_unanswered_heartbeats_make_the_stream_silent() -> None:
    lease = Lease()
    lease.begin(30.0, sent_at=100.0)
    sequence = lease.sending(100.0)
    assert not lease.is_silent(110.0)
    assert lease.is_silent(110.1)
    lease.acknowledged(sequence)
    assert not lease.is_silent(200.0)


class Clock:
    """A clock that the test steps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_lease_is_over_by_the_clock_whether_its_timer_ran_or_not() -> None:
    clock, ends = Clock(), []
    watch = LeaseWatch(lambda: ends.append(clock.now), clock)
    assert not watch.is_over()
    watch.hello()
    watch.welcomed(30.0)
    clock.now = 126.9
    assert not watch.is_over()
    clock.now = 127.0
    assert watch.is_over()
    assert ends == []
    watch.forget()
    assert not watch.is_over()
    watch.cancel()


async def test_the_timer_runs_out_when_no_heartbeat_is_acknowledged() -> None:
    clock, ended = Clock(), asyncio.Event()
    watch = LeaseWatch(ended.set, clock)
    watch.hello()
    clock.now = 127.0  # welcomed late: nothing is left of it
    watch.welcomed(30.0)
    await asyncio.wait_for(ended.wait(), 60)


async def test_waiting_for_a_replica_leaves_time_to_try_another() -> None:
    clock = Clock()
    watch = LeaseWatch(lambda: None, clock)
    assert watch.patience(20.0) == 20.0
    watch.hello()
    watch.welcomed(30.0)
    clock.now = 110.0
    assert watch.patience(20.0) == 8.5
    clock.now = 126.5
    assert watch.patience(20.0) == 1.0
    watch.cancel()


def test_each_address_of_a_list_is_the_first_in_its_turn() -> None:
    turns = Turns("ipv4:a:1,b:2,c:3")
    tried = [turns.next() for _ in range(4)]
    assert {target.partition(":")[0] for target in tried} == {"ipv4"}
    assert {target.removeprefix("ipv4:").split(",")[0] for target in tried[:3]} == {"a:1", "b:2", "c:3"}
    assert all(sorted(target.removeprefix("ipv4:").split(",")) == ["a:1", "b:2", "c:3"] for target in tried)
    assert tried[3] == tried[0]


@pytest.mark.parametrize("target", ["scheduler:7007", "dns:///scheduler:7007", "[::1]:7007", "unix:/run/a,b"])
def test_a_target_that_is_no_list_stays_as_it_is(target: str) -> None:
    turns = Turns(target)
    assert [turns.next(), turns.next()] == [target, target]


def test_workers_that_lost_their_scheduler_together_do_not_come_back_together() -> None:
    fleet = [Backoff(0.2, 10.0) for _ in range(50)]
    came = [0.0] * len(fleet)
    for tries in range(1, 9):
        waits = [backoff.next() for backoff in fleet]
        longest = min(10.0, 0.2 * 2 ** (tries - 1))
        assert all(longest / 2 <= wait <= longest for wait in waits)
        came = [before + wait for before, wait in zip(came, waits, strict=True)]
        tenth = max(sum(0 <= at - begin <= longest / 20 for at in came) for begin in came)
        assert tenth < len(fleet) * 0.6, f"try {tries}"


def test_waits_double_up_to_the_longest_and_start_over() -> None:
    backoff = Backoff(0.2, 1.0)
    for longest in (0.2, 0.4, 0.8, 1.0, 1.0):
        assert longest / 2 <= backoff.next() <= longest
    backoff.reset()
    assert backoff.next() <= 0.2
