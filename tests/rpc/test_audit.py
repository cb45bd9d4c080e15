"""The audit trail over real gRPC: every method that changes something leaves an event that says who, what, from where
and by which call; a new method without one fails."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import jwt
import psycopg
import pytest
from carillon.v1 import (
    audit_pb2,
    audit_service_pb2,
    audit_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    registry_service_pb2,
    run_service_pb2,
    schedule_pb2,
    schedule_service_pb2,
)
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from scheduler_service.app import App
from scheduler_service.rpc.methods import ACTIONS
from scheduler_service.settings import read_settings
from tests import canary
from tests.builders import connect, rewriting_records
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import eventually

SECRET = "only-for-tests-only-for-tests-only-for-tests"
JOB = "services/email-service/jobs/weekly-digest"
SCHEDULE = f"{JOB}/tenants/acme/schedules/daily"
Metadata = tuple[tuple[str, str], ...]
EMAIL: Metadata = (("x-service-token", canary.token("email-1")),)
READING = ("Get", "List", "Watch", "Preview", "Verify", "Work")


def bearer(subject: str, role: str) -> Metadata:
    now = int(time.time())
    claims = {"iss": "carillon", "aud": "carillon", "iat": now, "exp": now + 43_200, "sub": subject, "role": role}
    return (("authorization", f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"),)


ADMIN = bearer("alice", "admin")


def changing() -> dict[str, Any]:
    """The methods of the protos that are no reading ones, by their full names."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in (
            registry_service_pb2,
            job_service_pb2,
            schedule_service_pb2,
            run_service_pb2,
            audit_service_pb2,
        )
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.name.startswith(READING)
    }


@dataclass
class Calls:
    """A client of a whole scheduler. `answers`: the last of each method."""

    channel: grpc.aio.Channel
    answers: dict[str, Any] = field(default_factory=dict)

    async def call(self, method: str, request: Message, metadata: Metadata = ADMIN) -> Any:
        described = changing()[method]
        send = self.channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        self.answers[method] = await send(request, metadata=metadata, timeout=20)
        return self.answers[method]

    @property
    def audit(self) -> audit_service_pb2_grpc.AuditServiceAsyncStub:
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(self.channel)
        return stub  # type: ignore[no-any-return]

    async def events(self, **wanted: Any) -> list[audit_pb2.AuditEvent]:
        request = audit_service_pb2.ListAuditEventsRequest(**wanted)
        return list((await self.audit.ListAuditEvents(request, metadata=ADMIN)).events)


@pytest.fixture
async def calls(database_urls: DatabaseUrls) -> AsyncIterator[Calls]:
    app = App(
        read_settings(
            database_url=database_urls.api,
            engine_url=database_urls.engine,
            port=0,
            metrics_port=0,
            drain_seconds=0,
            service_tokens=f"email-service={EMAIL[0][1]}",
            development_jwt_secret=SECRET,
        )
    )
    await app.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            yield Calls(channel)
    finally:
        await app.drain()
        await app.close()
        await app._probes.stop()


@dataclass(frozen=True)
class Case:
    """A call that changes something: which resource, and who makes it."""

    request: Callable[[Calls], Message]
    resource: str | None
    metadata: Metadata = ADMIN
    principal: str = "admin:alice"


def registration(*jobs: str) -> registry_service_pb2.RegisterJobsRequest:
    http = job_pb2.HttpTarget(endpoint="http://localhost:1/run")
    timing = job_pb2.Timing(cron="0 * * * *")
    specs = [
        job_pb2.JobSpec(job=job, target=job_pb2.Target(http=http), timing=timing, tenant_schedules=True) for job in jobs
    ]
    return registry_service_pb2.RegisterJobsRequest(service="email-service", jobs=specs)


def backfill(name: str = JOB) -> job_service_pb2.BackfillJobRequest:
    request = job_service_pb2.BackfillJobRequest(name=name)
    request.since.FromDatetime(datetime.now(UTC) - timedelta(hours=5))
    request.until.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    return request


def _run(calls: Calls) -> str:
    name: str = calls.answers["/carillon.v1.JobService/TriggerJob"].runs[0].name
    return name


def _backfill(calls: Calls) -> str:
    name: str = calls.answers["/carillon.v1.JobService/BackfillJob"].backfill.name
    return name


_NEW_ZONE = schedule_pb2.Tenant(name="tenants/acme", time_zone="Asia/Tokyo")
_OVERRIDE = job_service_pb2.UpdateJobRequest(
    name=JOB,
    overrides=job_pb2.JobOverrides(timing=job_pb2.Timing(cron="30 7 * * *")),
    update_mask=FieldMask(paths=["timing.cron"]),
)
_SERVICE = "service:email-service"
# In an order in which each finds what it needs.
CASES: Mapping[str, Case] = {
    "RegistryService/RegisterJobs": Case(lambda _: registration("weekly-digest", "other"), JOB, EMAIL, _SERVICE),
    "JobService/UpdateJob": Case(lambda _: _OVERRIDE, JOB),
    "JobService/ResetJobOverrides": Case(lambda _: job_service_pb2.ResetJobOverridesRequest(name=JOB), JOB),
    "JobService/PauseJob": Case(lambda _: job_service_pb2.PauseJobRequest(name=JOB), JOB),
    "JobService/ResumeJob": Case(lambda _: job_service_pb2.ResumeJobRequest(name=JOB), JOB),
    "JobService/TriggerJob": Case(lambda _: job_service_pb2.TriggerJobRequest(name=JOB, tenants=["acme"]), JOB),
    "JobService/BackfillJob": Case(lambda _: backfill(), None),
    "JobService/CancelBackfill": Case(lambda c: job_service_pb2.CancelBackfillRequest(name=_backfill(c)), None),
    "RunService/CancelRun": Case(lambda c: run_service_pb2.CancelRunRequest(name=_run(c), reason="test"), None),
    "RunService/RetryRun": Case(lambda c: run_service_pb2.RetryRunRequest(name=_run(c)), None),
    "ScheduleService/PutTenant": Case(
        lambda _: schedule_service_pb2.PutTenantRequest(tenant=_NEW_ZONE), "tenants/acme"
    ),
    "ScheduleService/PutSchedule": Case(
        lambda _: schedule_service_pb2.PutScheduleRequest(schedule=schedule_pb2.Schedule(name=SCHEDULE)), SCHEDULE
    ),
    "ScheduleService/PauseSchedule": Case(lambda _: schedule_service_pb2.PauseScheduleRequest(name=SCHEDULE), SCHEDULE),
    "ScheduleService/ResumeSchedule": Case(
        lambda _: schedule_service_pb2.ResumeScheduleRequest(name=SCHEDULE), SCHEDULE
    ),
    "ScheduleService/RunSchedule": Case(lambda _: schedule_service_pb2.RunScheduleRequest(name=SCHEDULE), SCHEDULE),
    "ScheduleService/DeleteSchedule": Case(
        lambda _: schedule_service_pb2.DeleteScheduleRequest(name=SCHEDULE), SCHEDULE
    ),
    "ScheduleService/RemoveTenant": Case(
        lambda _: schedule_service_pb2.RemoveTenantRequest(name="tenants/acme"), "tenants/acme"
    ),
    "RegistryService/RemoveJob": Case(lambda _: registry_service_pb2.RemoveJobRequest(name=JOB), JOB, EMAIL, _SERVICE),
}


def test_every_method_that_is_not_known_to_read_has_a_case() -> None:
    """A new one has to be added here, and to leave an event; or to be named as the reading ones are."""
    unread = {
        method.removeprefix("/carillon.v1.") for method in ACTIONS if not method.rpartition("/")[2].startswith(READING)
    }
    assert unread == set(CASES)
    assert {method.removeprefix("/carillon.v1.") for method in changing()} == set(CASES)


async def test_every_method_that_changes_something_leaves_an_event(calls: Calls) -> None:
    sent: set[str] = set()
    for name, case in CASES.items():
        request_id = f"case-{name.replace('/', '-')}"
        metadata = (*case.metadata, ("x-request-id", request_id))
        await calls.call(f"/carillon.v1.{name}", case.request(calls), metadata)
        found = await calls.events(request_id=request_id)
        assert found, name
        for event in found:
            assert event.principal == case.principal, name
            assert event.action == name.partition("/")[2]
            assert event.address.startswith("ipv4:127.0.0.1:"), name
            assert event.HasField("before") or event.HasField("after"), name
        if case.resource:
            assert case.resource in [event.resource for event in found], name
        sent.update(event.resource for event in found)
    assert _run(calls) in sent
    assert _backfill(calls) in sent
    seen = await calls.events(page_size=1000)
    assert len(seen) == len({event.event_id for event in seen}) >= len(CASES)
    assert {event.tenant for event in await calls.events(tenant="acme")} == {"acme"}


async def test_a_call_without_a_request_id_is_given_one(calls: Calls) -> None:
    await calls.call("/carillon.v1.RegistryService/RegisterJobs", registration("a", "b"), EMAIL)
    first, second = await calls.events()
    assert first.request_id == second.request_id != ""
    assert [event.resource.rpartition("/")[2] for event in (second, first)] == ["a", "b"]


async def test_a_refused_call_leaves_nothing(calls: Calls) -> None:
    for method, request, metadata in (
        ("/carillon.v1.RegistryService/RegisterJobs", registration("a"), ADMIN),
        ("/carillon.v1.RegistryService/RegisterJobs", registration("-"), EMAIL),
        ("/carillon.v1.JobService/PauseJob", job_service_pb2.PauseJobRequest(name=JOB), ADMIN),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await calls.call(method, request, metadata)
    assert await calls.events() == []


async def test_the_trail_is_sealed_and_verified_while_it_serves(calls: Calls, database_urls: DatabaseUrls) -> None:
    await calls.call("/carillon.v1.RegistryService/RegisterJobs", registration("weekly-digest", "b", "c"), EMAIL)

    async def head() -> audit_pb2.AuditHead:
        return (await calls.audit.GetAuditHead(audit_service_pb2.GetAuditHeadRequest(), metadata=ADMIN)).head

    kept = await eventually(head, lambda found: found.position == 3)
    assert len(kept.hash) == 32
    assert [event.position for event in await calls.events()] == [3, 2, 1]

    async def verify(**wanted: Any) -> audit_service_pb2.VerifyAuditTrailResponse:
        request = audit_service_pb2.VerifyAuditTrailRequest(**wanted)
        return await calls.audit.VerifyAuditTrail(request, metadata=ADMIN)

    verdict = await verify(known_heads=[kept])
    assert (verdict.HasField("broken_link"), verdict.verified, verdict.complete) == (False, kept, True)
    assert not (await verify(after=verdict.verified)).HasField("broken_link")
    with connect(database_urls.admin) as admin:
        _tamper(admin)
    verdict = await verify(known_heads=[kept])
    assert verdict.broken_link.problem == audit_pb2.AUDIT_PROBLEM_CHANGED
    assert (verdict.broken_link.position, verdict.verified.position, verdict.complete) == (2, 1, True)
    assert "is not what was sealed" in verdict.broken_link.description


def _tamper(admin: psycopg.Connection[Any]) -> None:
    with rewriting_records(admin, "audit_events"):
        admin.execute(
            "update carillon.audit_events set principal = 'admin:mallory'"
            " where event_id = (select event_id from carillon.audit_seals where position = 2)"
        )


async def test_only_admins_read_the_trail(calls: Calls) -> None:
    for metadata, code in (
        (EMAIL, grpc.StatusCode.PERMISSION_DENIED),
        ((), grpc.StatusCode.UNAUTHENTICATED),
    ):
        for asking in (
            calls.audit.ListAuditEvents(audit_service_pb2.ListAuditEventsRequest(), metadata=metadata),
            calls.audit.GetAuditHead(audit_service_pb2.GetAuditHeadRequest(), metadata=metadata),
            calls.audit.VerifyAuditTrail(audit_service_pb2.VerifyAuditTrailRequest(), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asking
            assert refused.value.code() is code


async def test_an_event_that_is_too_large_to_show_says_so(calls: Calls, database_urls: DatabaseUrls) -> None:
    with connect(database_urls.admin) as admin:
        admin.execute(
            "insert into carillon.audit_events (event_at, principal, action, resource, after, request_id, address)"
            " select now(), 'admin:bob', 'x', 'y', jsonb_build_object('digits', array_fill(1, array[300000])), 'r', ''"
        )
    (event,) = await calls.events()
    assert set(event.after.fields) == {"too_large_to_show"}
