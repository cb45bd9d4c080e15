"""What one worker's stream may cost a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import grpc
import pytest
from carillon.v1 import work_pb2

from scheduler_service.domain.rates import Rate
from scheduler_service.rpc.work_decode import MAX_ENTRIES, MAX_HELD_CLAIMS, Malformed
from scheduler_service.rpc.work_pace import CLAIMS_ON_THEIR_WAY, RUNS_ON_THEIR_WAY, HeartbeatPace, Once
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from tests.rpc.work.rig import EMAIL_TOKEN, Clock, RawWorker, Replica, a_result, a_worker, ref, serving, until


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


def test_a_result_comes_once_for_each_run_that_was_held_or_sent() -> None:
    results = Once("results", held=2)
    most = 2 * 500 + 30 + RUNS_ON_THEIR_WAY
    results.check(most - 1, sent=30)
    results.check(1, sent=30)
    with pytest.raises(Malformed, match="the Hello listed 2 claims and 30 runs were sent since"):
        results.check(1, sent=30)
    results.check(0, sent=31)


ATTEMPT = ref(bytes(range(16)), 1)


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ({"starts": {"starts": [{"attempt": ATTEMPT}]}}, "starts.starts"),
        ({"progress": {"reports": [{"attempt": ATTEMPT}]}}, "progress.reports"),
        ({"items": {"results": [{"attempt": ATTEMPT, "key": "a"}]}}, "items.results"),
        ({"results": {"results": [a_result(ATTEMPT)]}}, "results.results"),
    ],
)
async def test_a_message_with_too_many_entries_ends_the_stream(
    worker: RawWorker, replica: Replica, entries: dict[str, dict[str, list[Any]]], names: str
) -> None:
    [(kind, fields)] = entries.items()
    [(field, one)] = fields.items()
    await worker.welcomed()
    await worker.send(**{kind: {field: one * (MAX_ENTRIES + 1)}})
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == f"{names}: has 2,001 entries; send at most 2,000 in a message"
    assert len(replica.completer) == 0


@pytest.fixture
async def behind(database: Database) -> AsyncIterator[Replica]:
    """A replica that commits results only when it is told to."""
    async with serving(Replica(database, completes=False)) as replica:
        yield replica


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with await database.hot_connection() as connection:
        yield connection


async def test_more_results_than_runs_end_the_stream(behind: Replica) -> None:
    async with a_worker(behind) as worker:
        await worker.welcomed()
        for _ in range(RUNS_ON_THEIR_WAY // MAX_ENTRIES + 1):
            await worker.send(results=results_of_nobody(MAX_ENTRIES))
        code, details = await worker.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("results: come to 52,000 on this stream")


async def test_more_starts_than_runs_end_the_stream(behind: Replica) -> None:
    starts = work_pb2.Starts(starts=[work_pb2.AttemptStart(attempt=ATTEMPT)] * MAX_ENTRIES)
    async with a_worker(behind) as worker:
        await worker.welcomed()
        for _ in range(RUNS_ON_THEIR_WAY // MAX_ENTRIES + 1):
            await worker.send(starts=starts)
        code, details = await worker.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("starts: come to 52,000 on this stream")


async def test_a_flood_of_one_service_delays_another_workers_results_by_nothing(
    behind: Replica, connection: Connection
) -> None:
    async with a_worker(behind) as worker, AsyncExitStack() as stack:
        await worker.welcomed()
        alone = await steps_until_answered(behind, connection, worker)
        flooding = await flood(behind, stack, streams=3)
        waiting = len(behind.completer)
        assert waiting > 20 * MAX_ENTRIES
        among_them = await steps_until_answered(behind, connection, worker)
        assert (alone, among_them) == (1, 1)
        assert len(behind.completer) > waiting - 1_000  # the flood is hardly shorter
        assert not any(each.done() for each in flooding)


async def test_a_heartbeat_is_answered_while_others_results_wait(behind: Replica) -> None:
    async with a_worker(behind) as worker, AsyncExitStack() as stack:
        await worker.welcomed()
        await flood(behind, stack, streams=3)
        for sequence in (1, 2, 3):
            await worker.beat(sequence)
            assert (await worker.expect("heartbeat_ack")).sequence == sequence


async def test_a_session_that_had_to_wait_goes_on_once_its_results_are_committed(
    behind: Replica, connection: Connection
) -> None:
    async with a_worker(behind) as worker, AsyncExitStack() as stack:
        await worker.welcomed()
        await flood(behind, stack, streams=2)
        flooding = [session for session in behind.sessions if session.session_id != worker.session_id]
        while not any(map(behind.completer.room.is_left_for, flooding)):
            assert await behind.completer.step(connection)
        left = len(behind.completer)
        await until(lambda: len(behind.completer) > left)


async def test_who_opens_stream_after_stream_is_refused_and_others_are_not(database: Database) -> None:
    async with serving(Replica(database, openings=Rate(per_second=0.1, burst=2))) as replica:
        for _ in range(2):
            async with a_worker(replica) as worker:
                await worker.welcomed()
        async with a_worker(replica) as worker:
            code, details = await worker.status()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "opens work streams too often" in details
        async with a_worker(replica, token=EMAIL_TOKEN) as other:
            await other.welcomed(routes=["handler/email-service/weekly-digest"])
        replica.clock.now += 10
        async with a_worker(replica) as worker:
            await worker.welcomed()


def results_of_nobody(count: int) -> work_pb2.Results:
    return work_pb2.Results(results=[a_result(ref(uuid4().bytes, 1)) for _ in range(count)])


async def flood(replica: Replica, stack: AsyncExitStack, streams: int) -> list[asyncio.Future[None]]:
    """Streams of one service that send more results than fit; answers their tasks once all of them have to wait."""
    message = results_of_nobody(MAX_ENTRIES)
    before = set(replica.sessions)

    async def send(worker: RawWorker) -> None:
        for _ in range(RUNS_ON_THEIR_WAY // MAX_ENTRIES):
            await worker.send(results=message)
        await worker.status()

    tasks: list[asyncio.Future[None]] = []
    for _ in range(streams):
        worker = await stack.enter_async_context(a_worker(replica, token=EMAIL_TOKEN))
        await worker.welcomed(routes=["handler/email-service/weekly-digest"])
        tasks.append(asyncio.ensure_future(send(worker)))
        stack.callback(tasks[-1].cancel)
    mine = set(replica.sessions) - before
    await until(lambda: not any(map(replica.completer.room.is_left_for, mine)))
    return tasks


async def steps_until_answered(replica: Replica, connection: Connection, worker: RawWorker) -> int:
    """How many steps the completer takes until 400 results of this worker are answered."""
    before = len(replica.completer)
    await worker.send(results=results_of_nobody(400))
    await until(lambda: len(replica.completer) == before + 400)
    steps = 0
    [session] = [each for each in replica.sessions if each.session_id == worker.session_id]
    while replica.completer.room.used_by(session):
        assert await replica.completer.step(connection)
        steps += 1
    assert len((await worker.expect("result_acks")).acks) == 400
    return steps
