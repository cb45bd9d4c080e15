"""Registering jobs, against a scripted scheduler."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import carillon
import grpc
import pytest
from carillon.tls import Tls
from carillon.v1 import work_pb2
from google.rpc import error_details_pb2

from tests.ports import lasting_port
from tests.rpc.client.jobs_case import a_run, logged, nothing_to_do, the_result, welcomed

if TYPE_CHECKING:
    from tests.rpc.client.conftest import ScriptedScheduler


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
    assert not await registration.first_answer()
    [record] = [each for each in caplog.records if (each.name, each.levelno) == ("carillon", logging.ERROR)]
    assert "generation 4 is registered" in record.getMessage()
    await registration.stop()


async def test_serving_ends_with_a_refusal_that_no_retry_heals(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any, in_time: Any
) -> None:
    scheduler.refusals.append(refused(grpc.StatusCode.INVALID_ARGUMENT, "jobs[0].timing.cron: wrong", "INVALID_FIELDS"))
    with pytest.raises(carillon.InvalidRequest, match=r"jobs\[0\].timing.cron"):
        await in_time(jobs.serve())


async def test_a_scheduler_that_does_not_answer_keeps_no_worker_back(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, in_time: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carillon.registration.ANSWER_SECONDS", 0.01)
    jobs.handler("sync")(nothing_to_do)
    scheduler.may_answer.clear()
    async with jobs:
        await in_time(scheduler.registrations.get())
        await (await welcomed(scheduler)).next("hello")


async def test_the_worker_waits_for_the_first_answer(
    scheduler: ScriptedScheduler,
    jobs: carillon.Jobs,
    start_session: Any,
    in_time: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("carillon.registration.ANSWER_SECONDS", 60.0)
    jobs.handler("sync")(nothing_to_do)
    scheduler.may_answer.clear()
    async with jobs:
        await in_time(scheduler.registrations.get())
        start_session(name="came later")
        assert (await (await welcomed(scheduler)).next("hello")).worker == "came later"
        scheduler.may_answer.set()
        assert (await (await welcomed(scheduler)).next("hello")).worker.startswith("kpi-service@")


async def test_a_service_that_is_refused_at_once_opens_no_stream(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, start_session: Any, refused: Any, in_time: Any
) -> None:
    jobs.handler("sync")(nothing_to_do)
    stale = refused(grpc.StatusCode.FAILED_PRECONDITION, "generation 4 is registered", "STALE_GENERATION")
    scheduler.refusals.append(stale)
    with pytest.raises(carillon.Refused, match="generation 4"):
        await in_time(jobs.serve())
    start_session(name="came later")
    assert (await (await welcomed(scheduler)).next("hello")).worker == "came later"


async def test_a_service_that_is_refused_while_it_works_says_goodbye(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any, in_time: Any
) -> None:
    jobs.handler("sync")(nothing_to_do)
    scheduler.refusals.append(refused(grpc.StatusCode.INTERNAL, "a fault in Carillon", "INTERNAL"))
    scheduler.refusals.append(refused(grpc.StatusCode.FAILED_PRECONDITION, "2 of 2 jobs", "MASS_REMOVAL"))
    with logged() as lines:
        serving = asyncio.ensure_future(jobs.serve())
        while "are not registered: INTERNAL" not in await in_time(lines.get()):
            pass
        scheduler.may_answer.clear()
        stream = await welcomed(scheduler)
        await stream.credit(1)
        scheduler.may_answer.set()
        await stream.next("goodbye")
    with pytest.raises(carillon.Refused, match="2 of 2 jobs"):
        await in_time(serving)


async def test_a_worker_that_may_not_open_ends(scheduler: ScriptedScheduler, jobs: carillon.Jobs, in_time: Any) -> None:
    jobs.handler("sync")(nothing_to_do)

    async def never() -> bool:
        return False

    await in_time(carillon.Worker(jobs, opens_if=never).run())
    assert scheduler.streams.empty()


async def test_open_jobs_work_although_they_are_refused(
    scheduler: ScriptedScheduler, jobs: carillon.Jobs, refused: Any
) -> None:
    jobs.handler("sync")(nothing_to_do)
    stale = refused(grpc.StatusCode.FAILED_PRECONDITION, "generation 4 is registered", "STALE_GENERATION")
    scheduler.refusals.append(stale)
    async with jobs:
        stream = await welcomed(scheduler)
        stream.assign(a_run({}))
        assert (await the_result(stream)).outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED


def test_a_target_is_no_url() -> None:
    with pytest.raises(ValueError, match="write host:port, without http://"):
        carillon.Jobs(service="kpi-service", target="http://127.0.0.1:7007")
