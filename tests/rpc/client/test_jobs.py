"""Carrying out the handlers of `carillon.Jobs`, against a scripted scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import carillon
import pytest
from carillon.v1 import work_pb2

from tests.rpc.client.jobs_case import a_run, the_result, welcomed

if TYPE_CHECKING:
    from tests.rpc.client.conftest import ScriptedScheduler


@dataclass
class Sync:
    brand: str
    rows: int = 0


async def test_a_failure_is_told_in_the_services_own_log(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.handler("sync")
    async def sync() -> None:
        raise ZeroDivisionError("no brands")

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        stream.assign(a_run({}))
        assert (await the_result(stream)).error.code == "HANDLER_ERROR"
    assert "of sync failed in attempt 1" in caplog.text
    assert "ZeroDivisionError: no brands" in caplog.text


async def test_an_attempt_that_is_out_of_time_is_told_as_a_failure(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.handler("sync")
    async def sync() -> None:
        await asyncio.Event().wait()

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        run = a_run({})
        run.attempt_timeout.FromMilliseconds(20)
        stream.assign(run)
        assert (await the_result(stream)).error.code == "ATTEMPT_TIMEOUT"
    said = "failed in attempt 1: ATTEMPT_TIMEOUT: the attempt took longer than 0.02 s"
    assert ("carillon", logging.WARNING, f"run {uuid.UUID(int=1)} of sync {said}") in caplog.record_tuples


async def test_a_plain_function_that_returns_too_late_is_told_as_a_failure(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.handler("sync")
    def sync(run: carillon.Run) -> None:
        while not run.cancelled:
            pass

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        run = a_run({})
        run.attempt_timeout.FromMilliseconds(20)
        stream.assign(run)
        assert (await the_result(stream)).error.code == "ATTEMPT_TIMEOUT"
    assert "of sync failed in attempt 1: ATTEMPT_TIMEOUT" in caplog.text


async def test_a_cancel_is_told_and_is_no_failure(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, caplog: pytest.LogCaptureFixture, in_time: Any
) -> None:
    caplog.set_level(logging.INFO, "carillon")
    started = asyncio.Event()

    @jobs.handler("sync")
    async def sync() -> None:
        started.set()
        await asyncio.Event().wait()

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        stream.assign(a_run({}), claim=8)
        await in_time(started.wait())
        ref = work_pb2.AttemptRef(run_id=uuid.UUID(int=1).bytes, attempt=1, claim_id=8)
        stream.say(cancel=work_pb2.CancelAttempts(attempts=[ref]))
        assert (await the_result(stream)).outcome == work_pb2.ATTEMPT_OUTCOME_CANCELLED
    said = f"run {uuid.UUID(int=1)} of sync stopped in attempt 1: CANCELLED"
    assert ("carillon", logging.INFO, said) in caplog.record_tuples


async def test_open_jobs_register_and_work(scheduler: ScriptedScheduler, jobs: carillon.Jobs, in_time: Any) -> None:
    @jobs.handler("sync")
    async def sync(payload: Sync, run: carillon.Run) -> dict[str, Any]:
        return {"brand": payload.brand, "rows": payload.rows, "tenant": run.tenant, "source": run.trigger_source}

    async with jobs:
        assert (await in_time(scheduler.registrations.get())).service == "kpi-service"
        stream = await welcomed(scheduler)
        hello = await stream.next("hello")
        assert list(hello.routes) == ["handler/kpi-service/sync"]
        assert hello.worker.startswith("kpi-service@")
        stream.assign(a_run({"brand": "acme", "rows": 5}, tenant="t1", trigger_source=3))
        result = await the_result(stream)
        assert json.loads(result.metrics_json) == {"brand": "acme", "rows": 5, "tenant": "t1", "source": "MANUAL"}
    await stream.next("goodbye")


async def test_a_bad_payload_fails_the_run_by_name(scheduler: ScriptedScheduler, jobs: carillon.Jobs) -> None:
    @jobs.handler("sync")
    async def sync(payload: Sync) -> None: ...

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        stream.assign(a_run({"brnd": "acme"}))
        result = await the_result(stream)
    assert result.error.code == "BAD_PAYLOAD"
    assert result.error.message == "payload has the unknown key 'brnd'; allowed are: brand, rows"


async def test_a_plain_function_runs_in_a_thread_and_sees_that_it_is_cancelled(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs
) -> None:
    going = threading.Event()

    @jobs.handler("sync")
    def sync(run: carillon.Run) -> None:
        assert threading.current_thread() is not threading.main_thread()
        run.progress(1, 2, "waiting")
        with run.item("first"):
            going.set()
        while True:
            run.check()

    async with carillon.Worker(jobs) as worker:
        stream = await welcomed(scheduler)
        stream.assign(a_run({}), claim=8)
        assert [item.key for item in (await stream.next("items")).results] == ["first"]
        assert (await stream.next("progress")).reports[0].progress.message == "waiting"
        assert worker.state().running == 1
        ref = work_pb2.AttemptRef(run_id=uuid.UUID(int=1).bytes, attempt=1, claim_id=8)
        stream.say(cancel=work_pb2.CancelAttempts(attempts=[ref]))
        result = await the_result(stream)
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_CANCELLED
    assert result.items.succeeded == 1


async def test_a_plain_function_keeps_its_slot_until_it_ends(scheduler: ScriptedScheduler, jobs: carillon.Jobs) -> None:
    may_end = threading.Event()

    @jobs.handler("sync")
    def sync(run: carillon.Run) -> None:
        may_end.wait(20)

    async with carillon.Worker(jobs, concurrency=1) as worker:
        stream = await welcomed(scheduler)
        run = a_run({})
        run.attempt_timeout.FromMilliseconds(10)
        run.cancel_grace.FromMilliseconds(10)
        stream.assign(run)
        result = await the_result(stream)
        assert result.error.code == "ATTEMPT_TIMEOUT"
        assert worker.state().running == 1
        assert stream.granted == 1
        may_end.set()
        assert await stream.credit(2) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "the handler returned int; return None, a mapping of metrics, or carillon.Completed(...)"),
        ({"a": {1, 2}}, "metrics cannot be written as JSON: Object of type set is not JSON serializable"),
    ],
)
async def test_a_bad_return_value_is_named(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, value: object, message: str
) -> None:
    @jobs.handler("sync")
    async def sync() -> Any:
        return value

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        stream.assign(a_run({}))
        result = await the_result(stream)
    assert (result.error.code, result.error.message) == ("BAD_RESULT", message)


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_handler_that_exits_does_not_take_the_worker_with_it(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, is_async: bool
) -> None:
    if is_async:

        @jobs.handler("sync")
        async def sync() -> None:
            raise SystemExit(3)
    else:

        @jobs.handler("sync")
        def plain_sync() -> None:
            raise SystemExit(3)

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        stream.assign(a_run({}))
        result = await the_result(stream)
    assert (result.error.code, result.error.message) == ("HANDLER_ERROR", "the handler called sys.exit(3)")


async def test_what_a_handler_reports_goes_with_its_result(scheduler: ScriptedScheduler, jobs: carillon.Jobs) -> None:
    @jobs.handler("sync")
    async def sync() -> carillon.Completed:
        return carillon.Completed(items=carillon.ItemCounts(10, 9, 1), metrics={"rows": 10}, metadata={"file": "a.csv"})

    async with carillon.Worker(jobs):
        stream = await welcomed(scheduler)
        stream.assign(a_run({}))
        result = await the_result(stream)
    assert (result.items.processed, result.items.succeeded, result.items.failed) == (10, 9, 1)
    assert json.loads(result.metrics_json) == {"rows": 10}
    assert json.loads(result.metadata_json) == {"file": "a.csv"}


async def test_sigterm_drains_the_worker(scheduler: ScriptedScheduler, jobs: carillon.Jobs, in_time: Any) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @jobs.handler("sync")
    async def sync() -> None:
        started.set()
        await may_end.wait()

    working = asyncio.ensure_future(carillon.Worker(jobs).run(handle_signals=True))
    stream = await welcomed(scheduler)
    stream.assign(a_run({}))
    await in_time(started.wait())
    os.kill(os.getpid(), signal.SIGTERM)
    stream.assign(a_run({}, run_id=uuid.UUID(int=2).bytes))
    returned = await stream.next("results")
    may_end.set()
    stream.acknowledge(returned)
    completed = await the_result(stream)
    await stream.next("goodbye")
    await in_time(working)
    assert [result.outcome for result in returned.results] == [work_pb2.ATTEMPT_OUTCOME_RETURNED]
    assert completed.outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED


def test_a_worker_without_handlers_is_refused() -> None:
    with pytest.raises(ValueError, match="declares no handler"):
        carillon.Worker(carillon.Jobs("kpi-service"))
