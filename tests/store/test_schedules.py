"""Schedules of tenants and of operators."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.errors import Conflict, InvalidInput, NotFound, NothingToSee, Unauthenticated
from scheduler_service.domain.job import JobOverrides, Policies, TimingSpec
from scheduler_service.domain.names import ScheduleName, ScheduleParent
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.usecases import schedules
from tests.builders import ADMIN, user
from tests.store.definitions_case import (
    DIGEST,
    HOUR,
    MINUTE,
    START,
    TENANT_USER,
    Scheduler,
    digest,
    every,
    for_tenant,
    own,
)


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    """With one job, which tenants may schedule."""
    overlap = Policies(overlap=Overlap.ALLOW_ALL)
    await scheduler.register(digest(timing=TimingSpec(time_zone="UTC"), tenant_schedules=True, policies=overlap))
    return scheduler


async def test_a_user_sets_and_reads_a_schedule_of_its_tenant(scheduler: Scheduler) -> None:
    timing = TimingSpec(cron="30 18 * * *", time_zone="Asia/Kolkata")
    put = await scheduler.put(for_tenant("acme"), ScheduleSpec(timing, labels={"brand_id": "b1"}), by=TENANT_USER)
    assert put.next_occurrence is not None
    assert put.next_occurrence.instant == START + HOUR
    assert put.next_occurrence.local.isoformat() == f"{START:%Y-%m-%d}T18:30:00"
    assert put.description == "At 18:30 every day, Kolkata time"
    assert (put.revision, put.created_by) == (1, "user:user-of-acme")
    assert await schedules.get_schedule(scheduler.database, TENANT_USER, for_tenant("acme")) == put
    await scheduler.tick_until(START + HOUR)
    assert scheduler.fired() == [(START + HOUR, 1)]


async def test_next_time_leaves_the_jitter_out(scheduler: Scheduler) -> None:
    put = await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1h", jitter=timedelta(minutes=30))))
    assert put.next_occurrence is not None
    assert put.next_run_at is not None
    assert put.next_occurrence.instant == START + HOUR < put.next_run_at <= START + HOUR + timedelta(minutes=30)


async def test_changing_a_schedule_settles_what_it_owed_first(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")), by=TENANT_USER)
    scheduler.database.now = START + 10 * MINUTE + timedelta(seconds=30)
    await scheduler.put(name, ScheduleSpec(every("2m")), "timing", by=TENANT_USER)
    await scheduler.tick_until(START + 14 * MINUTE)
    assert scheduler.fired() == [(START + 10 * MINUTE, 1), (START + 12 * MINUTE, 2), (START + 14 * MINUTE, 2)]


async def test_a_change_never_moves_back_behind_what_a_tick_has_settled(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 20 * MINUTE)
    scheduler.database.now = START + 15 * MINUTE  # it began before that tick, and waited for the schedule
    changed = await scheduler.put(name, ScheduleSpec(every("5m")), "timing")
    assert changed.settled_to == START + 20 * MINUTE
    counts_from = scheduler.admin.execute(
        "select in_force_from from carillon.schedule_revisions where revision = 2"
    ).fetchone()
    assert counts_from == (START + 20 * MINUTE,)
    await scheduler.tick_until(START + 30 * MINUTE)
    instants = [instant for instant, _ in scheduler.fired()]
    assert instants == [START + minute * MINUTE for minute in (10, 20, 25, 30)]


async def test_the_same_again_writes_nothing(scheduler: Scheduler) -> None:
    spec = ScheduleSpec(every("10m"), config={"a": 1})
    await scheduler.put(for_tenant("acme"), spec)
    before = scheduler.contents()
    scheduler.database.now += HOUR
    await scheduler.put(for_tenant("acme"), spec)
    assert scheduler.contents() == before


async def test_a_disabled_schedule_owes_nothing_until_it_is_enabled_again(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    disabled = await scheduler.put(name, ScheduleSpec(enabled=False), "enabled")
    assert (disabled.next_run_at, disabled.revision, disabled.spec.timing.cron) == (None, 2, "@every 10m")
    await scheduler.tick_until(START + 25 * MINUTE)
    await scheduler.put(name, ScheduleSpec(enabled=True), "enabled")
    await scheduler.tick_until(START + 40 * MINUTE)
    assert scheduler.fired() == [(START + 30 * MINUTE, 3), (START + 40 * MINUTE, 3)]


async def test_config_and_labels_reach_the_runs_that_come_due_later(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m"), config={"n": 1}))
    scheduler.database.now = START + 10 * MINUTE
    changed = await scheduler.put(name, ScheduleSpec(config={"n": 2}, labels={"brand_id": "b"}), "config", "labels")
    assert changed.revision == 1
    await scheduler.tick_until(START + 20 * MINUTE)
    rows = scheduler.admin.execute(
        "select payload ->> 'n', labels from carillon.live_runs order by scheduled_for"
    ).fetchall()
    assert rows == [("1", {}), ("2", {"brand_id": "b"})]


async def test_single_fields_of_the_timing_are_set_and_cleared(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(TimingSpec(cron="0 9 * * *", time_zone="Europe/Berlin")))
    await scheduler.put(name, ScheduleSpec(TimingSpec(cron="0 8 * * *")), "timing.cron", "timing.time_zone")
    found = await scheduler.get(name)
    assert (found.in_force.cron, found.in_force.time_zone) == ("0 8 * * *", "UTC")


async def test_where_nobody_names_a_zone_the_deployments_is_in_force(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True))
    put = await schedules.put_schedule(
        scheduler.database,
        scheduler.wakeups,
        ADMIN,
        for_tenant("acme"),
        ScheduleSpec(TimingSpec(cron="0 9 * * *")),
        default_time_zone="America/New_York",
    )
    assert put.in_force.time_zone == "America/New_York"


async def test_what_is_wrong_is_listed(scheduler: Scheduler) -> None:
    wrong = ScheduleSpec(
        TimingSpec(cron="0 0 30 2 *", time_zone="Berlin", jitter=2 * HOUR), config={"x": float("inf")}, labels={"": "a"}
    )
    with pytest.raises(InvalidInput) as refused:
        await scheduler.put(for_tenant("acme"), wrong)
    assert [v.field for v in refused.value.violations] == [
        "schedule.timing.cron",
        "schedule.timing.time_zone",
        "schedule.timing.jitter",
        "schedule.labels['']",
        "schedule.config.x",
    ]
    with pytest.raises(InvalidInput, match="neither the schedule nor its job says when"):
        await scheduler.put(for_tenant("acme"), ScheduleSpec())
    with pytest.raises(InvalidInput, match="no field 'name'"):
        await scheduler.put(for_tenant("acme"), ScheduleSpec(), "name")
    with pytest.raises(InvalidInput, match="262,144"):
        await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1h"), config={"x": "y" * 262_144}))
    with pytest.raises(InvalidInput, match="only @every has a phase"):
        await scheduler.put(for_tenant("acme"), ScheduleSpec(TimingSpec(cron="0 9 * * *", phase=MINUTE)))


async def test_the_jobs_own_schedule_changes_through_the_job_only(scheduler: Scheduler) -> None:
    await scheduler.override(JobOverrides(timing=every("10m")), "timing.cron")
    with pytest.raises(Conflict, match="UpdateJob"):
        await scheduler.put(own(), ScheduleSpec(enabled=False), "enabled")


async def test_operators_may_add_schedules_of_the_system(scheduler: Scheduler) -> None:
    name = ScheduleName(DIGEST, "-", "extra")
    put = await scheduler.put(name, ScheduleSpec(every("10m")))
    assert put.next_occurrence is not None
    with pytest.raises(NotFound):
        await scheduler.put(name, ScheduleSpec(every("10m")), by=user("-"))


async def test_a_job_has_to_allow_schedules_for_tenants(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    with pytest.raises(Conflict, match="tenant_schedules"):
        await scheduler.put(for_tenant("acme"), ScheduleSpec(every("10m")))
    with pytest.raises(NotFound):
        await scheduler.put(for_tenant("acme"), ScheduleSpec(every("10m")), by=TENANT_USER)
    await scheduler.register(allow_mass_removal=True)
    with pytest.raises(Conflict) as refused:
        await scheduler.put(for_tenant("acme"), ScheduleSpec(every("10m")))
    assert refused.value.reason == "JOB_ARCHIVED"


async def test_a_tenant_neither_reads_nor_sets_another_tenants_schedule(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(every("10m")))
    await scheduler.put(for_tenant("globex"), ScheduleSpec(every("10m")))
    globex = user("globex")
    with pytest.raises(NotFound):
        await schedules.get_schedule(scheduler.database, globex, for_tenant("acme"))
    with pytest.raises(NotFound):
        await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1m")), by=globex)
    page, _ = await schedules.list_schedules(scheduler.database, globex, ScheduleParent())
    assert [each.name.tenant for each in page] == ["globex"]
    nobody = Principal(Kind.USER, name="nobody")
    with pytest.raises(NothingToSee):
        await schedules.list_schedules(scheduler.database, nobody, ScheduleParent())
    with pytest.raises(Unauthenticated):
        await schedules.list_schedules(scheduler.database, Principal(Kind.ANONYMOUS), ScheduleParent())


async def test_schedules_are_listed_by_name_page_by_page(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h"), tenant_schedules=True), digest("another", timing=every("1h")))
    tenants = [f"tenant-{n}" for n in range(5)]
    for tenant in tenants:
        await scheduler.put(for_tenant(tenant), ScheduleSpec(every("10m")))
    seen, token = [], ""
    while True:
        page, token = await schedules.list_schedules(scheduler.database, ADMIN, ScheduleParent(), size=2, token=token)
        seen += [str(each.name) for each in page]
        if not token:
            break
    assert seen == [str(own("another")), str(own()), *(str(for_tenant(tenant)) for tenant in tenants)]
    system = ScheduleParent.parse("services/email-service/jobs/-/tenants/-")
    page, _ = await schedules.list_schedules(scheduler.database, ADMIN, system)
    assert [each.name for each in page] == [own("another"), own()]
    everyone = ScheduleParent.parse("services/-/jobs/weekly-digest/tenants/*")
    page, _ = await schedules.list_schedules(scheduler.database, ADMIN, everyone)
    assert len(page) == 6


async def test_two_who_create_the_same_schedule_at_once_both_succeed(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await asyncio.gather(*(scheduler.put(name, ScheduleSpec(every("10m"))) for _ in range(4)))
    assert (await scheduler.get(name)).revision == 1


async def test_a_schedule_put_while_its_job_changes_follows_the_new_timing(scheduler: Scheduler) -> None:
    for n in range(5):
        zone = "Asia/Kolkata" if n % 2 else "Europe/Berlin"
        change = JobOverrides(timing=TimingSpec(cron="0 9 * * *", time_zone=zone))
        await asyncio.gather(
            scheduler.override(change, "timing"),
            *(scheduler.put(for_tenant(f"tenant-{n}-{m}"), ScheduleSpec(every("1h")), by=ADMIN) for m in range(3)),
        )
        zones = scheduler.admin.execute("select distinct time_zone from carillon.schedules").fetchall()
        assert zones == [(zone,)]
