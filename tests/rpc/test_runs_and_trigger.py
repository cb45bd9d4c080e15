"""RunService and the triggering half of JobService over a real server: names, statuses, exact values."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import jwt
import psycopg
import pytest
from carillon.v1 import job_service_pb2, job_service_pb2_grpc, run_pb2, run_service_pb2, run_service_pb2_grpc
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.run import RunState, run_name
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.runs import RunService
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups
from tests import builders, canary
from tests.builders import MadeJob
from tests.conftest import DatabaseUrls
from tests.credentials import accepting

_JWT_SECRET = canary.secret("jwt")
_SERVICE_SECRET = canary.secret("t1")


def bearer(**claims: str) -> tuple[tuple[str, str], ...]:
    now = datetime.now(UTC)
    stamps = {"iat": now, "exp": now + timedelta(hours=12), "iss": "carillon", "aud": "carillon"}
    token = jwt.encode({"sub": "alice", **claims, **stamps}, _JWT_SECRET, algorithm="HS256")
    return (("authorization", f"Bearer {token}"),)


ADMIN = bearer(role="admin")
USER = bearer(tenant="tenant-a")
SERVICE = (("x-service-token", f"t1.{_SERVICE_SECRET}"),)


@dataclass(frozen=True)
class Api:
    """Stubs on a server of this test's own, and when one of that server's watchers was freed."""

    runs: run_service_pb2_grpc.RunServiceAsyncStub
    jobs: job_service_pb2_grpc.JobServiceAsyncStub
    freed: asyncio.Event


class ObservedWakeups(Wakeups):
    """Says when a listener is held by nobody any more."""

    def __init__(self) -> None:
        super().__init__()
        self.freed = asyncio.Event()

    def listen(self, *topics: Topic) -> Wakeup:
        wakeup = super().listen(*topics)
        weakref.finalize(wakeup, self.freed.set)
        return wakeup


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    with builders.connect(database_urls.admin) as connection:
        yield connection


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin, config={"limit": 10})


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    wakeups = ObservedWakeups()
    credentials = accepting(f"email-service=t1.{_SERVICE_SECRET}", JwtRules(secret=_JWT_SECRET))
    server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(CollectorRegistry())),))
    run_service_pb2_grpc.add_RunServiceServicer_to_server(RunService(database, wakeups), server)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(database, wakeups), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Api(
            run_service_pb2_grpc.RunServiceStub(channel), job_service_pb2_grpc.JobServiceStub(channel), wakeups.freed
        )
    await server.stop(grace=None)


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    """A refusal's ErrorInfo, and the fields that it calls wrong."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # an aio error has all that is read of a call
    assert status is not None
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    return info, [violation.field for violation in request.field_violations]


async def test_a_run_is_triggered_read_listed_and_cancelled(api: Api, job: MadeJob) -> None:
    payload = Struct()
    payload.update({"limit": 3, "note": "now"})
    triggered = await api.jobs.TriggerJob(
        job_service_pb2.TriggerJobRequest(name=job.name, payload=payload, labels={"why": "test"}), metadata=ADMIN
    )
    (made,) = triggered.runs
    assert made.job == job.name
    assert made.state == run_pb2.RUN_STATE_PENDING
    assert made.trigger_source == run_pb2.TRIGGER_SOURCE_MANUAL
    assert made.triggered_by == "admin:alice"
    assert (made.payload["limit"], made.payload["note"], dict(made.labels)) == (3, "now", {"why": "test"})
    got = await api.runs.GetRun(run_service_pb2.GetRunRequest(name=made.name), metadata=SERVICE)
    assert got.run == made
    listed = await api.runs.ListRuns(
        run_service_pb2.ListRunsRequest(job=job.name, states=[run_pb2.RUN_STATE_PENDING]), metadata=ADMIN
    )
    assert list(listed.runs) == [made]
    cancelled = await api.runs.CancelRun(run_service_pb2.CancelRunRequest(name=made.name), metadata=ADMIN)
    assert cancelled.run.state == run_pb2.RUN_STATE_CANCELLED
    stats = await api.jobs.GetJobStats(job_service_pb2.GetJobStatsRequest(name=job.name), metadata=ADMIN)
    assert (stats.cancelled, stats.completed, stats.last_state) == (1, 0, run_pb2.RUN_STATE_CANCELLED)


async def test_a_repeated_request_gets_the_same_answer_and_a_taken_key_names_the_run(api: Api, job: MadeJob) -> None:
    request = job_service_pb2.TriggerJobRequest(
        name=job.name, tenants=["tenant-b", "tenant-a"], run_key="order-1", request_id="r-1"
    )
    first = await api.jobs.TriggerJob(request, metadata=SERVICE)
    assert [run.tenant for run in first.runs] == ["tenant-b", "tenant-a"]
    assert await api.jobs.TriggerJob(request, metadata=SERVICE) == first
    request.request_id = "r-2"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.jobs.TriggerJob(request, metadata=SERVICE)
    info, _ = details(refused.value)
    assert (refused.value.code(), info.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RUN_KEY_TAKEN")
    assert info.metadata["run"] == first.runs[1].name
    request.request_id, request.test = "r-1", True
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.jobs.TriggerJob(request, metadata=SERVICE)
    assert details(refused.value)[0].reason == "REQUEST_ID_REUSED"


async def test_a_field_of_a_newer_client_is_refused(api: Api, job: MadeJob) -> None:
    unknown = bytes([0xF8, 0x3F, 0x01])  # field 1023, varint 1
    request = job_service_pb2.TriggerJobRequest.FromString(
        job_service_pb2.TriggerJobRequest(name=job.name).SerializeToString() + unknown
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.jobs.TriggerJob(request, metadata=ADMIN)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_an_ended_run_reported_arrives_exactly(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    at = datetime.now(UTC) - timedelta(hours=1)
    run_id = builders.make_ended_run(
        admin,
        job,
        at=at,
        duration=timedelta(seconds=1, microseconds=1),
        metrics={"count": 2**53, "id": 2**53 + 1, "ratio": 0.1, "deep": {"id": 2**64 + 1}},
        metadata={"nothing": None, "yes": True},
        items_processed=3,
        items_succeeded=2,
        items_failed=1,
    )
    run = (await api.runs.GetRun(run_service_pb2.GetRunRequest(name=run_name(run_id)), metadata=ADMIN)).run
    assert run.create_time.ToDatetime(tzinfo=UTC) == at
    assert run.duration.ToTimedelta() == timedelta(seconds=1, microseconds=1)
    assert (run.metrics["count"], run.metrics["id"], run.metrics["ratio"]) == (2**53, str(2**53 + 1), 0.1)
    assert run.metrics.fields["deep"].struct_value["id"] == str(2**64 + 1)
    assert (run.metadata["nothing"], run.metadata["yes"]) == (None, True)
    assert (run.items.processed, run.items.succeeded, run.items.failed) == (3, 2, 1)


async def test_attempts_and_items_are_listed(api: Api, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    run_id = builders.make_ended_run(admin, job, RunState.COMPLETED, attempt=3)
    for attempt in (1, 2):
        builders.make_attempt(admin, run_id, job, attempt)
    for key in ("a", "b", "c"):
        builders.make_item(admin, run_id, job, key, attempt=3, succeeded=key != "b")
    builders.make_item(admin, run_id, job, "old", attempt=2)
    name = run_name(run_id)
    answer = await api.runs.ListAttempts(run_service_pb2.ListAttemptsRequest(name=name), metadata=ADMIN)
    assert [(attempt.attempt, attempt.state, attempt.error.code) for attempt in answer.attempts] == [
        (1, run_pb2.RUN_STATE_FAILED, "HANDLER_ERROR"),
        (2, run_pb2.RUN_STATE_FAILED, "HANDLER_ERROR"),
        (3, run_pb2.RUN_STATE_COMPLETED, ""),
    ]
    request = run_service_pb2.ListItemsRequest(name=name, page_size=2)
    first = await api.runs.ListItems(request, metadata=ADMIN)
    request.page_token = first.next_page_token
    second = await api.runs.ListItems(request, metadata=ADMIN)
    assert [item.key for item in (*first.items, *second.items)] == ["a", "b", "c"]
    assert second.next_page_token == ""
    failed = await api.runs.ListItems(run_service_pb2.ListItemsRequest(name=name, failed_only=True), metadata=ADMIN)
    assert [item.key for item in failed.items] == ["b"]


async def test_a_page_of_long_errors_is_one_that_a_client_accepts(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_ended_run(admin, job)
    for n in range(1000):
        builders.make_item(admin, run_id, job, f"{n:04}", succeeded=False, error="x" * 4096)
    request = run_service_pb2.ListItemsRequest(name=run_name(run_id), page_size=1000)
    first = await api.runs.ListItems(request, metadata=ADMIN)
    request.page_token = first.next_page_token
    second = await api.runs.ListItems(request, metadata=ADMIN)
    assert [item.key for item in (*first.items, *second.items)] == [f"{n:04}" for n in range(1000)]


async def test_pages_of_the_largest_payloads_are_ones_that_a_client_accepts(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    payload = {"ones": [1] * 80_000}
    made = [builders.make_ended_run(admin, job, payload=payload, at=builders.days_ago(n / 100)) for n in range(4)]
    request, seen = run_service_pb2.ListRunsRequest(), []
    while True:
        page = await api.runs.ListRuns(request, metadata=ADMIN)
        seen += [run.name for run in page.runs]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == [run_name(run_id) for run_id in made]


async def test_a_pending_run_shows_its_earlier_attempts_only(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job, attempt=2)
    builders.make_attempt(admin, run_id, job, 1)
    builders.make_item(admin, run_id, job, "a")
    name = run_name(run_id)
    answer = await api.runs.ListAttempts(run_service_pb2.ListAttemptsRequest(name=name), metadata=ADMIN)
    assert [attempt.attempt for attempt in answer.attempts] == [1]
    items = await api.runs.ListItems(run_service_pb2.ListItemsRequest(name=name), metadata=ADMIN)
    assert [item.key for item in items.items] == ["a"]


async def test_pages_go_on_with_the_same_filters_only(api: Api, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    made = [builders.make_ended_run(admin, job, at=builders.days_ago(n / 100)) for n in range(5)]
    request = run_service_pb2.ListRunsRequest(job="services/email-service/jobs/-", page_size=3)
    first = await api.runs.ListRuns(request, metadata=ADMIN)
    request.page_token = first.next_page_token
    second = await api.runs.ListRuns(request, metadata=ADMIN)
    assert [run.name for run in (*first.runs, *second.runs)] == [run_name(run_id) for run_id in made]
    assert second.next_page_token == ""
    for changed, caller in ((run_service_pb2.ListRunsRequest(tenant="-"), ADMIN), (request, SERVICE)):
        changed.page_token = first.next_page_token
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.runs.ListRuns(changed, metadata=caller)
        assert details(refused.value)[1] == ["page_token"]


async def test_every_wrong_filter_is_named(api: Api) -> None:
    request = run_service_pb2.ListRunsRequest(
        job="services/UPPER/jobs/x",
        tenant="no spaces",
        labels={"a b": "c"},
        states=[run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_UNSPECIFIED, 99],  # type: ignore[list-item] # as sent by a newer client
        origin="o" * 64,
        since=Timestamp(seconds=10**15),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.runs.ListRuns(request, metadata=ADMIN)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused.value)[1] == [
        "job",
        "tenant",
        "labels['a b']",
        "origin",
        "states[1]",
        "states[2]",
        "since",
    ]


@pytest.mark.parametrize("name", ["", "runs/", "runs/x", "run/0193-", "runs/{0}/x", "runs/urn:uuid:{0}", "{0}"])
async def test_a_name_that_is_no_runs_is_refused(api: Api, name: str) -> None:
    request = run_service_pb2.GetRunRequest(name=name.format("0193f0a0-0000-7000-8000-000000000000"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.runs.GetRun(request, metadata=ADMIN)
    assert details(refused.value)[1] == ["name"]


async def test_not_there_and_not_yours_are_the_same(api: Api, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    of_b = run_name(builders.make_ended_run(admin, job, tenant="tenant-b"))
    missing = "runs/0193f0a0-0000-7000-8000-000000000000"
    said = set()
    for name in (of_b, missing):
        for call in (
            api.runs.GetRun(run_service_pb2.GetRunRequest(name=name), metadata=USER),
            api.runs.ListAttempts(run_service_pb2.ListAttemptsRequest(name=name), metadata=USER),
            api.runs.ListItems(run_service_pb2.ListItemsRequest(name=name), metadata=USER),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            said.add((refused.value.code(), refused.value.details(), details(refused.value)[0].reason))
    assert {code for code, _, _ in said} == {grpc.StatusCode.NOT_FOUND}
    assert len(said) == 1


async def test_nobody_anonymous_sees_or_starts_anything(api: Api, job: MadeJob) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.runs.ListRuns(run_service_pb2.ListRunsRequest())
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.jobs.TriggerJob(job_service_pb2.TriggerJobRequest(name=job.name))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_watch_streams_a_run_to_its_outcome(api: Api, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    run_id = builders.make_live_run(admin, job)
    states = []
    async with asyncio.timeout(60):
        async for seen in api.runs.WatchRuns(run_service_pb2.WatchRunsRequest(run=run_name(run_id)), metadata=SERVICE):
            states.append(seen.run.state)
            if seen.run.state == run_pb2.RUN_STATE_PENDING:
                builders.claim(admin, run_id, builders.make_session(admin))
            elif seen.run.state == run_pb2.RUN_STATE_RUNNING:
                builders.finish(admin, run_id)
    assert states == [run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_COMPLETED]


async def test_watching_nothing_is_refused(api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(api.runs.WatchRuns(run_service_pb2.WatchRunsRequest(), metadata=ADMIN)))
    assert details(refused.value)[1] == ["scope"]


async def test_a_watch_ends_unavailable_when_the_database_goes(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    builders.make_live_run(admin, job)
    watch = aiter(api.runs.WatchRuns(run_service_pb2.WatchRunsRequest(job=job.name), metadata=ADMIN))
    await anext(watch)
    builders.cut_off_the_api(admin)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(anext(watch), 60)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watcher_that_goes_away_leaves_nothing_behind(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    builders.make_live_run(admin, job)
    call = api.runs.WatchRuns(run_service_pb2.WatchRunsRequest(job=job.name), metadata=ADMIN)
    await anext(aiter(call))
    assert not api.freed.is_set()
    call.cancel()
    await asyncio.wait_for(api.freed.wait(), 60)
    held = admin.execute(
        "select count(*) from pg_stat_activity where usename = 'carillon_api' and state like '%in transaction%'"
    ).fetchone()
    assert held == (0,)
