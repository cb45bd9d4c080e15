"""What costs two bytes to send and a hundred to decode: refused before it is, whoever sends it, packed or not."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import psutil
import pytest
from carillon.v1 import registry_service_pb2, schedule_service_pb2, worker_service_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from scheduler_service.domain.fields import MAX_JSON_BYTES
from scheduler_service.rpc.methods import ACTIONS, most_bytes
from scheduler_service.rpc.requests import MOST_FIELDS
from scheduler_service.rpc.wire import has_more_fields, plan_of
from tests.conftest import DatabaseUrls
from tests.security.schedulers import EMAIL_TOKEN, scheduler

MIB = 1024 * 1024
PATIENCE = 60.0
AT_ONCE = 8
MANIFEST: Descriptor = registry_service_pb2.RegisterJobsRequest.DESCRIPTOR
EMPTY_JOB = b"\x1a\0"
# In a process of its own, since what it takes and how long it works must not count.
CALLER = """
import sys, grpc
port, packed, token, size = sys.argv[1], sys.argv[2] == "True", sys.argv[3], int(sys.argv[4])
packing = grpc.Compression.Gzip if packed else grpc.Compression.NoCompression
call = grpc.insecure_channel("127.0.0.1:" + port, compression=packing).unary_unary(
    "/carillon.v1.RegistryService/RegisterJobs"
)
metadata = [("x-service-token", token)] if token else []
calls = [call.future(b"\\x1a\\0" * (size // 2), metadata=metadata, timeout=60) for _ in range(int(sys.argv[5]))]
print(*{call.exception().code().name for call in calls})
"""


@dataclass
class Cost:
    """`bytes` of memory, and the longest that others waited for what this process did (seconds of its processor time:
    how long it waited for a processor itself says how busy the machine is)."""

    bytes: int = 0
    waited: float = 0.0


@asynccontextmanager
async def watching() -> AsyncIterator[Cost]:
    cost, process = Cost(), psutil.Process()
    before = process.memory_info().rss

    async def watch() -> None:
        while True:
            began = time.process_time()
            await asyncio.sleep(0.005)  # what is done before this comes back is what is measured
            cost.waited = max(cost.waited, time.process_time() - began)
            cost.bytes = max(cost.bytes, process.memory_info().rss - before)

    watching = asyncio.create_task(watch())
    yield cost
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def called(port: int, token: str, size: int, *, packed: bool) -> str:
    arguments = (str(port), str(packed), token, str(size), str(AT_ONCE))
    caller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALLER, *arguments, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE):
        said, _ = await caller.communicate()
    return said.decode().strip()


def seconds_to_decode() -> float:
    """Once. All of them used to be."""
    body = EMPTY_JOB * (4 * MIB - 50)
    began = time.process_time()
    registry_service_pb2.RegisterJobsRequest.FromString(body)
    return time.process_time() - began


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("token", "size", "answer", "most_mib"),
    [
        ("", 8 * MIB - 100, "UNAUTHENTICATED", 60),
        (EMAIL_TOKEN, 8 * MIB - 100, "INVALID_ARGUMENT", 250),
        (EMAIL_TOKEN, 250 * 1024, "INVALID_ARGUMENT", 250),
    ],
    ids=["anonymous", "service", "uncounted"],
)
async def test_millions_of_empty_jobs_cost_little(
    database_urls: DatabaseUrls, token: str, size: int, answer: str, most_mib: int, packed: bool
) -> None:
    one = seconds_to_decode()
    async with scheduler(database_urls) as app, watching() as cost:
        assert await called(app.port, token, size, packed=packed) == answer
    assert cost.bytes < most_mib * MIB
    assert cost.waited < 4 * one


# How fields are counted.


def manifest(jobs: int, **job: object) -> bytes:
    request = registry_service_pb2.RegisterJobsRequest(service="s")
    for _ in range(jobs):
        request.jobs.add(**job)
    return request.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (manifest(0), 1),
        (manifest(3), 4),
        (manifest(2, labels={"a": "b", "c": "d"}), 1 + 2 * (1 + 2)),
        (manifest(1, job="x" * 300, timing={"cron": "* * * * *"}), 1 + 1 + 2),
        # A list of two in a list: fields, key, value, list, its two.
        (manifest(1, config={"k": [[], 1]}), 1 + 1 + 1 + 1 + 1 + 1 + 1 + 2 + 2),
    ],
)
def test_fields_are_counted_wherever_there_may_be_many(body: bytes, fields: int) -> None:
    plan = plan_of(MANIFEST)
    assert not has_more_fields(body, plan, fields)
    assert has_more_fields(body, plan, fields - 1)


def test_what_a_worker_sends_is_counted_entry_by_entry() -> None:
    plan = plan_of(worker_service_pb2.WorkRequest.DESCRIPTOR)
    body = b"\x32\xd0\x0f" + b"\x0a\0" * 1000  # 1,000 empty results
    assert len(worker_service_pb2.WorkRequest.FromString(body).results.results) == 1000
    assert has_more_fields(body, plan, 1000)
    assert not has_more_fields(body, plan, 1001)


def test_any_document_that_may_be_stored_may_be_sent() -> None:
    densest = Struct()
    densest.update({"": [0] * ((MAX_JSON_BYTES - len('{"":[0]}')) // 2)})
    request = schedule_service_pb2.PutScheduleRequest()
    request.schedule.config.CopyFrom(densest)
    body = request.SerializeToString()
    assert len(body) < most_bytes("/carillon.v1.ScheduleService/PutSchedule")
    assert not has_more_fields(body, plan_of(request.DESCRIPTOR), MOST_FIELDS)


@pytest.mark.parametrize(
    "body",
    [
        b"\x1a",
        b"\x1a\x05\x0a",
        b"\x1a\x03\x42\x05\x0a",
        b"\x10",
        b"\x10\x80",
        b"\x09abc",
        b"\x0dabc",
        b"\x10" + b"\xff" * 10 + b"\x01",
        b"\x0b",
    ],
)
def test_bytes_that_are_no_fields_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        has_more_fields(body, plan_of(MANIFEST), 100)


def test_only_manifests_and_work_may_be_very_large() -> None:
    assert {method for method in ACTIONS if most_bytes(method) > 2 * MIB} == {
        "/carillon.v1.RegistryService/RegisterJobs",
        "/carillon.v1.WorkerService/Work",
    }
    assert most_bytes("/grpc.health.v1.Health/Check") == 4096
