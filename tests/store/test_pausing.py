"""Pausing a schedule: it owes nothing from then on, whatever else happens to it."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.access import ANONYMOUS
from scheduler_service.domain.errors import Forbidden, NotFound, Unauthenticated
from scheduler_service.domain.job import JobOverrides, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases import jobs, registry
from tests.builders import ADMIN, user
from tests.conftest import DatabaseUrls
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
from tests.store.pausing_case import job, pause, pause_job, resume, resume_job, unaccounted
from tests.store.test_waiting import SECOND, held, ticking, until_it_waits


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    await scheduler.register(job())
    return scheduler


def rows(scheduler: Scheduler, query: str) -> list[tuple[Any, ...]]:
    return scheduler.admin.execute(query.encode()).fetchall()


async def test_a_paused_schedule_has_run_what_it_owed_and_owes_nothing_more(scheduler: Scheduler) -> None:
    scheduler.database.now = START + 10 * MINUTE + SECOND
    paused = await pause(scheduler, own())
    assert (paused.paused_at, paused.revision, paused.next_run_at) == (scheduler.database.now, 2, None)
    assert paused.spec.enabled
    assert paused.next_occurrence is None
    await scheduler.tick_until(START + 40 * MINUTE)
    assert scheduler.fired() == [(START + 10 * MINUTE, 1)]
    assert await unaccounted(scheduler) == []


async def test_pausing_twice_changes_nothing(scheduler: Scheduler) -> None:
    await pause(scheduler, own())
    before = scheduler.contents()
    scheduler.database.now = START + MINUTE
    assert (await pause(scheduler, own())).paused_at == START
    assert scheduler.contents() == before


async def test_a_user_pauses_and_resumes_the_schedules_of_its_tenant_only(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")), by=TENANT_USER)
    await scheduler.put(for_tenant("globex"), ScheduleSpec(every("10m")))
    assert (await pause(scheduler, name, by=TENANT_USER)).paused_at == START
    resumed, _ = await resume(scheduler, name, CatchUp.ALL, by=TENANT_USER)
    assert (resumed.paused_at, resumed.revision) == (None, 3)
    for other in (own(), for_tenant("globex"), for_tenant("acme", "other")):
        for verb in (pause, resume):
            with pytest.raises(NotFound):
                await verb(scheduler, other, by=TENANT_USER)
    with pytest.raises(NotFound):
        await pause(scheduler, name, by=user("globex"))
    with pytest.raises(Forbidden):
        await pause(scheduler, name, by=EMAIL)
    with pytest.raises(Unauthenticated):
        await resume(scheduler, name, by=ANONYMOUS)


async def test_what_is_not_stored_cannot_be_paused(scheduler: Scheduler) -> None:
    for name in (
        for_tenant("acme", "default"),
        for_tenant("acme", "nightly"),
        ScheduleName(JobName("email-service", "none"), "-", "default"),
    ):
        with pytest.raises(NotFound, match="PutSchedule stores one"):
            await pause(scheduler, name)


async def test_a_paused_schedule_stays_so_through_edits_and_keeps_what_was_asked_for(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await pause(scheduler, name)
    off = await scheduler.put(name, ScheduleSpec(enabled=False), "enabled")
    assert (off.spec.enabled, off.revision, off.next_run_at) == (False, 3, None)
    on = await scheduler.put(name, ScheduleSpec(every("2m")))
    assert (on.spec.enabled, on.paused_at, on.next_run_at, on.set_aside_reason) == (True, START, None, "")
    await scheduler.tick_until(START + 9 * MINUTE)
    assert scheduler.fired() == []
    resumed, _ = await resume(scheduler, name)
    assert resumed.next_run_at == START + 10 * MINUTE


async def test_paused_schedules_stay_so_through_changes_of_their_job(scheduler: Scheduler) -> None:
    follower = for_tenant("acme")
    await scheduler.put(follower, ScheduleSpec())
    for name in (own(), follower):
        await pause(scheduler, name)
    await scheduler.register(job(timing=every("1m")), generation=1)
    await scheduler.override(JobOverrides(timing=every("2m")), "timing")
    await pause_job(scheduler)
    await resume_job(scheduler)
    await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    await scheduler.register(job(timing=every("3m")), generation=1)
    for name in (own(), follower):
        schedule = await scheduler.get(name)
        assert (schedule.spec.enabled, schedule.in_force.enabled, schedule.in_force.cron) == (True, False, "@every 2m")
        assert (schedule.paused_at, schedule.next_run_at, schedule.set_aside_reason) == (START, None, "")
    await scheduler.tick_until(START + 10 * MINUTE)
    assert scheduler.fired() == []
    assert (await resume(scheduler, own()))[0].next_run_at == START + 12 * MINUTE


@pytest.mark.parametrize("name", [own(), for_tenant("acme")])
async def test_a_schedule_whose_job_loses_its_expression_while_it_is_paused_owes_nothing_when_it_is_resumed(
    scheduler: Scheduler, name: ScheduleName
) -> None:
    if name != own():
        await scheduler.put(name, ScheduleSpec())
    await pause(scheduler, name)
    await scheduler.register(job(timing=TimingSpec()))
    assert (await scheduler.get(name)).set_aside_reason == ""
    resumed, plan = await resume(scheduler, name, CatchUp.ALL)
    assert (resumed.in_force.enabled, resumed.next_run_at, plan.runs) == (False, None, 0)
    assert ("no cron expression" in resumed.set_aside_reason) is (name != own())
    await scheduler.register(job(timing=every("10m")))
    assert (await scheduler.get(name)).next_run_at == START + 10 * MINUTE


async def test_a_schedule_that_was_set_aside_is_looked_at_again_when_it_is_resumed(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("update carillon.schedules set next_run_at = null, set_aside_reason = 'no such zone'")
    assert (await pause(scheduler, own())).set_aside_reason == ""
    resumed, _ = await resume(scheduler, own())
    assert (resumed.next_run_at, resumed.set_aside_reason) == (START + 10 * MINUTE, "")


async def test_a_tick_at_the_schedule_is_waited_for(scheduler: Scheduler, admin: psycopg.Connection[Any]) -> None:
    due = START + 10 * MINUTE
    scheduler.database.now = due - SECOND
    async with ticking(scheduler.hot, due):
        change = asyncio.create_task(pause(scheduler, own()))
        await until_it_waits(change, admin)
        assert not change.done()
        scheduler.database.now = due + SECOND
    assert (await change).paused_at == due + SECOND
    assert scheduler.fired() == [(due, 1)]
    assert await unaccounted(scheduler) == []


@pytest.mark.parametrize("table", ["jobs", "schedules"])
async def test_pausing_counts_from_when_it_was_done(
    scheduler: Scheduler, database_urls: DatabaseUrls, admin: psycopg.Connection[Any], table: str
) -> None:
    scheduler.database.now = START + 5 * MINUTE
    with held(database_urls, table):
        change = asyncio.create_task(pause(scheduler, own()))
        await until_it_waits(change, admin)
        scheduler.database.now = START + 15 * MINUTE
    assert (await change).paused_at == START + 15 * MINUTE
    assert scheduler.fired() == [(START + 10 * MINUTE, 1)]


async def test_when_jobs_were_halted_is_on_record(scheduler: Scheduler) -> None:
    clock = scheduler.database
    await pause_job(scheduler)
    clock.now = START + 10 * MINUTE
    await resume_job(scheduler)
    clock.now = START + 20 * MINUTE
    await scheduler.register(job(job="other"), allow_mass_removal=True, generation=1)
    clock.now = START + 30 * MINUTE
    await scheduler.register(job(), job(job="other"), generation=1)
    clock.now = START + 40 * MINUTE
    await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    found = rows(
        scheduler,
        "select job, in_force_from, halted, changed_by from carillon.job_changes join carillon.jobs using (job_id)"
        " order by change_id",
    )
    assert [(row[0], (row[1] - START) // MINUTE, row[2], row[3]) for row in found] == [
        ("weekly-digest", 0, False, "service:email-service"),
        ("weekly-digest", 0, True, "admin:alice"),
        ("weekly-digest", 10, False, "admin:alice"),
        ("weekly-digest", 20, True, "service:email-service"),
        ("other", 20, False, "service:email-service"),
        ("weekly-digest", 30, False, "service:email-service"),
        ("weekly-digest", 40, True, "service:email-service"),
    ]
    await scheduler.tick_until(START + 41 * MINUTE)
    assert await unaccounted(scheduler) == []


async def test_what_changes_nothing_leaves_no_change_on_record(scheduler: Scheduler) -> None:
    count = "select count(*) from carillon.job_changes"
    await scheduler.register(job(), validate_only=True, generation=1)
    await scheduler.register(job(description="other"), generation=1)
    await resume_job(scheduler)
    assert rows(scheduler, count) == [(1,)]
    await pause_job(scheduler)
    await pause_job(scheduler)
    await jobs.resume_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST, CatchUp.ALL, validate_only=True)
    assert rows(scheduler, count) == [(2,)]


async def test_a_job_that_is_revived_while_it_is_paused_is_still_halted(scheduler: Scheduler) -> None:
    await pause_job(scheduler)
    await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    scheduler.database.now = START + 15 * MINUTE
    await scheduler.register(job(), generation=1)
    assert rows(scheduler, "select halted from carillon.job_changes order by change_id desc limit 1") == [(True,)]
    scheduler.database.now = START + 35 * MINUTE
    plan = await resume_job(scheduler, CatchUp.ALL)
    assert (plan.runs, plan.first) == (2, START + 20 * MINUTE)
    assert await unaccounted(scheduler) == []
