"""Requests that are no message, or far too large a one, are refused with a sentence, as other wrong input is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from carillon.v1 import (
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    run_service_pb2_grpc,
    schedule_service_pb2,
    work_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from google.protobuf.struct_pb2 import Struct
from prometheus_client import CollectorRegistry

from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.domain.errors import InvalidInput
from scheduler_service.domain.fields import MAX_JSON_BYTES, Violations, check_json
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.decode_runs import trigger_request
from scheduler_service.rpc.job_messages import read_manifest, read_overrides
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.runs import RunService
from scheduler_service.rpc.schedule_messages import read_schedule
from scheduler_service.rpc.structs import read_struct
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import canary
from tests.rpc.work.rig import Replica

_SECRET = canary.secret("t1")
_SERVICE = (("x-service-token", f"t1.{_SECRET}"),)
_BAD_BYTES = {
    "garbage": b"\xff" * 100,
    "a surrogate in a text": b"\x0a\x03\xed\xa0\x80",
    "cut off": b"\x0a\x7fx",
}


@pytest.fixture
async def channel(database: Database) -> AsyncIterator[grpc.aio.Channel]:
    credentials = Credentials(
        ServiceTokens(parse_service_tokens(f"email-service=t1.{_SECRET}")), JwtVerifier(JwtRules())
    )
    server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(CollectorRegistry())),))
    wakeups = Wakeups()
    job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(database, wakeups), server)
    run_service_pb2_grpc.add_RunServiceServicer_to_server(RunService(database, wakeups), server)
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(Replica(database).service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(grace=None)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(60):
        return await call.code(), await call.details()


@pytest.mark.parametrize("body", _BAD_BYTES.values(), ids=_BAD_BYTES.keys())
async def test_bytes_that_are_no_message_are_wrong_input(channel: grpc.aio.Channel, body: bytes) -> None:
    trigger: Any = channel.unary_unary("/carillon.v1.JobService/TriggerJob")
    watch: Any = channel.unary_stream("/carillon.v1.RunService/WatchRuns")
    for call in (trigger(body, metadata=_SERVICE), watch(body, metadata=_SERVICE)):
        code, sentence = await refused(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence.startswith("request: its bytes are no message of this method")


@pytest.mark.parametrize("welcomed", [False, True])
async def test_so_they_are_on_a_workers_stream(channel: grpc.aio.Channel, welcomed: bool) -> None:
    call: Any = channel.stream_stream("/carillon.v1.WorkerService/Work")(metadata=_SERVICE)
    if welcomed:
        hello = work_pb2.Hello(session_id=uuid4().bytes, worker="w", routes=["handler/email-service/j"], client="raw")
        await call.write(worker_service_pb2.WorkRequest(hello=hello).SerializeToString())
        await call.read()
    await call.write(_BAD_BYTES["garbage"])
    code, sentence = await refused(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "its bytes are no message" in sentence


def too_large() -> Struct:
    struct = Struct()
    struct.update({f"key-{n}": n for n in range(80_000)})
    return struct


def test_a_struct_that_is_far_too_large_is_not_decoded() -> None:
    wrong = Violations()
    assert read_struct(too_large(), "config", wrong) == {}
    assert [violation.field for violation in wrong] == ["config"]


def test_no_struct_that_may_be_stored_is_called_too_large() -> None:
    densest = Struct()
    densest.update({"": [0] * ((MAX_JSON_BYTES - len('{"":[0]}')) // 2)})
    wrong = Violations()
    check_json(read_struct(densest, "config", wrong), "config", wrong)
    assert list(wrong) == []


def test_every_struct_of_a_request_is_measured_first() -> None:
    struct, wrong = too_large(), Violations()
    manifest = registry_service_pb2.RegisterJobsRequest()
    manifest.jobs.add().config.CopyFrom(struct)
    read_manifest(manifest, wrong)
    job = job_service_pb2.UpdateJobRequest()
    job.overrides.config.CopyFrom(struct)
    read_overrides(job.overrides, "overrides", wrong)
    put = schedule_service_pb2.PutScheduleRequest()
    put.schedule.config.CopyFrom(struct)
    read_schedule(put.schedule, wrong)
    assert [violation.field for violation in wrong] == ["jobs[0].config", "overrides.config", "schedule.config"]
    with pytest.raises(InvalidInput, match="payload: it has "):
        trigger_request(job_service_pb2.TriggerJobRequest(name="services/s/jobs/j", payload=struct))
