"""The worker's session against a scripted scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from carillon.execution import Completed, Failed, Run
from carillon.v1 import work_pb2

if TYPE_CHECKING:
    from tests.rpc.client.conftest import Recorder, ScriptedScheduler


async def test_a_run_is_carried_out_and_its_result_forgotten_once_it_is_acknowledged(
    scheduler: ScriptedScheduler, start_session: Any, new_run: Any
) -> None:
    session = start_session()
    stream = await scheduler.next_stream()
    hello = await stream.next("hello")
    assert stream.metadata["x-service-token"] == "t.secret"
    assert list(hello.routes) == ["handler/kpi-service/sync"]
    assert len(hello.session_id) == 16
    assert not hello.held_claims
    stream.welcome()
    assert await stream.credit(2) == 2
    stream.assign(new_run(1), claim=7)
    results = await stream.next("results")
    [result] = results.results
    assert (result.attempt.run_id, result.attempt.attempt, result.attempt.claim_id) == (
        uuid.UUID(int=1).bytes,
        1,
        7,
    )
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED
    assert json.loads(result.metrics_json) == {"number": 1}
    assert "starts" not in stream.seen
    assert session.state().held == 1
    assert await stream.credit(3) == 3
    stream.acknowledge(results)
    await session.wait_until(lambda state: state.held == 0, 10)
    assert session.state().held == 0


async def test_credit_never_exceeds_the_free_slots(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    may_end = asyncio.Event()

    async def until_told(run: Run) -> Completed:
        await may_end.wait()
        return Completed()

    executor.act = until_told
    session = start_session(concurrency=2, prefetch=1)
    stream = await scheduler.next_stream()
    stream.welcome()
    assert await stream.credit(3) == 3
    stream.assign(*(new_run(number) for number in range(1, 4)))
    await in_time(executor.started.get())
    await in_time(executor.started.get())
    assert (session.state().running, session.state().waiting) == (2, 1)
    starts = await stream.next("starts")
    assert len(starts.starts) == 2
    assert stream.granted == 3
    may_end.set()
    assert await stream.credit(6) == 6


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


async def test_a_lost_lease_stops_the_runs_and_begins_a_new_session(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    first = await scheduler.next_stream()
    hello = await first.next("hello")
    first.welcome(lease=0.5, heartbeat=30)
    first.assign(new_run(1), claim=4)
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
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome(lease=2.0, heartbeat=0.02)
    stream.assign(new_run(1), claim=4)
    run = await in_time(executor.started.get())
    sequences = [(await stream.answer_heartbeat()).sequence for _ in range(150)]
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


async def test_a_cancelled_run_stops_and_says_so(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1), claim=3)
    await in_time(executor.started.get())
    ref = work_pb2.AttemptRef(run_id=uuid.UUID(int=1).bytes, attempt=1, claim_id=3)
    stream.say(cancel=work_pb2.CancelAttempts(attempts=[ref]))
    [result] = (await stream.next("results")).results
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_CANCELLED
    assert result.error.code == "CANCELLED"


async def test_a_run_that_completes_although_it_was_cancelled_counts_as_completed(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    async def nearly_done(run: Run) -> Completed:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Completed(metadata={"cancelled": run.cancelled})
        raise AssertionError("nobody sets the event")

    executor.act = nearly_done
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1), claim=3)
    await stream.next("starts")
    ref = work_pb2.AttemptRef(run_id=uuid.UUID(int=1).bytes, attempt=1, claim_id=3)
    stream.say(cancel=work_pb2.CancelAttempts(attempts=[ref]))
    [result] = (await stream.next("results")).results
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED
    assert json.loads(result.metadata_json) == {"cancelled": True}


async def test_a_cancel_for_another_claim_is_not_ours(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    await stream.answer_heartbeat()
    stream.assign(new_run(1), claim=3)
    run = await in_time(executor.started.get())
    ref = work_pb2.AttemptRef(run_id=uuid.UUID(int=1).bytes, attempt=1, claim_id=2)
    stream.say(cancel=work_pb2.CancelAttempts(attempts=[ref]))
    stream.assign(new_run(2), claim=4)
    await in_time(executor.started.get())
    assert not run.cancelled


async def test_an_attempt_that_is_out_of_time_fails(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    run = new_run(1)
    run.attempt_timeout.FromMilliseconds(20)
    stream.assign(run)
    [result] = (await stream.next("results")).results
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_FAILED
    assert result.error.code == "ATTEMPT_TIMEOUT"
    assert result.error.message == "the attempt took longer than 0.02 s"
    assert result.duration.ToMilliseconds() >= 20


async def test_an_attempt_that_ignores_its_timeout_is_reported_after_the_grace_and_keeps_its_slot(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any
) -> None:
    may_end = asyncio.Event()

    async def stubborn(run: Run) -> Completed:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue
        return Completed()

    executor.act = stubborn
    session = start_session(concurrency=1)
    stream = await scheduler.next_stream()
    stream.welcome()
    run = new_run(1)
    run.attempt_timeout.FromMilliseconds(10)
    run.cancel_grace.FromMilliseconds(10)
    stream.assign(run)
    [result] = (await stream.next("results")).results
    assert result.error.code == "ATTEMPT_TIMEOUT"
    assert session.state().running == 1
    assert stream.granted == 1
    may_end.set()
    assert await stream.credit(2) == 2
    assert stream.seen.count("results") == 1


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (Failed("EXPORT_EMPTY", "nothing to send"), "EXPORT_EMPTY", "nothing to send"),
        (KeyError("brand"), "HANDLER_ERROR", "KeyError: 'brand'"),
    ],
)
async def test_what_an_executor_raises_is_the_runs_error(
    scheduler: ScriptedScheduler,
    executor: Recorder,
    start_session: Any,
    new_run: Any,
    raised: Exception,
    code: str,
    message: str,
) -> None:
    async def fail(run: Run) -> Completed:
        raise raised

    executor.act = fail
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    [result] = (await stream.next("results")).results
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_FAILED
    assert (result.error.code, result.error.message) == (code, message)
    assert ("Traceback" in result.error.detail) == (code == "HANDLER_ERROR")


async def test_a_result_that_cannot_be_recorded_fails_by_name(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any
) -> None:
    async def not_a_number(run: Run) -> Completed:
        return Completed(metrics={"rate": float("nan")})

    executor.act = not_a_number
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    [result] = (await stream.next("results")).results
    assert result.error.code == "BAD_RESULT"
    assert result.error.message.startswith("metrics cannot be written as JSON")


async def test_the_same_assignment_twice_runs_once(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1), claim=3)
    stream.assign(new_run(1), claim=3)
    stream.assign(new_run(2), claim=4)
    assert [(await in_time(executor.started.get())).claim_id for _ in range(2)] == [3, 4]


async def test_a_newer_claim_of_a_run_takes_the_place_of_the_older(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any, in_time: Any
) -> None:
    executor.act = executor.for_ever
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1), claim=3)
    await in_time(executor.started.get())
    executor.act = executor.at_once
    stream.assign(new_run(1, attempt=2), claim=5)
    assert (await in_time(executor.interrupted.get())).claim_id == 3
    [result] = (await stream.next("results")).results
    assert (result.attempt.attempt, result.attempt.claim_id) == (2, 5)
    assert stream.seen.count("results") == 1


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
    draining = asyncio.ensure_future(session.drain(10))
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


async def test_progress_arrives(
    scheduler: ScriptedScheduler, executor: Recorder, start_session: Any, new_run: Any
) -> None:
    async def tracked(run: Run) -> Completed:
        for _ in run.track(["a", "b", "c"], message="sending"):
            pass
        await asyncio.Event().wait()
        return Completed()

    executor.act = tracked
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    [report] = (await stream.next("progress")).reports
    assert (report.progress.done, report.progress.total, report.progress.message) == (3, 3, "sending")


async def test_a_refused_worker_says_why_once(
    scheduler: ScriptedScheduler, start_session: Any, caplog: pytest.LogCaptureFixture, in_time: Any
) -> None:
    session = start_session()
    stream = await scheduler.next_stream()
    with caplog.at_level(logging.ERROR, "carillon"):
        stream.end(grpc.StatusCode.UNAUTHENTICATED, "this token is not known", "CREDENTIALS_INVALID")
        await in_time(stream.ended.wait())
        await session.wait_until(lambda state: bool(state.last_error), 10)
    assert session.state().last_error == "UNAUTHENTICATED (CREDENTIALS_INVALID): this token is not known"
    assert "t.secret" not in caplog.text
    assert not session.state().connected


async def test_a_result_that_does_not_count_is_forgotten_and_named(
    scheduler: ScriptedScheduler, start_session: Any, new_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session = start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    results = await stream.next("results")
    stream.acknowledge(results, work_pb2.RESULT_VERDICT_STALE)
    await session.wait_until(lambda state: state.held == 0, 10)
    assert session.state().unacknowledged == 0
    assert str(uuid.UUID(int=1)) in caplog.text
