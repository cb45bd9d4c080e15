"""Running a schedule now: one run of it by hand, which waits its turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.access import ANONYMOUS, Kind, Principal
from scheduler_service.domain.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from scheduler_service.domain.job import Policies
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import RunState, TriggerSource
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.usecases import deleting, registry
from scheduler_service.usecases.run_schedule import RunScheduleRequest, run_schedule
from scheduler_service.usecases.runs import get_run
from scheduler_service.usecases.wakeups import Topic
from tests.builders import ADMIN, user
from tests.store.definitions_case import (
    DIGEST,
    EMAIL,
    MINUTE,
    START,
    TENANT_USER,
    Scheduler,
    every,
    for_tenant,
    own,
)
from tests.store.pausing_case import job, pause, pause_job, unaccounted
from tests.store.test_waiting import SECOND, ticking, until_it_waits

ACME = for_tenant("acme")


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    await scheduler.register(job(policies=Policies(overlap=Overlap.SKIP), config={"limit": 1, "dry": True, "only": []}))
    spec = ScheduleSpec(every("10m"), config={"limit": 2, "dry": False}, labels={"brand_id": "b"})
    await scheduler.put(ACME, spec)
    return scheduler


async def run_now(scheduler: Scheduler, name: ScheduleName = ACME, *, by: Principal = ADMIN, **request: Any) -> Run:
    made: list[Run] = []

    def encode(run: Run) -> bytes:
        made.append(run)
        return b""

    wanted = RunScheduleRequest(name, **request)
    await run_schedule(scheduler.database, scheduler.wakeups, by, wanted, encode)
    (run,) = made
    return run


def waiting(scheduler: Scheduler) -> list[tuple[str, bool]]:
    """The live runs' triggers in the order in which they were due, and whether they wait for their turn."""
    return scheduler.admin.execute(
        "select trigger::text, blocked from carillon.live_runs order by blocked, scheduled_for, run_id"
    ).fetchall()


async def test_a_run_of_a_schedule_by_hand_takes_after_job_and_schedule(scheduler: Scheduler) -> None:
    listeners = [scheduler.wakeups.listen(topic) for topic in (Topic.PENDING, Topic.RUNS)]
    run = await run_now(scheduler, by=TENANT_USER, payload={"limit": 3})
    assert (run.state, run.trigger, run.tenant, run.schedule, run.revision) == (
        RunState.PENDING,
        TriggerSource.MANUAL,
        "acme",
        "daily",
        1,
    )
    assert (run.payload, run.labels) == ({"limit": 3, "dry": False, "only": []}, {"brand_id": "b"})
    assert run.triggered_by == "user:user-of-acme"
    assert run.scheduled_for == run.run_after == run.created_at == START
    assert (run.scheduled_local, run.time_zone, run.run_id.version) == (None, "", 7)
    assert await get_run(scheduler.database, TENANT_USER, run.run_id) == run
    assert waiting(scheduler) == [("MANUAL", False)]
    assert [listener.take() for listener in listeners] == [True, True]


async def test_it_runs_at_once_or_waits_for_the_run_that_is_live(scheduler: Scheduler) -> None:
    await run_now(scheduler)
    await run_now(scheduler)
    assert waiting(scheduler) == [("MANUAL", False), ("MANUAL", True)]
    await run_now(scheduler, own())
    assert waiting(scheduler)[:2] == [("MANUAL", False), ("MANUAL", False)]


async def test_where_runs_may_overlap_none_waits(scheduler: Scheduler) -> None:
    await scheduler.register(job(), generation=1)
    await run_now(scheduler)
    await run_now(scheduler)
    assert waiting(scheduler) == [("MANUAL", False)] * 2


async def test_it_takes_nothing_from_what_the_schedule_owes(scheduler: Scheduler) -> None:
    await run_now(scheduler)
    scheduler.admin.execute("delete from carillon.live_runs")
    await scheduler.tick_until(START + 10 * MINUTE)
    assert [instant for instant, _ in scheduler.fired()] == [START + 10 * MINUTE] * 2
    assert await unaccounted(scheduler) == []


async def test_a_schedule_that_owes_nothing_can_be_run_all_the_same(scheduler: Scheduler) -> None:
    await scheduler.put(ACME, ScheduleSpec(enabled=False), "enabled")
    await pause(scheduler, ACME)
    await pause_job(scheduler)
    assert (await run_now(scheduler)).revision == 3
    schedule = await scheduler.get(ACME)
    assert (schedule.spec.enabled, schedule.paused_at, schedule.next_run_at) == (False, START, None)


async def test_a_schedule_of_an_archived_job_cannot_be_run(scheduler: Scheduler) -> None:
    await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    with pytest.raises(Conflict) as refused:
        await run_now(scheduler)
    assert refused.value.reason == "JOB_ARCHIVED"


async def test_one_that_is_not_stored_has_to_be_put_first(scheduler: Scheduler) -> None:
    for name in (for_tenant("acme", "default"), for_tenant("globex"), replace(ACME, job=replace(DIGEST, job="none"))):
        with pytest.raises(NotFound, match="PutSchedule"):
            await run_now(scheduler, name)
    await deleting.delete_schedule(scheduler.database, scheduler.wakeups, ADMIN, ACME)
    with pytest.raises(NotFound, match="PutSchedule"):
        await run_now(scheduler)
    assert waiting(scheduler) == []


async def test_who_may_run_a_schedule(scheduler: Scheduler) -> None:
    for principal, error in (
        (user("globex"), NotFound),
        (user(""), NotFound),
        (EMAIL, Forbidden),
        (ANONYMOUS, Unauthenticated),
    ):
        with pytest.raises(error):
            await run_now(scheduler, by=principal)
    with pytest.raises(NotFound):
        await run_now(scheduler, own(), by=TENANT_USER)
    assert waiting(scheduler) == []


async def test_the_same_request_id_gets_the_same_answer(scheduler: Scheduler) -> None:
    async def run_id(digest: bytes = b"one") -> bytes:
        request = RunScheduleRequest(ACME, request_id="r-1", digest=digest)
        return await run_schedule(
            scheduler.database, scheduler.wakeups, TENANT_USER, request, lambda run: run.run_id.bytes
        )

    assert len(set(await asyncio.gather(*(run_id() for _ in range(4))))) == 1
    with pytest.raises(AlreadyExists) as refused:
        await run_id(b"two")
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert waiting(scheduler) == [("MANUAL", False)]


async def test_a_user_of_two_tenants_has_request_ids_of_each(scheduler: Scheduler) -> None:
    """One subject, whose JWTs name one tenant or the other."""
    for tenant in ("acme", "globex"):
        await scheduler.put(for_tenant(tenant), ScheduleSpec(enabled=False))

    async def run_id(tenant: str) -> bytes:
        request = RunScheduleRequest(for_tenant(tenant), request_id="r-1", digest=b"one")
        by = Principal(Kind.USER, name="ann", tenant=tenant)
        return await run_schedule(scheduler.database, scheduler.wakeups, by, request, lambda run: run.run_id.bytes)

    first, second = await run_id("acme"), await run_id("globex")
    assert first != second
    assert [await run_id(tenant) for tenant in ("acme", "globex")] == [first, second]


@pytest.mark.parametrize(
    ("request_fields", "fields"),
    [
        ({"payload": {"x": float("nan")}, "request_id": "r" * 65}, ["payload.x", "request_id"]),
        ({"payload": {"x": "y" * (256 * 1024 - 20)}}, ["payload"]),
    ],
)
async def test_every_wrong_field_is_named_and_nothing_is_made(
    scheduler: Scheduler, request_fields: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await run_now(scheduler, **request_fields)
    assert [violation.field for violation in refused.value.violations] == fields
    assert waiting(scheduler) == []


async def test_a_tick_at_the_schedule_comes_first(scheduler: Scheduler, admin: psycopg.Connection[Any]) -> None:
    await pause(scheduler, own())
    due = START + 10 * MINUTE
    async with ticking(scheduler.hot, due):
        running = asyncio.create_task(run_now(scheduler))
        await until_it_waits(running, admin)
        assert not running.done()
        scheduler.database.now = due + SECOND
    assert (await running).scheduled_for.astimezone(UTC) == due + SECOND
    assert waiting(scheduler) == [("SCHEDULE", False), ("MANUAL", True)]
