"""Registering jobs and carrying out their handlers, against a scripted scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import carillon
import grpc
import pytest
from carillon.tls import Tls
from carillon.v1 import work_pb2
from google.rpc import error_details_pb2

from tests.ports import lasting_port

if TYPE_CHECKING:
    from tests.rpc.client.conftest import ScriptedScheduler


@dataclass
class Sync:
    brand: str
    rows: int = 0


@pytest.fixture
def jobs(scheduler: ScriptedScheduler) -> carillon.Jobs:
    return carillon.Jobs("kpi-service", target=scheduler.target, token="kpi.secret", generation=3)


@contextmanager
def logged() -> Iterator[asyncio.Queue[str]]:
    """What the client logs meanwhile."""
    lines: asyncio.Queue[str] = asyncio.Queue()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.put_nowait(record.getMessage())

    handler = Kept()
    logging.getLogger("carillon").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("carillon").removeHandler(handler)


async def welcomed(scheduler: ScriptedScheduler) -> Any:
    stream = await scheduler.next_stream()
    stream.welcome()
    return stream


async def the_result(stream: Any) -> Any:
    results = await stream.next("results")
    stream.acknowledge(results)
    [result] = results.results
    return result


async def test_registering_sends_the_whole_manifest(scheduler: ScriptedScheduler, jobs: carillon.Jobs) -> None:
    jobs.endpoint("digest", "http://x/digest", cron="@daily")
    response = await jobs.register(validate_only=True)
    request = scheduler.registrations.get_nowait()
    assert response.generation == 3
    assert (request.service, request.generation, request.validate_only) == ("kpi-service", 3, True)
    assert [job.job for job in request.jobs] == ["digest"]


async def test_a_refused_manifest_names_every_wrong_field(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any
) -> None:
    wrong = [("jobs[0].timing.cron", "is no cron expression"), ("jobs[0].timing.time_zone", "is no time zone")]
    scheduler.refusals.append(refused(grpc.StatusCode.INVALID_ARGUMENT, "2 fields are wrong", "INVALID_FIELDS", wrong))
    with pytest.raises(carillon.InvalidRequest) as raised:
        await jobs.register()
    error = raised.value
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert error.violations == tuple(carillon.Violation(*violation) for violation in wrong)
    assert str(error) == (
        "INVALID_ARGUMENT (INVALID_FIELDS): 2 fields are wrong\n"
        "  - jobs[0].timing.cron: is no cron expression\n"
        "  - jobs[0].timing.time_zone: is no time zone"
    )


async def test_a_service_starts_before_its_scheduler(
    scheduler: ScriptedScheduler, in_time: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await scheduler.stop()
    port = lasting_port()
    jobs = carillon.Jobs("kpi-service", target=f"127.0.0.1:{port}", token="kpi.secret", generation=3)
    with logged() as lines:
        registration = jobs.register_in_background()
        await in_time(lines.get())
    assert scheduler.registrations.empty()
    await scheduler.start(port)
    response = await in_time(registration.wait())
    assert response.generation == 3
    assert caplog.text.count("the jobs of kpi-service are not registered: UNAVAILABLE") == 1
    await registration.stop()


async def test_a_file_that_is_away_for_a_moment_does_not_end_it(
    scheduler: ScriptedScheduler, tmp_path: Path, in_time: Any
) -> None:
    jobs = carillon.Jobs("kpi-service", target=scheduler.target, token="t.secret", tls=Tls(ca=tmp_path / "ca.pem"))
    with logged() as lines:
        registration = jobs.register_in_background()
        assert "are not registered yet" in await in_time(lines.get())
        (tmp_path / "ca.pem").write_text("half of it")
        assert "are not registered yet" in await in_time(lines.get()), "it is told again when the reason is another"
        await registration.stop()


async def test_a_rate_limit_is_waited_for_as_the_scheduler_asks(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any, in_time: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for wait in (0.2, 0.3):
        status = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"too often; again in {wait} s", "RATE_LIMITED")
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay={"nanos": int(wait * 1e9)}))
        scheduler.refusals.append(status)
    began = time.monotonic()
    registration = jobs.register_in_background()
    assert (await in_time(registration.wait())).generation == 3
    assert time.monotonic() - began > 0.5
    assert scheduler.registrations.qsize() == 3
    assert [record.levelname for record in caplog.records if "are not registered" in record.getMessage()] == ["WARNING"]
    await registration.stop()


async def test_a_rate_limit_has_an_error_of_its_own(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any
) -> None:
    scheduler.refusals.append(refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too often", "RATE_LIMITED"))
    with pytest.raises(carillon.RateLimited, match="too often"):
        await jobs.register()
    scheduler.refusals.append(refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the message is too large"))
    with pytest.raises(carillon.CarillonError) as large:
        await jobs.register()
    assert not isinstance(large.value, carillon.RateLimited)


async def test_a_refusal_that_no_retry_heals_ends_the_background_registration(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any, in_time: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler.refusals.append(
        refused(grpc.StatusCode.FAILED_PRECONDITION, "generation 4 is registered", "STALE_GENERATION")
    )
    registration = jobs.register_in_background()
    with pytest.raises(carillon.Refused) as raised:
        await in_time(registration.wait())
    assert raised.value.reason == "STALE_GENERATION"
    assert scheduler.registrations.qsize() == 1
    [record] = [each for each in caplog.records if (each.name, each.levelno) == ("carillon", logging.ERROR)]
    assert "generation 4 is registered" in record.getMessage()
    await registration.stop()


async def test_serving_ends_with_a_refusal_that_no_retry_heals(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any, in_time: Any
) -> None:
    scheduler.refusals.append(refused(grpc.StatusCode.INVALID_ARGUMENT, "jobs[0].timing.cron: wrong", "INVALID_FIELDS"))
    with pytest.raises(carillon.InvalidRequest, match=r"jobs\[0\].timing.cron"):
        await in_time(jobs.serve())


def test_a_target_is_no_url() -> None:
    with pytest.raises(ValueError, match="write host:port, without http://"):
        carillon.Jobs(service="kpi-service", target="http://127.0.0.1:7007")


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


def a_run(payload: dict[str, Any], **fields: Any) -> work_pb2.Assignment:
    given: dict[str, Any] = {"run_id": uuid.UUID(int=1).bytes, "attempt": 1, "max_attempts": 3, "tenant": "-"}
    run = work_pb2.Assignment(
        **{**given, **fields}, job="services/kpi-service/jobs/sync", payload_json=json.dumps(payload)
    )
    run.attempt_timeout.FromSeconds(60)
    run.cancel_grace.FromSeconds(30)
    return run
