"""What Carillon repaired by itself: events of all principals of a kind, over real gRPC."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from carillon.v1 import audit_service_pb2, job_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from scheduler_service.domain.audit import repaired
from scheduler_service.store.audit import record_own
from scheduler_service.store.database import Database
from tests.builders import connect, now
from tests.conftest import DatabaseUrls
from tests.rpc.test_audit import ADMIN, EMAIL, JOB, Calls, bearer, calls, registration
from tests.rpc.test_runs_and_trigger import details

__all__ = ["calls"]

REPLICAS = ("scheduler-1", "scheduler-2", "host.example:4711")
ENGINES = [f"engine:{replica}" for replica in REPLICAS]


@pytest.fixture
async def trail(calls: Calls, database: Database) -> Calls:
    """Events of a service, two admins (one with an odd name) and the engines of three replicas, in this order."""
    await calls.call("/carillon.v1.RegistryService/RegisterJobs", registration("weekly-digest"), EMAIL)
    for who in (ADMIN, bearer("engine:", "admin")):
        for method, request in (
            ("PauseJob", job_service_pb2.PauseJobRequest(name=JOB)),
            ("ResumeJob", job_service_pb2.ResumeJobRequest(name=JOB)),
        ):
            await calls.call(f"/carillon.v1.JobService/{method}", request, who)
    async with await database.hot_connection() as connection:
        for replica in REPLICAS:
            await record_own(connection, replica, repaired(JOB, "ArmSchedules", {"count": 1}))
    return calls


async def principals(trail: Calls, principal: str, **wanted: object) -> list[str]:
    return [event.principal for event in reversed(await trail.events(principal=principal, **wanted))]


async def test_a_kind_and_a_colon_are_all_of_that_kind(trail: Calls) -> None:
    assert await principals(trail, "engine:") == ENGINES
    assert await principals(trail, "admin:") == ["admin:alice"] * 2 + ["admin:engine:"] * 2
    assert await principals(trail, "service:") == ["service:email-service"]
    assert await principals(trail, "operator:") == []


async def test_one_of_a_kind_is_still_found_alone_whatever_its_name(trail: Calls) -> None:
    for engine in ENGINES:
        assert await principals(trail, engine) == [engine]
    assert await principals(trail, "admin:engine:") == ["admin:engine:"] * 2
    assert await principals(trail, "engine:scheduler") == [], "not the beginning of a name"


async def test_it_adds_up_with_other_filters_and_goes_on_by_the_page(trail: Calls, database_urls: DatabaseUrls) -> None:
    assert await principals(trail, "engine:", action="ArmSchedules", resource=JOB) == ENGINES
    assert await principals(trail, "engine:", action="EndLostSessions") == []
    tomorrow = Timestamp()
    tomorrow.FromDatetime(now() + timedelta(days=1))
    assert await principals(trail, "engine:", since=tomorrow) == []
    with connect(database_urls.admin) as admin:
        assert admin.execute("select count(*) from carillon.audit_events").fetchone() == (8,)
    request = audit_service_pb2.ListAuditEventsRequest(principal="engine:", page_size=2)
    first = await trail.audit.ListAuditEvents(request, metadata=ADMIN)
    request.page_token = first.next_page_token
    second = await trail.audit.ListAuditEvents(request, metadata=ADMIN)
    found = [event.principal for event in (*first.events, *second.events)]
    assert (found, second.next_page_token) == (ENGINES[::-1], "")


@pytest.mark.parametrize("principal", ["engines:", ":", "Engine:", "anonymous:"])
async def test_what_is_no_kind_is_refused_with_those_that_are(calls: Calls, principal: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await calls.events(principal=principal)
    assert details(refused.value)[1] == ["principal"]
    assert "`engine:`" in str(refused.value.details())
