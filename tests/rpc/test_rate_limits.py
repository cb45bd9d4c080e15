"""Rate limits over a real connection: who is refused, what they are told, and who is not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jwt
import pytest
from carillon.errors import RateLimited, from_rpc
from carillon.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from prometheus_client import CollectorRegistry

from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.rates import RateLimits
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.limits import Limits
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.registry import RegistryService
from scheduler_service.rpc.schedules import ScheduleService
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import canary
from tests.credentials import accepting
from tests.rpc.work.rig import Clock

SECRET = canary.secret("rate-limits")
EMAIL, KPI = canary.token("email-1"), canary.token("kpi-1")
JOB = "services/email-service/jobs/weekly-digest"
ALLOWED = RateLimits(registrations_per_minute=3, triggers_per_second=1)
Metadata = tuple[tuple[str, str], ...]


def service(token: str) -> Metadata:
    return (("x-service-token", token),)


def admin(subject: str) -> Metadata:
    now = int(time.time())
    claims = {"sub": subject, "role": "admin", "iss": "carillon", "aud": "carillon", "iat": now, "exp": now + 43_200}
    return (("authorization", f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"),)


OF_EMAIL, OF_KPI = service(EMAIL), service(KPI)
ALICE, BOB = admin("alice"), admin("bob")


class Scheduler:
    """A scheduler whose clock is stepped."""

    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.metrics = CollectorRegistry()
        credentials = accepting(f"email-service={EMAIL},kpi-service={KPI}", JwtRules(secret=SECRET))
        limits = Limits(self.metrics, ALLOWED, clock=self.clock)
        self.server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(self.metrics), limits),))
        wakeups = Wakeups()
        registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryService(database, wakeups), self.server)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(database, wakeups), self.server)
        schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(ScheduleService(database, wakeups), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def connect(self, channel: grpc.aio.Channel) -> Scheduler:
        self.registry = registry_service_pb2_grpc.RegistryServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.schedules = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
        return self

    async def register(self, metadata: Metadata = OF_EMAIL, name: str = "email-service") -> Any:
        target = job_pb2.Target(http=job_pb2.HttpTarget(endpoint="http://email-service/run"))
        jobs = [job_pb2.JobSpec(job="weekly-digest", target=target)]
        request = registry_service_pb2.RegisterJobsRequest(service=name, jobs=jobs)
        return await self.registry.RegisterJobs(request, metadata=metadata)

    async def trigger(self, metadata: Metadata) -> Any:
        return await self.jobs.TriggerJob(job_service_pb2.TriggerJobRequest(name=JOB), metadata=metadata)

    async def list_jobs(self, metadata: Metadata) -> Any:
        return await self.jobs.ListJobs(job_service_pb2.ListJobsRequest(), metadata=metadata)

    def refused(self, limit: str) -> float | None:
        return self.metrics.get_sample_value("carillon_rate_limited_total", {"limit": limit})


@pytest.fixture
async def scheduler(database: Database) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(database)
    await scheduler.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{scheduler.port}") as channel:
        yield scheduler.connect(channel)
    await scheduler.server.stop(None)


async def refusal(call: Any) -> RateLimited:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc(refused.value)
    assert isinstance(error, RateLimited)
    return error


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_a_service_registers_so_often_and_is_told_when_again(scheduler: Scheduler) -> None:
    for _ in range(ALLOWED.registrations_per_minute):
        await scheduler.register()
    error = await refusal(scheduler.register())
    assert error.reason == "RATE_LIMITED"
    assert error.metadata == {"setting": "CARILLON_REGISTRATIONS_PER_MINUTE"}
    assert "service:email-service" in error.message
    assert error.retry_after == pytest.approx(20, abs=0.01)
    assert scheduler.refused("registrations") == 1
    await scheduler.register(OF_KPI, "kpi-service")
    await scheduler.list_jobs(OF_EMAIL)
    assert error.retry_after is not None
    scheduler.clock.now += error.retry_after
    await scheduler.register()


async def test_removals_count_with_registrations(scheduler: Scheduler) -> None:
    for _ in range(ALLOWED.registrations_per_minute):
        await scheduler.register()
    await refusal(scheduler.registry.RemoveJob(registry_service_pb2.RemoveJobRequest(name=JOB), metadata=OF_EMAIL))


async def test_calls_that_start_runs_share_a_bucket_for_each_caller(scheduler: Scheduler) -> None:
    await scheduler.register()
    for _ in range(10 * ALLOWED.triggers_per_second):
        await scheduler.trigger(ALICE)
    for call in (
        scheduler.trigger(ALICE),
        scheduler.jobs.BackfillJob(job_service_pb2.BackfillJobRequest(name=JOB), metadata=ALICE),
        scheduler.schedules.RunSchedule(
            schedule_service_pb2.RunScheduleRequest(name=f"{JOB}/tenants/-/schedules/default"), metadata=ALICE
        ),
    ):
        assert (await refusal(call)).metadata == {"setting": "CARILLON_TRIGGERS_PER_SECOND"}
    await scheduler.trigger(BOB)
    await scheduler.trigger(OF_EMAIL)
    scheduler.clock.now += 1
    await scheduler.trigger(ALICE)
    await refusal(scheduler.trigger(ALICE))


async def test_who_may_not_call_uses_nothing_up(scheduler: Scheduler) -> None:
    for _ in range(5):
        assert await code_of(scheduler.register(ALICE)) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_flood_of_failing_credentials_shuts_nobody_out(scheduler: Scheduler) -> None:
    wrong = [service("email-1.x"), service("nobody.x"), (("authorization", "Bearer x.y.z"),), (("authorization", "x"),)]
    for metadata in wrong * 200:
        assert await code_of(scheduler.list_jobs(metadata)) is grpc.StatusCode.UNAUTHENTICATED
    for metadata in (ALICE, BOB, OF_EMAIL, OF_KPI):  # of the same address, and seen for the first time
        await scheduler.list_jobs(metadata)
