"""What becomes of assigned attempts, against a scripted scheduler."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from carillon.execution import Completed, Failed, Run
from carillon.v1 import work_pb2
from google.protobuf import duration_pb2

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
    await session.wait_until(lambda state: state.held == 0, 60)
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


@pytest.mark.parametrize(
    ("raised", "following"),
    [
        (Failed("BUSY", "later"), None),
        (Failed("BAD_INPUT", "no such brand", retry=False), work_pb2.Following(no_retry=True)),
        (
            Failed("BUSY", "later", retry_after=1.5),
            work_pb2.Following(retry_after=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
        ),
        (Failed("BUSY", "later", retry_after=0), work_pb2.Following(retry_after=duration_pb2.Duration())),
    ],
    ids=["nothing", "no_retry", "retry_after", "at_once"],
)
async def test_what_a_failure_asks_to_follow_goes_to_the_scheduler(
    scheduler: ScriptedScheduler,
    executor: Recorder,
    start_session: Any,
    new_run: Any,
    raised: Failed,
    following: work_pb2.Following | None,
) -> None:
    async def fail(run: Run) -> Completed:
        raise raised

    executor.act = fail
    start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    [result] = (await stream.next("results")).results
    assert (result.following if result.HasField("following") else None) == following


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


async def test_a_result_that_does_not_count_is_forgotten_and_named(
    scheduler: ScriptedScheduler, start_session: Any, new_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session = start_session()
    stream = await scheduler.next_stream()
    stream.welcome()
    stream.assign(new_run(1))
    results = await stream.next("results")
    stream.acknowledge(results, work_pb2.RESULT_VERDICT_STALE)
    await session.wait_until(lambda state: state.held == 0, 60)
    assert session.state().unacknowledged == 0
    assert f"the result of run {uuid.UUID(int=1)}, attempt 1, does not count (STALE): the run was given" in caplog.text
