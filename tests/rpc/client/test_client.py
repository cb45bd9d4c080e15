"""Both clients for admin and read calls, against a real gRPC server that answers from the test's values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timezone
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from carillon import (
    AlreadyExists,
    Client,
    InvalidRequest,
    Jobs,
    NotFound,
    SchedulerUnavailable,
    blocking,
    calls,
    schedule_calls,
)
from carillon.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class AnsweringScheduler(
    job_service_pb2_grpc.JobServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    run_service_pb2_grpc.RunServiceServicer,
    schedule_service_pb2_grpc.ScheduleServiceServicer,
):
    """Answers what was asked, and remembers it."""

    target: str

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.unavailable = 0
        self.watch_ended = asyncio.Event()

    async def _note(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.unavailable:
            self.unavailable -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    async def GetJob(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        if request.name.endswith("/nothing"):
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such job")
        if request.name.endswith("/slow"):
            await asyncio.Event().wait()
        return job_service_pb2.GetJobResponse(job=job_pb2.Job(name=request.name))

    async def RegisterJobs(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        if request.jobs[-1].job == "refused":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is a job of that name")
        return registry_service_pb2.RegisterJobsResponse(generation=request.generation)

    async def ListJobs(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        page = int(request.page_token or 0)
        return job_service_pb2.ListJobsResponse(
            jobs=[job_pb2.Job(name=f"{request.parent}/jobs/{page}")], next_page_token=str(page + 1) if page < 2 else ""
        )

    async def UpdateJob(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return job_service_pb2.UpdateJobResponse(job=job_pb2.Job(name=request.name, overrides=request.overrides))

    async def TriggerJob(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        if request.run_key:
            status = status_pb2.Status(code=grpc.StatusCode.ALREADY_EXISTS.value[0], message="the key was used")
            status.details.add().Pack(
                error_details_pb2.ErrorInfo(reason="RUN_KEY_TAKEN", domain="carillon", metadata={"run": "runs/1"})
            )
            await context.abort_with_status(rpc_status.to_status(status))
        return job_service_pb2.TriggerJobResponse(runs=[run_pb2.Run(tenant=tenant) for tenant in request.tenants])

    async def PutSchedule(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return schedule_service_pb2.PutScheduleResponse(schedule=request.schedule)

    async def ListRuns(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return run_service_pb2.ListRunsResponse(runs=[run_pb2.Run(name="runs/1")])

    async def WatchRuns(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._note(request, context)
        try:
            for state in (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING):
                yield run_service_pb2.WatchRunsResponse(run=run_pb2.Run(name=request.run, state=state))
            await asyncio.Event().wait()
        finally:
            self.watch_ended.set()


@pytest.fixture
async def scheduler() -> AsyncIterator[AnsweringScheduler]:
    answering = AnsweringScheduler()  # type: ignore[abstract]  # it answers what these tests ask
    server = grpc.aio.server()
    job_service_pb2_grpc.add_JobServiceServicer_to_server(answering, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(answering, server)
    run_service_pb2_grpc.add_RunServiceServicer_to_server(answering, server)
    schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(answering, server)
    answering.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield answering
    await server.stop(None)


OpenClient = Callable[..., AbstractAsyncContextManager[Client]]


class InThreads:
    """The blocking client, to be used as the other one is: each wait is a thread's."""

    def __init__(self, client: blocking.Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if {**vars(calls), **vars(schedule_calls)}[name].__annotations__["return"].startswith("Call["):
            return lambda *args, **options: asyncio.to_thread(method, *args, **options)
        return lambda *args, **options: iterated(method(*args, **options))


async def iterated(blocks: Any) -> AsyncGenerator[Any, None]:
    try:
        while (found := await asyncio.to_thread(next, blocks, None)) is not None:
            yield found
    finally:
        await asyncio.to_thread(blocks.close)


@asynccontextmanager
async def open_blocking(*args: Any, **options: Any) -> AsyncIterator[Client]:
    with blocking.Client(*args, **options) as client:
        yield cast(Client, InThreads(client))


@pytest.fixture(params=[Client, open_blocking], ids=["asyncio", "blocking"])
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Either client: what one does, the other does."""
    return cast(OpenClient, request.param)


@pytest.fixture
async def client(scheduler: Any, open_client: OpenClient) -> AsyncIterator[Client]:
    async with open_client(scheduler.target, token="a.b.c", timeout=20) as opened:
        yield opened


async def test_jobs_are_named_shortly_and_the_token_goes_with_the_call(
    scheduler: AnsweringScheduler, client: Client
) -> None:
    job = await client.get_job("email-service/weekly-digest")
    assert job.name == "services/email-service/jobs/weekly-digest"
    assert (await client.get_job(job.name)).name == job.name
    assert scheduler.metadata["authorization"] == "Bearer a.b.c"
    with pytest.raises(ValueError, match="'weekly-digest' names no job; write 'email-service/weekly-digest'"):
        await client.get_job("weekly-digest")


async def test_lists_run_over_all_pages(scheduler: AnsweringScheduler, client: Client) -> None:
    names = [job.name async for job in client.list_jobs("email-service")]
    assert names == [f"services/email-service/jobs/{page}" for page in range(3)]
    assert [request.page_token for request in scheduler.asked] == ["", "1", "2"]


async def test_only_what_is_named_is_overridden(scheduler: AnsweringScheduler, client: Client) -> None:
    job = await client.update_job("email-service/digest", cron="0 7 * * *", retries=5, config={"limit": 3})
    assert job.overrides.timing.cron == "0 7 * * *"
    assert job.overrides.policies.retry.max_attempts == 6
    assert list(scheduler.asked[0].update_mask.paths) == ["timing.cron", "policies.retry.max_attempts", "config"]


async def test_a_trigger_carries_its_payload_and_an_id_for_safe_repetition(
    scheduler: AnsweringScheduler, client: Client
) -> None:
    runs = await client.trigger_job("email-service/digest", {"limit": 3, "lists": [None, True]}, tenants=["a", "b"])
    assert [run.tenant for run in runs] == ["a", "b"]
    assert dict(scheduler.asked[0].payload.fields)["limit"].number_value == 3
    assert scheduler.asked[0].request_id
    with pytest.raises(ValueError, match=r"payload\.limit is 9007199254740993, beyond"):
        await client.trigger_job("email-service/digest", {"limit": 2**53 + 1})
    assert len(scheduler.asked) == 1


async def test_a_used_run_key_names_its_run(client: Client) -> None:
    with pytest.raises(AlreadyExists) as raised:
        await client.trigger_job("email-service/digest", run_key="order-1")
    assert (raised.value.reason, raised.value.metadata) == ("RUN_KEY_TAKEN", {"run": "runs/1"})


async def test_what_is_not_there_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="there is no such job"):
        await client.get_job("email-service/nothing")


async def test_calls_that_may_be_repeated_are_when_the_scheduler_restarts(
    scheduler: AnsweringScheduler, client: Client
) -> None:
    scheduler.unavailable = 2
    assert (await client.get_job("email-service/digest")).name
    assert len(scheduler.asked) == 3


async def test_a_trigger_is_repeated_under_its_request_id(scheduler: AnsweringScheduler, client: Client) -> None:
    scheduler.unavailable = 1
    await client.trigger_job("email-service/digest")
    [first, second] = scheduler.asked
    assert first.request_id
    assert second == first


async def test_filters_of_runs_are_words(scheduler: AnsweringScheduler, client: Client) -> None:
    since = datetime(2026, 11, 1, tzinfo=timezone.utc)
    runs = [run.name async for run in client.list_runs("kpi-service/meta", states=["failed"], since=since)]
    assert runs == ["runs/1"]
    [request] = scheduler.asked
    assert list(request.states) == [run_pb2.RUN_STATE_FAILED]
    assert request.since.ToDatetime(timezone.utc) == since
    with pytest.raises(ValueError, match="'broken' is none of PENDING, RUNNING, COMPLETED"):
        await anext_of(client.list_runs(states=["broken"]))
    with pytest.raises(ValueError, match="since must say its time zone"):
        await anext_of(client.list_runs(since=datetime(2026, 11, 1)))  # noqa: DTZ001 - the point of it


async def test_a_watch_ends_with_its_reader(scheduler: AnsweringScheduler, client: Client) -> None:
    watch = client.watch_runs(run="0192")
    states = [(await anext_of(watch)).state for _ in range(2)]
    assert states == [run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING]
    await watch.aclose()
    await asyncio.wait_for(scheduler.watch_ended.wait(), 60)


async def test_a_schedule_is_put_with_what_is_named(scheduler: AnsweringScheduler, client: Client) -> None:
    name = "kpi-service/meta"
    stored = await client.put_schedule(name, tenant="acme", enabled=True, cron="@daily", time_zone="Asia/Kolkata")
    assert stored == schedule_pb2.Schedule(
        name="services/kpi-service/jobs/meta/tenants/acme/schedules/default",
        timing=job_pb2.Timing(cron="@daily", time_zone="Asia/Kolkata"),
        enabled=True,
    )
    await client.put_schedule(name, tenant="acme", labels={"brand_id": "7"})
    assert [list(request.update_mask.paths) for request in scheduler.asked] == [
        ["timing.cron", "timing.time_zone", "enabled"],
        ["labels"],
    ]


async def test_nobody_there_is_said_with_the_code(open_client: OpenClient) -> None:
    async with open_client("127.0.0.1:1", service_token="x.y", timeout=20) as client:
        with pytest.raises(SchedulerUnavailable) as raised:
            await client.get_job("email-service/digest")
    assert raised.value.code == "UNAVAILABLE"
    assert "x.y" not in repr(client) + str(raised.value)


async def test_a_call_ends_at_its_deadline(scheduler: AnsweringScheduler, open_client: OpenClient) -> None:
    async with open_client(scheduler.target, timeout=0.2) as client:
        with pytest.raises(SchedulerUnavailable) as raised:
            await client.get_job("email-service/slow")
    assert raised.value.code == "DEADLINE_EXCEEDED"


async def test_a_channel_of_the_callers_own_is_used_and_left_open(scheduler: Any) -> None:
    async with grpc.aio.insecure_channel(scheduler.target) as channel:
        for _ in range(2):
            async with Client(channel=channel, service_token="x.y") as client:
                assert (await client.get_job("email-service/digest")).name
    assert scheduler.metadata["x-service-token"] == "x.y"


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with Client"):
        await Client("127.0.0.1:1").get_job("a/b")
    closed = blocking.Client("127.0.0.1:1")
    with closed:
        pass
    with pytest.raises(RuntimeError, match="use it as `with Client"):
        closed.get_job("a/b")


async def test_jobs_are_registered_without_asyncio(scheduler: Any) -> None:
    jobs = Jobs("email-service", target=scheduler.target, token="x.y", base_url="http://mail:8080", generation=4)
    jobs.endpoint("digest", "/digest")
    response = await asyncio.to_thread(blocking.register, jobs, validate_only=True)
    [request] = scheduler.asked
    assert (request, response.generation) == (jobs.manifest(validate_only=True), 4)
    assert scheduler.metadata["x-service-token"] == "x.y"
    jobs.endpoint("refused", "/refused")
    with pytest.raises(InvalidRequest, match="there is a job of that name"):
        await asyncio.to_thread(blocking.register, jobs)


async def anext_of(iterator: AsyncIterator[Any]) -> Any:
    return await iterator.__anext__()
