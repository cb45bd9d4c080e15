"""BackfillJob and what follows it over a real connection: names, numbers, statuses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import jwt
import psycopg
import pytest
from carillon.v1 import (
    backfill_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
)
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.domain.run import parse_run_name
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.registry import RegistryService
from scheduler_service.rpc.runs import RunService
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import builders, canary
from tests.conftest import DatabaseUrls

SECRET = canary.secret("jwt")
EMAIL_TOKEN = canary.token("email-1")
RULES = JwtRules(secret=SECRET)
JOB = "services/email-service/jobs/weekly-digest"
DAY = timedelta(days=1)
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def bearer(**claims: Any) -> tuple[tuple[str, str], ...]:
    now = int(time.time())
    fixed = {"iss": RULES.issuer, "aud": RULES.audience, "iat": now, "exp": now + 43_200}
    return (("authorization", f"Bearer {jwt.encode(fixed | claims, SECRET, 'HS256')}"),)


ADMIN = bearer(sub="alice", **{RULES.role_claim: RULES.admin_role})
EMAIL = (("x-service-token", EMAIL_TOKEN),)


@dataclass
class Api:
    jobs: job_service_pb2_grpc.JobServiceAsyncStub
    runs: run_service_pb2_grpc.RunServiceAsyncStub

    async def backfill(self, **fields: Any) -> backfill_pb2.Backfill:
        request = job_service_pb2.BackfillJobRequest(**({"name": JOB} | fields))
        return (await self.jobs.BackfillJob(request, metadata=ADMIN)).backfill

    async def get(self, name: str) -> backfill_pb2.Backfill:
        request = job_service_pb2.GetBackfillRequest(name=name)
        return (await self.jobs.GetBackfill(request, metadata=ADMIN)).backfill


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    with builders.connect(database_urls.admin) as connection:
        yield connection


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    """With one registered job, at midnight each day."""
    credentials = Credentials(ServiceTokens(parse_service_tokens(f"email-service={EMAIL_TOKEN}")), JwtVerifier(RULES))
    server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(CollectorRegistry())),))
    wakeups = Wakeups()
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryService(database, wakeups), server)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(database, wakeups), server)
    run_service_pb2_grpc.add_RunServiceServicer_to_server(RunService(database, wakeups), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await registry_service_pb2_grpc.RegistryServiceStub(channel).RegisterJobs(
            registry_service_pb2.RegisterJobsRequest(service="email-service", jobs=[midnightly()]), metadata=EMAIL
        )
        yield Api(job_service_pb2_grpc.JobServiceStub(channel), run_service_pb2_grpc.RunServiceStub(channel))
    await server.stop(None)


def midnightly() -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        job="weekly-digest",
        target=job_pb2.Target(http=job_pb2.HttpTarget(endpoint="http://email-service/run")),
        timing=job_pb2.Timing(cron="0 0 * * *", time_zone="UTC"),
        policies=job_pb2.Policies(overlap=job_pb2.OVERLAP_ALLOW_ALL),
    )


def at(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def days(first: int, end: int) -> dict[str, Any]:
    return {"since": at(TODAY - first * DAY), "until": at(TODAY - end * DAY)}


def wrong_fields(error: grpc.aio.AioRpcError) -> list[str]:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # an AioRpcError has what it asks for
    assert status is not None
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    return [violation.field for violation in request.field_violations]


async def test_a_backfill_is_made_tracked_listed_and_cancelled(api: Api, admin: psycopg.Connection[Any]) -> None:
    payload = Struct()
    payload.update({"again": True})
    counted = await api.backfill(**days(4, 0), validate_only=True)
    assert (counted.name, counted.origin, counted.HasField("create_time")) == ("", "", False)
    made = await api.backfill(**days(4, 0), payload=payload)
    assert made.name.startswith(f"{JOB}/backfills/")
    assert made.origin == f"backfills/{made.name.rpartition('/')[2]}"
    assert (made.tenant, made.schedule, made.created_by) == ("-", "", "admin:alice")
    assert (made.since, made.until) == tuple(days(4, 0).values())
    assert (made.occurrences, made.passed_over, made.runs, made.pending) == (4, 0, 4, 4)
    assert (counted.occurrences, counted.passed_over, counted.runs, counted.pending) == (4, 0, 4, 0)
    assert await api.get(made.name) == made

    request = run_service_pb2.ListRunsRequest(job=JOB, origin=made.origin)
    runs = (await api.runs.ListRuns(request, metadata=ADMIN)).runs
    assert [run.scheduled_time for run in runs] == [at(TODAY - day * DAY) for day in range(1, 5)]
    assert {(run.trigger_source, run.state, run.payload["again"]) for run in runs} == {
        (run_pb2.TRIGGER_SOURCE_BACKFILL, run_pb2.RUN_STATE_PENDING, True)
    }
    builders.finish(admin, parse_run_name(runs[0].name))
    answer = await api.jobs.CancelBackfill(
        job_service_pb2.CancelBackfillRequest(name=made.name, reason="enough"), metadata=ADMIN
    )
    cancelled = answer.backfill
    assert (cancelled.pending, cancelled.completed, cancelled.cancelled, cancelled.runs) == (0, 1, 3, 4)
    assert cancelled.HasField("cancel_time")
    assert cancelled.cancelled_by == "admin:alice"
    listed = await api.jobs.ListBackfills(job_service_pb2.ListBackfillsRequest(parent=JOB), metadata=ADMIN)
    assert (list(listed.backfills), listed.next_page_token) == ([cancelled], "")


async def test_pages_follow_each_other(api: Api) -> None:
    made = [await api.backfill(**days(day, day - 1), request_id=f"day-{day}") for day in (1, 2, 3)]
    request = job_service_pb2.ListBackfillsRequest(parent=JOB, page_size=2)
    first = await api.jobs.ListBackfills(request, metadata=ADMIN)
    request.page_token = first.next_page_token
    second = await api.jobs.ListBackfills(request, metadata=ADMIN)
    # Of two within a millisecond, either may be the newer one.
    assert {each.name for each in (*first.backfills, *second.backfills)} == {each.name for each in made}
    assert (len(first.backfills), len(second.backfills), second.next_page_token) == (2, 1, "")


async def test_a_repeated_request_gets_the_same_answer_and_makes_nothing(api: Api) -> None:
    first = await api.backfill(**days(2, 0), request_id="r-1")
    assert await api.backfill(**days(2, 0), request_id="r-1") == first
    assert (await api.backfill(**days(2, 0))).runs == 0
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.backfill(**days(3, 0), request_id="r-1")
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({}, ["since", "until"]),
        ({"since": at(TODAY - DAY)}, ["until"]),
        ({"since": at(TODAY), "until": at(TODAY - DAY)}, ["until"]),
        ({"since": at(TODAY), "until": at(TODAY + 2 * DAY)}, ["until"]),
        ({"since": Timestamp(seconds=-1), "until": at(TODAY)}, ["since"]),
        ({"since": Timestamp(seconds=-(10**12)), "until": at(TODAY)}, ["since"]),
        ({"name": "weekly-digest"} | days(2, 1), ["name"]),
        ({"tenant": "no spaces"} | days(2, 1), ["tenant"]),
    ],
)
async def test_every_wrong_field_is_named(api: Api, asked: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.backfill(**asked)
    assert wrong_fields(refused.value) == fields


async def test_services_may_not_backfill_and_what_is_not_there_is_not_found(api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.jobs.BackfillJob(job_service_pb2.BackfillJobRequest(name=JOB, **days(2, 0)), metadata=EMAIL)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.get(f"{JOB}/backfills/019a0000-0000-7000-8000-000000000001")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.get(f"{JOB}/backfills/1")
    assert wrong_fields(refused.value) == ["name"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.backfill(**days(2, 0), schedule="weekly")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
