"""Whoever may change something may not do so without end: the audit trail keeps each change for ever."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import jwt
import psycopg
import pytest
from carillon.v1 import schedule_pb2, schedule_service_pb2, schedule_service_pb2_grpc
from prometheus_client import CollectorRegistry

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.errors import RateLimited
from scheduler_service.domain.rates import RateLimits
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.limits import LIMITED, Limits
from scheduler_service.rpc.methods import ACTIONS
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.schedules import ScheduleService
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import canary
from tests.builders import connect, make_job
from tests.conftest import DatabaseUrls
from tests.credentials import accepting
from tests.rpc.test_audit import READING
from tests.rpc.work.rig import Clock

ALICE = Principal(Kind.ADMIN, name="alice")
ANN = Principal(Kind.USER, name="ann", tenant="acme")
ALLOWED = RateLimits(registrations_per_minute=30, triggers_per_second=4, changes_per_second=3)
AT_ONCE = {
    "registrations": ("CARILLON_REGISTRATIONS_PER_MINUTE", 30),
    "triggers": ("CARILLON_TRIGGERS_PER_SECOND", 40),
    "changes": ("CARILLON_CHANGES_PER_SECOND", 30),
}
SECRET = canary.secret("change-rates")


def test_every_method_that_changes_something_has_a_limit() -> None:
    changing = {method for method in ACTIONS if not method.rpartition("/")[2].startswith(READING)}
    assert set(LIMITED) == changing


@pytest.mark.parametrize("method", LIMITED)
def test_a_caller_who_goes_on_and_on_is_refused(method: str) -> None:
    setting, at_once = AT_ONCE[LIMITED[method]]
    limits = Limits(CollectorRegistry(), ALLOWED, clock=Clock())
    for _ in range(at_once):
        limits.admit(ALICE, method)
    with pytest.raises(RateLimited, match=f"admin:alice .*{setting}"):
        limits.admit(ALICE, method)
    limits.admit(ANN, method)


def test_changes_of_all_kinds_count_together_and_flow_in_again() -> None:
    clock = Clock()
    limits = Limits(CollectorRegistry(), ALLOWED, clock=clock)
    changes = [method for method, limit in LIMITED.items() if limit == "changes"]
    for place in range(30):
        limits.admit(ANN, changes[place % len(changes)])
    with pytest.raises(RateLimited, match="user:ann changes something more often than 3 times a second") as refused:
        limits.admit(ANN, changes[0])
    assert refused.value.retry_after == pytest.approx(1 / 3)
    limits.admit(ANN, "/carillon.v1.ScheduleService/RunSchedule")
    limits.admit(ANN, "/carillon.v1.ScheduleService/ListSchedules")
    clock.now += 1
    for method in changes[:3]:
        limits.admit(ANN, method)
    with pytest.raises(RateLimited):
        limits.admit(ANN, changes[0])


def bearer() -> tuple[tuple[str, str], ...]:
    now = int(time.time())
    claims = {"sub": "ann", "tenant": "acme", "iss": "carillon", "aud": "carillon", "iat": now, "exp": now + 43_200}
    return (("authorization", f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"),)


def trail(admin: psycopg.Connection[Any]) -> tuple[int, int]:
    """How many events there are, and the bytes of their documents."""
    row = admin.execute(
        "select count(*), sum(octet_length(coalesce(before::text, '') || coalesce(after::text, '')))::bigint"
        " from carillon.audit_events"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@asynccontextmanager
async def schedules(database: Database) -> AsyncIterator[Any]:
    """A client of the service, which counts by a clock that stands still."""
    limits = Limits(CollectorRegistry(), ALLOWED, clock=Clock())
    calls = Calls(accepting(rules=JwtRules(secret=SECRET)), CallMetrics(CollectorRegistry()), limits)
    server = grpc.aio.server(interceptors=(calls,))
    schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(ScheduleService(database, Wakeups()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield schedule_service_pb2_grpc.ScheduleServiceStub(channel)
    finally:
        await server.stop(None)


async def test_a_flood_of_large_configs_by_one_user_grows_the_trail_by_little(
    database: Database, database_urls: DatabaseUrls
) -> None:
    answers: Counter[str] = Counter()
    with connect(database_urls.admin) as admin:
        job = make_job(admin, declared={"job": "weekly-digest", "tenant_schedules": True})
        schedule = schedule_pb2.Schedule(name=f"{job.name}/tenants/acme/schedules/x")
        schedule.timing.cron = "0 5 * * *"
        async with schedules(database) as stub:
            for _ in range(60):
                schedule.config.update({"noise": os.urandom(120_000).hex()})
                request = schedule_service_pb2.PutScheduleRequest(schedule=schedule)
                call = stub.PutSchedule(request, metadata=bearer())
                answers[(await call.code()).name] += 1
        events, size = trail(admin)
    assert answers == {"OK": 30, "RESOURCE_EXHAUSTED": 30}
    assert events == 30
    assert size < 30 * 512
