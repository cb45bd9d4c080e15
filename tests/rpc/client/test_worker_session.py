"""The worker's session over streams, leases and its own end, against a scripted scheduler."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from carillon.backoff import Backoff
from carillon.execution import Completed, Run
from carillon.v1 import work_pb2

if TYPE_CHECKING:
    from tests.rpc.client.conftest import Recorder, ScriptedScheduler


async def test_results_and_items_are_sent_again_on_the_next_stream(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any
) -> None:
    async def with_items(run: Run) -> Completed:
        with run.item("a@example.com"):
            pass
        with run.item("b@example.com"):
            raise ValueError("mailbox full")
        return Completed()

    executor.act = with_items
    start_session()
    first = await scheduler.next_stream()
    hello = await first.next("hello")
    first.welcome()
    first.assign(new_run(1), claim=9)
    items = await first.next("items")
    assert [(item.key, item.succeeded, item.error) for item in items.results] == [
        ("a@example.com", True, ""),
        ("b@example.com", False, "ValueError: mailbox full"),
    ]
    results = await first.next("results")
    assert (results.results[0].items.processed, results.results[0].items.failed) == (2, 1)
    first.end(grpc.StatusCode.UNAVAILABLE, "going away")

    second = await scheduler.next_stream()
    again = await second.next("hello")
    assert again.session_id == hello.session_id
    assert list(again.held_claims) == [9]
    second.welcome()
    assert await second.next("items") == items
    assert await second.next("results") == results
    assert executor.started.qsize() == 1


async def test_a_run_goes_on_while_the_stream_is_away(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    may_end = asyncio.Event()

    async def until_told(run: Run) -> Completed:
        await may_end.wait()
        return Completed()

    executor.act = until_told
    start_session()
    first = await scheduler.next_stream()
    first.welcome()
    first.assign(new_run(1), claim=4)
    await in_time(executor.started.get())
    first.end(grpc.StatusCode.UNAVAILABLE, "restarting")

    second = await scheduler.next_stream()
    assert list((await second.next("hello")).held_claims) == [4]
    second.welcome()
    assert list((await second.next("heartbeat")).held_claims) == [4]
    assert [start.attempt.claim_id for start in (await second.next("starts")).starts] == [4]
    assert second.granted <= 1
    may_end.set()
    assert (await second.next("results")).results[0].outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED


async def test_a_worker_that_never_reached_a_scheduler_stops_at_once(
    scheduler: ScriptedScheduler, start_session: Any, in_time: Any
) -> None:
    session = start_session()
    stream = await scheduler.next_stream()
    await stream.next("hello")
    await in_time(session.drain(60))
    assert not session.state().connected


async def test_a_draining_replica_is_left_for_a_new_stream_while_runs_go_on(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    old = await scheduler.next_stream()
    hello = await old.next("hello")
    old.welcome()
    old.assign(new_run(1), claim=4)
    run = await in_time(executor.started.get())
    old.say(drain=work_pb2.Drain())
    new = await scheduler.next_stream()
    assert (await new.next("hello")).session_id == hello.session_id
    assert not old.half_closed.is_set()
    new.welcome()
    await in_time(old.half_closed.wait())
    assert list((await new.next("heartbeat")).held_claims) == [4]
    assert not run.cancelled


async def test_goodbye_is_said_on_the_old_stream_while_nobody_welcomes_the_new_one(
    scheduler: ScriptedScheduler, start_session: Any, in_time: Any
) -> None:
    session = start_session()
    old = await scheduler.next_stream()
    old.welcome()
    await session.wait_until(lambda state: state.connected, 20)
    old.say(drain=work_pb2.Drain())
    new = await scheduler.next_stream()
    await new.next("hello")
    await in_time(session.drain(10))
    await old.next("goodbye")
    await in_time(old.half_closed.wait())


async def test_a_lost_lease_stops_the_runs_and_begins_a_new_session(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    now = 0.0
    start_session(clock=lambda: now)
    first = await scheduler.next_stream()
    hello = await first.next("hello")
    first.welcome(lease=30, heartbeat=30)
    beat = await first.next("heartbeat")
    first.assign(new_run(1), claim=4)
    await in_time(executor.started.get())
    now = 26.9  # of the 27 s by which the runs are told to stop
    first.say(heartbeat_ack=work_pb2.HeartbeatAck(sequence=beat.sequence))
    run = await in_time(executor.interrupted.get())
    assert run.cancelled
    second = await scheduler.next_stream()
    again = await second.next("hello")
    assert again.session_id != hello.session_id
    assert not again.held_claims
    second.welcome()
    assert await second.credit(2) == 2
    assert "results" not in first.seen
    assert "results" not in second.seen


async def test_acknowledged_heartbeats_keep_the_lease(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    now = 0.0
    start_session(clock=lambda: now)
    stream = await scheduler.next_stream()
    stream.welcome(lease=30, heartbeat=0.02)
    stream.assign(new_run(1), claim=4)
    run = await in_time(executor.started.get())
    sequences = []
    for _ in range(150):
        sequences.append((await stream.answer_heartbeat()).sequence)
        now += 0.5
    assert sequences == list(range(sequences[0], sequences[0] + 150))
    assert not run.cancelled
    assert scheduler.streams.empty()


async def test_a_session_that_the_scheduler_lost_begins_anew(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    first = await scheduler.next_stream()
    hello = await first.next("hello")
    first.welcome()
    first.assign(new_run(1))
    await in_time(executor.started.get())
    first.end(grpc.StatusCode.FAILED_PRECONDITION, "no such session", "SESSION_LOST")
    await in_time(executor.interrupted.get())
    second = await scheduler.next_stream()
    again = await second.next("hello")
    assert again.session_id != hello.session_id
    assert not again.held_claims


async def test_draining_returns_what_was_not_started_and_waits_for_the_rest(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    may_end = asyncio.Event()

    async def until_told(run: Run) -> Completed:
        await may_end.wait()
        return Completed()

    executor.act = until_told
    session = start_session(concurrency=1, prefetch=1)
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1), new_run(2))
    await in_time(executor.started.get())
    draining = asyncio.ensure_future(session.drain(60))
    first = await stream.next("results")
    assert [(r.attempt.run_id[-1], r.outcome) for r in first.results] == [(2, work_pb2.ATTEMPT_OUTCOME_RETURNED)]
    stream.assign(new_run(3))
    late = await stream.next("results")
    assert [(r.attempt.run_id[-1], r.outcome) for r in late.results] == [(3, work_pb2.ATTEMPT_OUTCOME_RETURNED)]
    may_end.set()
    last = await stream.next("results")
    assert [r.outcome for r in last.results] == [work_pb2.ATTEMPT_OUTCOME_COMPLETED]
    assert "goodbye" not in stream.seen
    for results in (first, late, last):
        stream.acknowledge(results)
    await stream.next("goodbye")
    await in_time(draining)
    assert executor.started.empty()


async def test_what_outlasts_the_drain_is_given_up(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    session = start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    await in_time(executor.started.get())
    draining = asyncio.ensure_future(session.drain(0))
    assert (await in_time(executor.interrupted.get())).cancelled
    await stream.next("goodbye")
    await in_time(draining)
    assert "results" not in stream.seen


class CountedBackoff(Backoff):
    """Waits for a moment, and counts."""

    def __init__(self) -> None:
        super().__init__(0.001, 0.001)
        self.waits = self.resets = 0

    def next(self) -> float:
        self.waits += 1
        return super().next()

    def reset(self) -> None:
        self.resets += 1


async def test_waits_begin_anew_only_after_a_stream_that_lasted(
    scheduler: ScriptedScheduler, start_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backoff = CountedBackoff()
    monkeypatch.setattr("carillon.streams.Backoff", lambda *_: backoff)
    start_session()
    for _ in range(3):
        stream = await scheduler.next_stream()
        stream.welcome(heartbeat=30)
        await stream.next("heartbeat")
        stream.end(grpc.StatusCode.UNAVAILABLE, "going away")
        await stream.ended.wait()
    lasting = await scheduler.next_stream()
    assert (backoff.waits, backoff.resets) == (3, 0)
    lasting.welcome(heartbeat=0.01)
    for _ in range(3):
        await lasting.answer_heartbeat()
    lasting.end(grpc.StatusCode.UNAVAILABLE, "going away")
    await scheduler.next_stream()
    assert (backoff.waits, backoff.resets) == (4, 1)


async def test_replicas_that_all_drain_are_not_hurried(
    scheduler: ScriptedScheduler, start_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backoff = CountedBackoff()
    monkeypatch.setattr("carillon.streams.Backoff", lambda *_: backoff)
    start_session()
    for waits in range(4):
        stream = await scheduler.next_stream()
        assert backoff.waits == waits
        stream.welcome(heartbeat=30)
        stream.say(drain=work_pb2.Drain())


async def test_a_replica_that_does_not_answer_leaves_time_for_another(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    now = 0.0
    session = start_session(clock=lambda: now)
    first = await scheduler.next_stream()
    hello = await first.next("hello")
    first.welcome(lease=30, heartbeat=30)
    await first.answer_heartbeat()
    first.assign(new_run(1), claim=4)
    run = await in_time(executor.started.get())
    now = 24.0  # of the 27 s by which the runs are told to stop
    first.end(grpc.StatusCode.UNAVAILABLE, "killed")
    silent = await scheduler.next_stream()
    await silent.next("hello")
    other = await scheduler.next_stream()
    again = await other.next("hello")
    assert (again.session_id, list(again.held_claims)) == (hello.session_id, [4])
    assert session.state().last_error == "UNAVAILABLE: no answer to Hello within 1.5 s"
    assert not run.cancelled


async def test_results_that_are_lost_with_their_session_are_named(
    scheduler: ScriptedScheduler, start_session: Any, new_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    start_session(prefetch=30)
    first = await scheduler.next_stream()
    first.welcome()
    first.assign(*(new_run(number) for number in range(1, 24)))
    reported = 0
    while reported < 23:
        reported += len((await first.next("results")).results)
    with caplog.at_level(logging.WARNING, "carillon"):
        first.end(grpc.StatusCode.FAILED_PRECONDITION, "no such session", "SESSION_LOST")
        await scheduler.next_stream()
    named = [record.getMessage() for record in caplog.records if "was not acknowledged" in record.getMessage()]
    assert [str(uuid.UUID(int=number)) in line for number, line in enumerate(named, 1)] == [True] * 20
    assert "so it is with the results of 3 more runs" in caplog.text


async def test_a_refused_worker_says_why_once(
    scheduler: ScriptedScheduler, start_session: Any, caplog: pytest.LogCaptureFixture, in_time: Any
) -> None:
    session = start_session()
    stream = await scheduler.next_stream()
    with caplog.at_level(logging.ERROR, "carillon"):
        stream.end(grpc.StatusCode.UNAUTHENTICATED, "this token is not known", "CREDENTIALS_INVALID")
        await in_time(stream.ended.wait())
        await session.wait_until(lambda state: bool(state.last_error), 60)
    assert session.state().last_error == "UNAUTHENTICATED (CREDENTIALS_INVALID): this token is not known"
    assert "t.secret" not in caplog.text
    assert not session.state().connected
