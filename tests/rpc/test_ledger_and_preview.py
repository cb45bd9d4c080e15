"""ListLedger and PreviewOccurrences over a real connection: what a client of the API sees."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import psycopg
import pytest
from carillon.v1 import (
    job_pb2,
    ledger_pb2,
    registry_service_pb2,
    registry_service_pb2_grpc,
    run_pb2,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from scheduler_service.domain.credentials import parse_service_tokens
from scheduler_service.domain.preview import previewed
from scheduler_service.domain.run import RunState
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.registry import RegistryService
from scheduler_service.rpc.schedules import ScheduleService
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import connect, finish
from tests.conftest import DatabaseUrls
from tests.rpc.test_definitions import ACME, ADMIN, EMAIL, EMAIL_TOKEN, JOB, RULES, bearer
from tests.store.definitions_case import HOUR, MINUTE, START, SteppedDatabase

NEW_YORK = "America/New_York"
OWN = f"{JOB}/tenants/-/schedules/default"
DAILY = f"{JOB}/tenants/acme/schedules/daily"
GLOBEX = bearer(sub="gus", **{RULES.tenant_claim: "globex"})


@dataclass
class Api:
    registry: registry_service_pb2_grpc.RegistryServiceAsyncStub
    schedules: schedule_service_pb2_grpc.ScheduleServiceAsyncStub
    database: SteppedDatabase
    admin: psycopg.Connection[Any]

    async def register(self, **timing: Any) -> None:
        spec = job_pb2.JobSpec(
            job="weekly-digest",
            target=job_pb2.Target(http=job_pb2.HttpTarget(endpoint="http://email-service/run")),
            timing=job_pb2.Timing(**timing),
            tenant_schedules=True,
        )
        request = registry_service_pb2.RegisterJobsRequest(service="email-service", jobs=[spec])
        await self.registry.RegisterJobs(request, metadata=EMAIL)

    async def put(self, timing: job_pb2.Timing, *, enabled: bool = True) -> schedule_service_pb2.PutScheduleResponse:
        schedule = schedule_pb2.Schedule(name=DAILY, timing=timing, enabled=enabled)
        request = schedule_service_pb2.PutScheduleRequest(schedule=schedule)
        return await self.schedules.PutSchedule(request, metadata=ADMIN)

    async def preview(self, by: Any = ADMIN, **asked: Any) -> schedule_service_pb2.PreviewOccurrencesResponse:
        request = schedule_service_pb2.PreviewOccurrencesRequest(**asked)
        return await self.schedules.PreviewOccurrences(request, metadata=by)

    async def ledger(self, by: Any = ADMIN, **asked: Any) -> schedule_service_pb2.ListLedgerResponse:
        asked.setdefault("schedule", OWN)
        asked.setdefault("since", stamp(START))
        request = schedule_service_pb2.ListLedgerRequest(**asked)
        return await self.schedules.ListLedger(request, metadata=by)


@pytest.fixture
async def api(database_urls: DatabaseUrls) -> AsyncIterator[Api]:
    database = SteppedDatabase(database_urls.api, database_urls.engine, pool_size=4)
    credentials = Credentials(ServiceTokens(parse_service_tokens(f"email-service={EMAIL_TOKEN}")), JwtVerifier(RULES))
    server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(CollectorRegistry())),))
    wakeups = Wakeups()
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryService(database, wakeups), server)
    schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(
        ScheduleService(database, wakeups, default_time_zone="Europe/Berlin"), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with connect(database_urls.admin) as admin:
            yield Api(
                registry_service_pb2_grpc.RegistryServiceStub(channel),
                schedule_service_pb2_grpc.ScheduleServiceStub(channel),
                database,
                admin,
            )
    await server.stop(None)
    await database.close()


def stamp(instant: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def instant(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


@contextmanager
def refused(code: grpc.StatusCode, *fields: str) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    if fields:
        request = error_details_pb2.BadRequest()
        status = rpc_status.from_call(caught.value)  # type: ignore[arg-type] # only declared for synchronous calls
        assert status is not None
        for detail in status.details:
            detail.Unpack(request)
        assert [each.field for each in request.field_violations] == list(fields)


INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def test_the_ledger_as_a_client_reads_it(api: Api) -> None:
    await api.register(cron="*/30 * * * *", time_zone=NEW_YORK)
    async with await api.database.hot_connection() as hot:
        for now in (START + 30 * MINUTE, START + 150 * MINUTE):
            api.database.now = now
            await tick(hot, NobodySeated(), now=now)
            for (run_id,) in api.admin.execute("select run_id from carillon.live_runs").fetchall():
                error = {"code": "HANDLER_ERROR", "message": "no mail server", "detail": ""}
                finish(api.admin, run_id, RunState.FAILED, finished_at=now, error=error)
    api.database.now = START + 181 * MINUTE
    failed, missed, last, pending = (await api.ledger()).entries
    local = START.astimezone(ZoneInfo(NEW_YORK)).replace(tzinfo=None)
    assert failed == ledger_pb2.LedgerEntry(
        outcome=ledger_pb2.LEDGER_OUTCOME_FAILED,
        time=stamp(START + 30 * MINUTE),
        local_time=(local + 30 * MINUTE).isoformat(),
        time_zone=NEW_YORK,
        last_time=stamp(START + 30 * MINUTE),
        count=1,
        revision=1,
        run=failed.run,
        reason="HANDLER_ERROR",
        message="no mail server",
    )
    assert failed.run.startswith("runs/")
    assert missed == ledger_pb2.LedgerEntry(
        outcome=ledger_pb2.LEDGER_OUTCOME_MISSED,
        time=stamp(START + 60 * MINUTE),
        local_time=(local + 60 * MINUTE).isoformat(),
        time_zone=NEW_YORK,
        last_time=stamp(START + 120 * MINUTE),
        count=3,
        revision=1,
        reason="CATCH_UP_LATEST",
        message=missed.message,
    )
    assert (last.outcome, instant(last.time)) == (ledger_pb2.LEDGER_OUTCOME_FAILED, START + 150 * MINUTE)
    assert (pending.outcome, pending.run) == (ledger_pb2.LEDGER_OUTCOME_PENDING, "")
    backfilled = api.admin.execute("select run_id from carillon.runs order by run_id desc limit 1").fetchall()[0][0]
    api.admin.execute(
        "insert into carillon.remedies (run_id, schedule_id, scheduled_for, created_at)"
        " select %s, schedule_id, %s, now() from carillon.schedules",
        [backfilled, START + 90 * MINUTE],
    )
    remedied = (await api.ledger(outcomes=[ledger_pb2.LEDGER_OUTCOME_MISSED])).entries[0]
    assert (remedied.remedy, remedied.remedy_state, remedied.remedied) == (
        *(f"runs/{backfilled}", run_pb2.RUN_STATE_FAILED, 0),
    )


async def test_the_ledger_pages_and_filters(api: Api) -> None:
    await api.register(cron="@every 10m")
    api.database.now = START + 55 * MINUTE
    whole = await api.ledger()
    assert [each.outcome for each in whole.entries] == [ledger_pb2.LEDGER_OUTCOME_PENDING] * 5
    entries: list[ledger_pb2.LedgerEntry] = []
    page = await api.ledger(page_size=2)
    while page.next_page_token:
        assert len(page.entries) == 2
        entries += page.entries
        page = await api.ledger(page_size=2, page_token=page.next_page_token)
    assert [*entries, *page.entries] == list(whole.entries)
    window = await api.ledger(since=stamp(START + 20 * MINUTE), until=stamp(START + 40 * MINUTE))
    assert [instant(each.time) for each in window.entries] == [START + 20 * MINUTE, START + 30 * MINUTE]
    assert not (await api.ledger(outcomes=[ledger_pb2.LEDGER_OUTCOME_FAILED])).entries


async def test_the_ledger_refuses_what_is_wrong(api: Api) -> None:
    await api.register(cron="@every 10m")
    for asked, field in (
        ({"schedule": "services/x"}, "schedule"),
        ({"page_token": "made-up"}, "page_token"),
        ({"page_size": -1}, "page_size"),
        ({"outcomes": [77]}, "outcomes[0]"),
        ({"until": stamp(START - HOUR)}, "until"),
        ({"since": Timestamp(seconds=-(10**12))}, "since"),
    ):
        with refused(INVALID, field):
            await api.ledger(**asked)
    with refused(grpc.StatusCode.NOT_FOUND):
        await api.ledger(schedule=f"{JOB}/tenants/-/schedules/other")
    with refused(grpc.StatusCode.NOT_FOUND):
        await api.ledger(by=ACME)


async def test_a_proposed_timing_is_previewed_with_its_clock_changes(api: Api) -> None:
    timing = job_pb2.Timing(cron="30 1 * * *", time_zone=NEW_YORK)
    found = await api.preview(timing=timing, since=stamp(datetime(2026, 10, 31, 6, tzinfo=UTC)), count=2)
    assert list(found.occurrences) == [
        schedule_pb2.Occurrence(
            time=stamp(datetime(2026, 11, 1, 5, 30, tzinfo=UTC)),
            local_time="2026-11-01T01:30:00",
            utc_offset="-04:00",
            time_zone=NEW_YORK,
            start_time=stamp(datetime(2026, 11, 1, 5, 30, tzinfo=UTC)),
            transition=schedule_pb2.TRANSITION_FIRST_OF_TWO,
        ),
        schedule_pb2.Occurrence(
            time=stamp(datetime(2026, 11, 2, 6, 30, tzinfo=UTC)),
            local_time="2026-11-02T01:30:00",
            utc_offset="-05:00",
            time_zone=NEW_YORK,
            start_time=stamp(datetime(2026, 11, 2, 6, 30, tzinfo=UTC)),
            transition=schedule_pb2.TRANSITION_OFFSET_CHANGED,
        ),
    ]
    assert found.description == "At 01:30 every day, New York time"
    effective = found.effective_timing
    assert (effective.cron, effective.time_zone) == ("30 1 * * *", NEW_YORK)
    assert (effective.gap, effective.repeat) == (job_pb2.GAP_POLICY_SHIFT, job_pb2.REPEAT_POLICY_FIRST)
    assert effective.jitter.ToTimedelta() == timedelta()


async def test_what_a_proposed_timing_leaves_out_is_filled_in(api: Api) -> None:
    await api.register(cron="0 9 * * *", time_zone="Asia/Kolkata")
    alone = await api.preview(timing=job_pb2.Timing(cron="0 9 * * *"))
    assert {each.time_zone for each in alone.occurrences} == {"Europe/Berlin"}
    assert len(alone.occurrences) == 10
    of_job = await api.preview(timing=job_pb2.Timing(), job=JOB)
    assert (of_job.effective_timing.cron, of_job.effective_timing.time_zone) == ("0 9 * * *", "Asia/Kolkata")
    tenant = schedule_pb2.Tenant(name="tenants/acme", time_zone="Asia/Tokyo")
    await api.schedules.PutTenant(schedule_service_pb2.PutTenantRequest(tenant=tenant), metadata=ADMIN)
    of_tenant = await api.preview(by=ACME, timing=job_pb2.Timing(cron="0 8 * * *"), job=JOB)
    assert {each.time_zone for each in of_tenant.occurrences} == {"Asia/Tokyo"}
    of_job_for_others = await api.preview(timing=job_pb2.Timing(cron="0 8 * * *"), job=JOB)
    assert {each.time_zone for each in of_job_for_others.occurrences} == {"Asia/Kolkata"}


async def test_a_stored_schedule_is_previewed_also_while_it_is_disabled_or_is_none(api: Api) -> None:
    await api.register(cron="0 9 * * *", time_zone="Asia/Kolkata")
    timing = job_pb2.Timing(cron="@every 10m")
    timing.jitter.FromSeconds(300)
    await api.put(timing, enabled=False)
    found = await api.preview(name=DAILY, since=stamp(START), until=stamp(START + HOUR))
    assert [instant(each.time) for each in found.occurrences] == [START + n * 10 * MINUTE for n in range(1, 7)]
    waits = {instant(each.start_time) - instant(each.time) for each in found.occurrences}
    assert len(waits) == 1
    assert timedelta() < waits.pop() < 5 * MINUTE
    assert found.description == "Every 10 minutes"
    default = await api.preview(by=GLOBEX, name=f"{JOB}/tenants/globex/schedules/default", count=1)
    assert default.description == "At 09:00 every day, Kolkata time"
    assert len(default.occurrences) == 1
    for stranger in (GLOBEX, bearer(sub="nobody")):
        with refused(grpc.StatusCode.NOT_FOUND):
            await api.preview(by=stranger, name=DAILY)


async def test_a_preview_is_bounded_and_says_so(api: Api) -> None:
    timing = job_pb2.Timing(cron="* * * * *")
    assert len((await api.preview(timing=timing, count=1000)).occurrences) == 1000
    with pytest.raises(grpc.aio.AioRpcError, match="1,001 is not from 0 to 1,000"):
        await api.preview(timing=timing, count=1001)
    assert len((await api.preview(by=ACME, timing=timing, count=100)).occurrences) == 100
    with pytest.raises(grpc.aio.AioRpcError, match="101 is not from 0 to 100"):
        await api.preview(by=ACME, timing=timing, count=101)
    with refused(INVALID, "count"):
        await api.preview(timing=timing, count=-1)


async def test_looking_ahead_is_done_beside_the_loop(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def looking(*given: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return previewed(*given, **named)

    monkeypatch.setattr("scheduler_service.usecases.preview.previewed", looking)
    await api.register(cron="0 9 * * *")
    await api.preview(timing=job_pb2.Timing(cron="0 0 29 2 *"))
    await api.preview(name=OWN)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_preview_refuses_what_is_wrong(api: Api) -> None:
    await api.register()
    cron = job_pb2.Timing(cron="0 9 * * *")
    for asked, fields in (
        ({}, ["name"]),
        ({"name": OWN, "timing": cron}, ["name"]),
        ({"name": OWN, "job": JOB}, ["job"]),
        ({"timing": job_pb2.Timing(cron="61 * * * *", time_zone="Berlin")}, ["timing.cron", "timing.time_zone"]),
        ({"timing": job_pb2.Timing()}, ["timing.cron"]),
        ({"timing": job_pb2.Timing(), "job": JOB}, ["timing.cron"]),
        ({"timing": cron, "job": "weekly-digest"}, ["job"]),
        ({"timing": cron, "since": stamp(START), "until": stamp(START)}, ["until"]),
    ):
        with refused(INVALID, *fields):
            await api.preview(**asked)
    phased = job_pb2.Timing(cron="0 9 * * *")
    phased.phase.FromSeconds(5)
    with refused(INVALID, "timing.phase"):
        await api.preview(timing=phased)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await api.preview(by=(), timing=cron)
    with refused(grpc.StatusCode.NOT_FOUND):
        await api.preview(timing=cron, job="services/email-service/jobs/no-such")
    with refused(grpc.StatusCode.NOT_FOUND):
        await api.preview(name=f"{JOB}/tenants/acme/schedules/no-such")


async def test_putting_a_schedule_answers_what_it_owes_next(api: Api) -> None:
    await api.register()
    put = await api.put(job_pb2.Timing(cron="@every 10m"))
    assert [instant(each.time) for each in put.next_occurrences] == [START + n * 10 * MINUTE for n in range(1, 6)]
    assert put.next_occurrences[0].time == put.schedule.next_run_time
    assert not (await api.put(job_pb2.Timing(cron="@every 10m"), enabled=False)).next_occurrences
