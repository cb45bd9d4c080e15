"""Pausing, resuming and running schedules over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

import grpc
import pytest
from carillon.v1 import job_pb2, job_service_pb2, run_pb2, schedule_pb2
from carillon.v1 import schedule_service_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from tests.rpc.test_definitions import ACME, ADMIN, EMAIL, JOB, Stubs, digest, reason_and_fields, stubs

__all__ = ["stubs"]

NAME = f"{JOB}/tenants/acme/schedules/daily"
SECONDLY = job_pb2.Timing(cron="@every 1s")


async def put(stubs: Stubs) -> schedule_pb2.Schedule:
    await stubs.register(digest(tenant_schedules=True, timing=SECONDLY))
    schedule = schedule_pb2.Schedule(name=NAME, timing=SECONDLY, enabled=True)
    answer = await stubs.schedules.PutSchedule(pb.PutScheduleRequest(schedule=schedule), metadata=ACME)
    return answer.schedule


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return (error.value.code(), *reason_and_fields(error.value))


async def until_something_came_due(stubs: Stubs) -> schedule_pb2.CatchUpPlan:
    """What resuming would catch up, once that is something."""
    request = pb.ResumeScheduleRequest(name=NAME, catch_up=job_pb2.CATCH_UP_ALL, validate_only=True)
    async with asyncio.timeout(60):
        while True:
            answer = await stubs.schedules.ResumeSchedule(request, metadata=ACME)
            assert answer.schedule.HasField("pause_time")
            if answer.catch_up.runs:
                return answer.catch_up


async def test_a_schedule_is_paused_and_resumed_with_what_it_missed(stubs: Stubs) -> None:
    await put(stubs)
    paused = (await stubs.schedules.PauseSchedule(pb.PauseScheduleRequest(name=NAME), metadata=ACME)).schedule
    assert paused.HasField("pause_time")
    assert (paused.enabled, paused.HasField("next_run_time")) == (True, False)
    stored = (await stubs.schedules.GetSchedule(pb.GetScheduleRequest(name=NAME), metadata=ADMIN)).schedule
    assert stored == paused
    said = await until_something_came_due(stubs)
    assert said.first_time.ToNanoseconds() <= said.last_time.ToNanoseconds()
    request = pb.ResumeScheduleRequest(name=NAME, catch_up=job_pb2.CATCH_UP_ALL)
    resumed = await stubs.schedules.ResumeSchedule(request, metadata=ACME)
    assert resumed.catch_up.runs >= said.runs
    assert resumed.catch_up.first_time == said.first_time
    assert not resumed.schedule.HasField("pause_time")
    assert resumed.schedule.HasField("next_run_time")
    again = await stubs.schedules.ResumeSchedule(request, metadata=ACME)
    assert again.catch_up == schedule_pb2.CatchUpPlan()


async def test_a_job_is_resumed_with_what_it_missed_or_by_default_without(stubs: Stubs) -> None:
    await put(stubs)
    pause = job_service_pb2.PauseJobRequest(name=JOB)
    assert (await stubs.jobs.PauseJob(pause, metadata=ADMIN)).job.paused
    plain = job_service_pb2.ResumeJobRequest(name=JOB)
    answer = await stubs.jobs.ResumeJob(plain, metadata=ADMIN)
    assert (answer.job.paused, answer.catch_up) == (False, schedule_pb2.CatchUpPlan())
    await stubs.jobs.PauseJob(pause, metadata=ADMIN)
    ask = job_service_pb2.ResumeJobRequest(name=JOB, catch_up=job_pb2.CATCH_UP_ALL, validate_only=True)
    async with asyncio.timeout(60):
        while not (answer := await stubs.jobs.ResumeJob(ask, metadata=ADMIN)).catch_up.runs:
            assert answer.job.paused
    ask.validate_only = False
    resumed = await stubs.jobs.ResumeJob(ask, metadata=ADMIN)
    assert not resumed.job.paused
    assert resumed.catch_up.runs >= answer.catch_up.runs
    assert resumed.catch_up.runs % 2 == 0  # the job's own, and the tenant's


async def test_a_schedule_is_run_now(stubs: Stubs) -> None:
    await put(stubs)
    payload = Struct()
    payload.update({"only": ["a"]})
    request = pb.RunScheduleRequest(name=NAME, payload=payload, request_id="r-1")
    run = (await stubs.schedules.RunSchedule(request, metadata=ACME)).run
    assert (run.schedule, run.tenant, run.schedule_revision) == (NAME, "acme", 1)
    assert (run.trigger_source, run.state) == (run_pb2.TRIGGER_SOURCE_MANUAL, run_pb2.RUN_STATE_PENDING)
    assert run.payload == payload
    assert (await stubs.schedules.RunSchedule(request, metadata=ACME)).run == run
    request.payload.update({"only": []})
    code, reason, _ = await refused(stubs.schedules.RunSchedule(request, metadata=ACME))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_what_is_wrong_is_refused(stubs: Stubs) -> None:
    await put(stubs)
    schedules = stubs.schedules
    unknown: Any = 9
    calls: Iterable[Awaitable[Any]] = (
        schedules.ResumeSchedule(pb.ResumeScheduleRequest(name=NAME, catch_up=unknown), metadata=ADMIN),
        stubs.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(name=JOB, catch_up=unknown), metadata=ADMIN),
    )
    for call in calls:
        code, _, fields = await refused(call)
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["catch_up"])
    default = f"{JOB}/tenants/acme/schedules/default"
    calls = (
        schedules.PauseSchedule(pb.PauseScheduleRequest(name=default), metadata=ACME),
        schedules.ResumeSchedule(pb.ResumeScheduleRequest(name=default), metadata=ACME),
        schedules.RunSchedule(pb.RunScheduleRequest(name=default), metadata=ACME),
        schedules.RunSchedule(pb.RunScheduleRequest(name=f"{JOB}/tenants/-/schedules/default"), metadata=ACME),
    )
    for call in calls:
        assert (await refused(call))[0] is grpc.StatusCode.NOT_FOUND
    calls = (
        schedules.PauseSchedule(pb.PauseScheduleRequest(name=NAME), metadata=EMAIL),
        schedules.RunSchedule(pb.RunScheduleRequest(name=NAME), metadata=EMAIL),
    )
    for call in calls:
        assert (await refused(call))[0] is grpc.StatusCode.PERMISSION_DENIED
