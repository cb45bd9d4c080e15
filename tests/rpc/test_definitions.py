"""Registration, jobs and schedules over a real connection: what a client of the API sees."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import jwt
import pytest
from carillon.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.registry import RegistryService
from scheduler_service.rpc.schedules import ScheduleService
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import canary

SECRET = canary.secret("jwt")
EMAIL_TOKEN = canary.token("email-1")
JOB = "services/email-service/jobs/weekly-digest"


def bearer(**claims: Any) -> tuple[tuple[str, str], ...]:
    now = int(time.time())
    fixed = {"iss": RULES.issuer, "aud": RULES.audience, "iat": now, "exp": now + 43_200}
    return (("authorization", f"Bearer {jwt.encode(fixed | claims, SECRET, 'HS256')}"),)


RULES = JwtRules(secret=SECRET)
EMAIL = (("x-service-token", EMAIL_TOKEN),)
ADMIN = bearer(sub="alice", **{RULES.role_claim: RULES.admin_role})
ACME = bearer(sub="ann", **{RULES.tenant_claim: "acme"})


@dataclass
class Stubs:
    registry: registry_service_pb2_grpc.RegistryServiceAsyncStub
    jobs: job_service_pb2_grpc.JobServiceAsyncStub
    schedules: schedule_service_pb2_grpc.ScheduleServiceAsyncStub

    async def register(self, *specs: job_pb2.JobSpec, **fields: Any) -> registry_service_pb2.RegisterJobsResponse:
        request = registry_service_pb2.RegisterJobsRequest(service="email-service", jobs=specs, **fields)
        return await self.registry.RegisterJobs(request, metadata=EMAIL)


@pytest.fixture
async def stubs(database: Database) -> AsyncIterator[Stubs]:
    credentials = Credentials(ServiceTokens(parse_service_tokens(f"email-service={EMAIL_TOKEN}")), JwtVerifier(RULES))
    server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(CollectorRegistry())),))
    wakeups = Wakeups()
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryService(database, wakeups), server)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(
        JobService(database, wakeups, default_time_zone="Europe/Berlin"), server
    )
    schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(ScheduleService(database, wakeups), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stubs(
            registry_service_pb2_grpc.RegistryServiceStub(channel),
            job_service_pb2_grpc.JobServiceStub(channel),
            schedule_service_pb2_grpc.ScheduleServiceStub(channel),
        )
    await server.stop(None)


def digest(**fields: Any) -> job_pb2.JobSpec:
    target = job_pb2.Target(http=job_pb2.HttpTarget(endpoint="http://email-service/run"))
    defaults: dict[str, Any] = {"job": "weekly-digest", "target": target}
    return job_pb2.JobSpec(**(defaults | fields))


def full_spec() -> job_pb2.JobSpec:
    """Every field set to something else than its default."""
    spec = digest(
        display_name="Weekly digest",
        description="To everyone who wants it",
        labels={"job_type": "mail"},
        timing=job_pb2.Timing(
            cron="@every 90s",
            time_zone="Asia/Kolkata",
            gap=job_pb2.GAP_POLICY_SKIP,
            repeat=job_pb2.REPEAT_POLICY_BOTH,
        ),
        policies=job_pb2.Policies(overlap=job_pb2.OVERLAP_ALLOW_ALL, retry=job_pb2.RetryPolicy(max_attempts=7)),
        tenant_schedules=True,
    )
    spec.config.update({"a": [1, 2.5, None, {"b": True}], "n": 2**53})
    spec.timing.phase.FromMilliseconds(1500)
    spec.timing.jitter.FromSeconds(30)
    spec.policies.attempt_timeout.FromSeconds(60)
    spec.policies.run_timeout.FromSeconds(3600)
    spec.policies.cancel_grace.FromMicroseconds(1)
    spec.policies.retry.delay.FromSeconds(5)
    spec.policies.retry.multiplier = 1.5
    spec.policies.retry.max_delay.FromSeconds(90)
    spec.policies.retry.jitter = 0.25
    spec.policies.retry.never_retry.codes.extend(["NO_USER", "HTTP_4*"])
    spec.policies.catch_up = job_pb2.CATCH_UP_NONE
    spec.policies.catch_up_window.FromSeconds(3600)
    return spec


def reason_and_fields(error: grpc.aio.AioRpcError) -> tuple[str, list[str]]:
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # an AioRpcError has what it asks for
    assert status is not None
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(request)
    return info.reason, [violation.field for violation in request.field_violations]


async def test_a_declaration_comes_back_as_it_was_sent(stubs: Stubs) -> None:
    answer = await stubs.register(full_spec(), generation=3)
    (change,) = answer.changes
    assert (change.name, change.kind) == (JOB, registry_service_pb2.CHANGE_KIND_CREATED)
    response = await stubs.jobs.GetJob(job_service_pb2.GetJobRequest(name=JOB), metadata=ADMIN)
    assert response.job.declared == full_spec()
    assert response.job.effective == full_spec()
    assert response.job.generation == 3
    assert response.job.HasField("next_run_time")
    again = await stubs.register(full_spec(), generation=3)
    assert again.changes[0].kind == registry_service_pb2.CHANGE_KIND_UNCHANGED


async def test_a_grpc_target_comes_back_and_its_change_is_named(stubs: Stubs) -> None:
    def spec(**target: Any) -> job_pb2.JobSpec:
        return digest(target=job_pb2.Target(grpc=job_pb2.GrpcTarget(**target)))

    await stubs.register(spec(address="email-service:50051"))
    job = (await stubs.jobs.GetJob(job_service_pb2.GetJobRequest(name=JOB), metadata=ADMIN)).job
    assert job.effective.target == spec(address="email-service:50051").target
    (change,) = (await stubs.register(spec(address="email-service:50052"))).changes
    assert list(change.changed_fields) == ["target.grpc.address"]
    (change,) = (await stubs.register(spec(address="email-service:50052", tls=True))).changes
    assert list(change.changed_fields) == ["target.grpc.tls"]
    (change,) = (await stubs.register(digest())).changes
    assert list(change.changed_fields) == ["target.http.endpoint", "target.grpc.address", "target.grpc.tls"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.register(spec(address="grpc://email-service:50051"))
    assert reason_and_fields(refused.value)[1] == ["jobs[0].target.grpc.address"]


async def test_what_a_declaration_leaves_out_is_shown_as_its_default(stubs: Stubs) -> None:
    await stubs.register(digest())
    job = (await stubs.jobs.GetJob(job_service_pb2.GetJobRequest(name=JOB), metadata=EMAIL)).job
    assert job.declared == digest(timing={}, policies={}, config={})
    effective = job.effective
    assert (effective.display_name, effective.timing.time_zone) == ("weekly-digest", "Europe/Berlin")
    assert not effective.timing.HasField("cron")
    assert effective.policies.overlap == job_pb2.OVERLAP_SKIP
    assert effective.policies.catch_up == job_pb2.CATCH_UP_LATEST
    assert effective.policies.catch_up_window.seconds == 86_400
    assert effective.policies.retry.max_attempts == 3
    assert effective.policies.retry.delay.seconds == 600
    assert (effective.policies.retry.multiplier, effective.policies.retry.jitter) == (1, 0)
    assert effective.policies.retry.max_delay.seconds == 7 * 86_400
    assert effective.policies.retry.HasField("never_retry")
    assert not effective.policies.retry.never_retry.codes
    assert not job.HasField("next_run_time")


async def test_one_refusal_names_every_wrong_field_read_or_checked(stubs: Stubs) -> None:
    bad = digest(timing=job_pb2.Timing(cron="0 22-2 * * *", gap=99))  # type: ignore[arg-type] # a newer client's
    bad.policies.attempt_timeout.seconds = 10**15
    newer = digest(job="newer")
    newer.timing.MergeFromString(b"\x9a\x06\x01x")  # field 99
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.register(bad, newer, base_url="nowhere")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, fields = reason_and_fields(refused.value)
    assert reason == "INVALID_FIELDS"
    assert sorted(fields) == [
        "base_url",
        "jobs[0].policies.attempt_timeout",
        "jobs[0].timing.cron",
        "jobs[0].timing.gap",
        "jobs[1].timing",
    ]
    assert "field number 99 of carillon.v1.Timing" in str(refused.value.details())
    listed = await stubs.jobs.ListJobs(job_service_pb2.ListJobsRequest(), metadata=ADMIN)
    assert not listed.jobs


async def test_overrides_are_set_by_mask_and_shown(stubs: Stubs) -> None:
    await stubs.register(full_spec())
    request = job_service_pb2.UpdateJobRequest(name=JOB)
    request.overrides.timing.cron = ""
    request.overrides.policies.retry.max_attempts = 1
    request.update_mask.paths.append("timing.cron")
    job = (await stubs.jobs.UpdateJob(request, metadata=ADMIN)).job
    assert job.overrides.timing.HasField("cron")
    assert not job.overrides.policies.retry.HasField("max_attempts")  # the mask does not name it
    assert not job.HasField("next_run_time")
    again = await stubs.register(full_spec(), generation=9)
    assert list(again.changes[0].overridden_fields) == ["timing.cron"]
    reset = await stubs.jobs.ResetJobOverrides(job_service_pb2.ResetJobOverridesRequest(name=JOB), metadata=ADMIN)
    assert reset.job.effective == full_spec()


async def test_a_service_may_not_change_jobs_by_hand_and_an_admin_may_not_register(stubs: Stubs) -> None:
    await stubs.register(digest())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.jobs.PauseJob(job_service_pb2.PauseJobRequest(name=JOB), metadata=EMAIL)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.registry.RemoveJob(registry_service_pb2.RemoveJobRequest(name=JOB), metadata=ADMIN)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    paused = await stubs.jobs.PauseJob(job_service_pb2.PauseJobRequest(name=JOB), metadata=ADMIN)
    assert paused.job.paused
    resumed = await stubs.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(name=JOB), metadata=ADMIN)
    assert not resumed.job.paused
    removed = await stubs.registry.RemoveJob(registry_service_pb2.RemoveJobRequest(name=JOB), metadata=EMAIL)
    assert removed.job.HasField("archive_time")


async def test_a_user_puts_reads_and_lists_its_schedule(stubs: Stubs) -> None:
    await stubs.register(digest(tenant_schedules=True))
    name = f"{JOB}/tenants/acme/schedules/daily"
    config = Struct()
    config.update({"limit": 5})
    schedule = schedule_pb2.Schedule(
        name=name,
        timing=job_pb2.Timing(cron="0 9 * * *", time_zone="America/New_York"),
        enabled=True,
        config=config,
        labels={"brand_id": "b1"},
    )
    put = (
        await stubs.schedules.PutSchedule(schedule_service_pb2.PutScheduleRequest(schedule=schedule), metadata=ACME)
    ).schedule
    assert (put.name, put.timing, put.config, put.labels) == (name, schedule.timing, config, schedule.labels)
    assert put.next_run_local_time.endswith("T09:00:00")
    assert put.description == "At 09:00 every day, New York time"
    got = await stubs.schedules.GetSchedule(schedule_service_pb2.GetScheduleRequest(name=name), metadata=ACME)
    assert got.schedule == put
    listed = await stubs.schedules.ListSchedules(schedule_service_pb2.ListSchedulesRequest(), metadata=ACME)
    assert list(listed.schedules) == [put]
    other = bearer(sub="bob", **{RULES.tenant_claim: "globex"})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.schedules.GetSchedule(schedule_service_pb2.GetScheduleRequest(name=name), metadata=other)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", "weekly-digest", "services/a/jobs/b/c", "services/A/jobs/b", "services//jobs/x"])
async def test_a_name_of_another_form_is_refused_with_a_sentence(stubs: Stubs, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.jobs.GetJob(job_service_pb2.GetJobRequest(name=name), metadata=ADMIN)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_and_fields(refused.value) == ("INVALID_FIELDS", ["name"])


async def test_a_page_token_of_another_list_is_refused(stubs: Stubs) -> None:
    await stubs.register(digest(), digest(job="other"))
    first = await stubs.jobs.ListJobs(job_service_pb2.ListJobsRequest(page_size=1), metadata=ADMIN)
    assert [job.name for job in first.jobs] == ["services/email-service/jobs/other"]
    request = job_service_pb2.ListJobsRequest(page_size=1, page_token=first.next_page_token)
    second = await stubs.jobs.ListJobs(request, metadata=ADMIN)
    assert ([job.name for job in second.jobs], second.next_page_token) == ([JOB], "")
    request.show_archived = True
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.jobs.ListJobs(request, metadata=ADMIN)
    assert reason_and_fields(refused.value) == ("INVALID_FIELDS", ["page_token"])
