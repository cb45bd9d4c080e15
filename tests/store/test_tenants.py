"""Tenants' time zones, and what follows them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from scheduler_service.domain.errors import Forbidden, InvalidInput, NotFound
from scheduler_service.domain.job import JobOverrides, Policies, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.schedule import NOT_ALLOWED, ScheduleSpec
from scheduler_service.domain.tenant import Tenant
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy
from scheduler_service.usecases import tenants
from tests.builders import ADMIN, user
from tests.store.definitions_case import (
    EMAIL,
    HOUR,
    MINUTE,
    START,
    TENANT_USER,
    Scheduler,
    digest,
    for_tenant,
)

NINE = TimingSpec(cron="0 9 * * *")
SAID = GapPolicy.SHIFT, RepeatPolicy.FIRST, timedelta(), timedelta()
TABLES = "schedules", "schedule_revisions", "tenants"


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    """With one job in Berlin's time, which tenants may schedule."""
    await scheduler.register(in_berlin())
    return scheduler


def in_berlin(job: str = "weekly-digest", **timing: Any) -> Any:
    overlap = Policies(overlap=Overlap.ALLOW_ALL)
    timed = TimingSpec(time_zone="Europe/Berlin", **timing)
    return digest(job, timing=timed, tenant_schedules=True, policies=overlap)


async def put_zone(scheduler: Scheduler, zone: str, tenant: str = "acme", by: Any = ADMIN) -> Tenant:
    return await tenants.put_tenant(scheduler.database, scheduler.wakeups, by, tenant, zone)


async def zone_of(scheduler: Scheduler, name: ScheduleName) -> str:
    return (await scheduler.get(name)).in_force.time_zone


async def test_a_zone_falls_back_from_schedule_to_tenant_to_job_to_the_deployments(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme", "own"), ScheduleSpec(TimingSpec(cron="0 9 * * *", time_zone="Asia/Tokyo")))
    await scheduler.put(for_tenant("acme"), ScheduleSpec(NINE))
    assert await zone_of(scheduler, for_tenant("acme")) == "Europe/Berlin"
    await put_zone(scheduler, "America/New_York")
    assert await zone_of(scheduler, for_tenant("acme", "own")) == "Asia/Tokyo"
    assert await zone_of(scheduler, for_tenant("acme")) == "America/New_York"
    made_later = await scheduler.put(for_tenant("acme", "later"), ScheduleSpec(NINE))
    assert made_later.in_force.time_zone == "America/New_York"
    await put_zone(scheduler, "")
    assert await zone_of(scheduler, for_tenant("acme", "later")) == "Europe/Berlin"
    await scheduler.register(digest(tenant_schedules=True))
    assert await zone_of(scheduler, for_tenant("acme")) == "UTC"


async def test_a_tenants_zone_is_in_force_for_its_own_schedules_only(scheduler: Scheduler) -> None:
    system = ScheduleName(JobName("email-service", "weekly-digest"), "-", "extra")
    for name in (for_tenant("acme"), for_tenant("globex"), system):
        await scheduler.put(name, ScheduleSpec(NINE))
    await put_zone(scheduler, "America/New_York")
    assert await zone_of(scheduler, for_tenant("acme")) == "America/New_York"
    assert await zone_of(scheduler, for_tenant("globex")) == "Europe/Berlin"
    assert await zone_of(scheduler, system) == "Europe/Berlin"


async def test_a_changed_job_leaves_its_tenants_in_their_zones(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(NINE))
    await put_zone(scheduler, "America/New_York")
    await scheduler.override(JobOverrides(timing=TimingSpec(time_zone="Asia/Tokyo", jitter=MINUTE)), "timing")
    found = (await scheduler.get(for_tenant("acme"))).in_force
    assert (found.time_zone, found.jitter) == ("America/New_York", MINUTE)
    await scheduler.register(in_berlin(jitter=2 * MINUTE), generation=2)  # by the service
    assert await zone_of(scheduler, for_tenant("acme")) == "America/New_York"


async def test_what_was_owed_before_the_change_fires_and_nothing_twice(scheduler: Scheduler) -> None:
    timing = TimingSpec(cron="*/30 12-13 * * *", time_zone=None)
    await scheduler.register(digest(tenant_schedules=True, policies=Policies(overlap=Overlap.ALLOW_ALL)))
    await scheduler.put(for_tenant("acme"), ScheduleSpec(timing))
    scheduler.database.now = START + 30 * MINUTE
    await put_zone(scheduler, "Etc/GMT-1")  # 13:30 there
    await scheduler.tick_until(START + 3 * HOUR, step=10 * MINUTE)
    assert scheduler.fired() == [(START + 30 * MINUTE, 1)]
    revisions = scheduler.admin.execute(
        "select revision, time_zone, in_force_from, changed_by from carillon.schedule_revisions order by revision"
    ).fetchall()
    assert revisions[1:] == [(2, "Etc/GMT-1", START + 30 * MINUTE, "admin:alice")]


async def test_all_jobs_of_a_tenant_follow(scheduler: Scheduler) -> None:
    await scheduler.register(in_berlin(), in_berlin("another", cron="0 1 * * *", jitter=MINUTE), generation=2)
    others = [ScheduleName(JobName("email-service", "another"), "acme", f"s{n}") for n in range(3)]
    await scheduler.put(for_tenant("acme"), ScheduleSpec(NINE))
    for name in others:
        await scheduler.put(name, ScheduleSpec())
    await put_zone(scheduler, "Asia/Kolkata", by=TENANT_USER)
    for name in (for_tenant("acme"), *others):
        found = await scheduler.get(name)
        assert (found.in_force.time_zone, found.revision, found.updated_by) == ("Asia/Kolkata", 2, str(TENANT_USER))
        assert found.next_occurrence is not None
        assert found.next_occurrence.local.hour == (9 if name in (for_tenant("acme"),) else 1)


async def test_schedules_of_an_archived_job_follow_too(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(NINE))
    await scheduler.register(allow_mass_removal=True)
    await put_zone(scheduler, "Asia/Kolkata")
    await scheduler.register(in_berlin())
    assert await zone_of(scheduler, for_tenant("acme")) == "Asia/Kolkata"


async def test_the_same_zone_again_writes_nothing(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(NINE))
    first = await put_zone(scheduler, "America/New_York")
    before = contents(scheduler)
    scheduler.database.now += HOUR
    assert await put_zone(scheduler, "America/New_York") == first
    assert await put_zone(scheduler, "", tenant="globex") == Tenant("globex")
    assert contents(scheduler) == before


async def test_a_tenant_is_read_as_it_was_set(scheduler: Scheduler) -> None:
    assert await tenants.get_tenant(scheduler.database, TENANT_USER, "acme") == Tenant("acme")
    await put_zone(scheduler, "America/New_York")
    scheduler.database.now += HOUR
    await put_zone(scheduler, "Asia/Tokyo", by=TENANT_USER)
    found = await tenants.get_tenant(scheduler.database, TENANT_USER, "acme")
    assert found == Tenant("acme", "Asia/Tokyo", START, START + HOUR, str(TENANT_USER))


async def test_an_unknown_zone_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(InvalidInput, match="Europe/Berlin") as refused:
        await put_zone(scheduler, "Europe/Berlim")
    assert [each.field for each in refused.value.violations] == ["tenant.time_zone"]


async def test_a_tenant_is_its_users_and_the_operators(scheduler: Scheduler) -> None:
    await put_zone(scheduler, "Asia/Tokyo")
    for other in (user("globex"), user("-"), user("")):
        with pytest.raises(NotFound):
            await tenants.get_tenant(scheduler.database, other, "acme")
        with pytest.raises(NotFound):
            await put_zone(scheduler, "UTC", by=other)
    with pytest.raises(Forbidden):
        await tenants.get_tenant(scheduler.database, EMAIL, "acme")
    with pytest.raises(Forbidden):
        await put_zone(scheduler, "UTC", by=EMAIL)


async def test_a_schedule_put_while_its_tenants_zone_changes_follows_the_new_zone(scheduler: Scheduler) -> None:
    for n in range(6):
        zone = "Asia/Kolkata" if n % 2 else "America/New_York"
        tenant = f"tenant-{n // 2}"  # the first change of each is of one that has no row
        await asyncio.gather(
            put_zone(scheduler, zone, tenant),
            *(scheduler.put(for_tenant(tenant, f"s-{n}-{m}"), ScheduleSpec(NINE)) for m in range(3)),
        )
        zones = scheduler.admin.execute(
            "select distinct time_zone from carillon.schedules where tenant_id = %s", [tenant]
        ).fetchall()
        assert zones == [(zone,)]


async def test_registration_and_a_change_of_zone_at_once_both_count(scheduler: Scheduler) -> None:
    names = [for_tenant("acme", f"s{n}") for n in range(5)]
    for name in names:
        await scheduler.put(name, ScheduleSpec(NINE))
    for n in range(1, 7):
        zone = "Asia/Kolkata" if n % 2 else "America/New_York"
        await asyncio.gather(put_zone(scheduler, zone), scheduler.register(in_berlin(jitter=n * MINUTE), generation=n))
        found = [(await scheduler.get(name)).in_force for name in names]
        assert {(each.time_zone, each.jitter) for each in found} == {(zone, n * MINUTE)}


async def test_a_paused_schedule_follows_and_stays_paused(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(NINE))
    scheduler.admin.execute("update carillon.schedules set paused_at = %s, next_run_at = null", [START])
    await put_zone(scheduler, "Asia/Kolkata")
    found = await scheduler.get(name)
    assert (found.in_force.time_zone, found.next_run_at, found.paused_at) == ("Asia/Kolkata", None, START)


def contents(scheduler: Scheduler) -> dict[str, list[Any]]:
    return {
        table: scheduler.admin.execute(f"select xmin::text, t::text from carillon.{table} t order by 2").fetchall()
        for table in TABLES
    }


@pytest.mark.parametrize("timing", [NINE, TimingSpec("0 9 * * *", "Asia/Tokyo", *SAID)], ids=["some", "everything"])
async def test_schedules_that_their_job_allows_no_more_owe_nothing_until_it_does_again(
    scheduler: Scheduler, timing: TimingSpec
) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(timing))
    armed = await scheduler.get(for_tenant("acme"))
    await scheduler.register(replace(in_berlin(), tenant_schedules=False))
    refused = await scheduler.get(for_tenant("acme"))
    assert (refused.next_run_at, refused.set_aside_reason, refused.spec.enabled) == (None, NOT_ALLOWED, True)
    await put_zone(scheduler, "Asia/Kolkata", by=TENANT_USER)
    scheduler.database.now += 30 * HOUR
    await scheduler.register(in_berlin())
    allowed = await scheduler.get(for_tenant("acme"))
    assert (allowed.set_aside_reason, allowed.revision) == ("", armed.revision + 2)
    assert allowed.in_force.time_zone == (timing.time_zone or "Asia/Kolkata")
    assert allowed.next_run_at is not None
    assert allowed.next_run_at > scheduler.database.now
    assert scheduler.fired() == []
    assert scheduler.admin.execute("select count(*) from carillon.gaps").fetchone() == (0,)
