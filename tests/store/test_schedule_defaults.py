"""What a tenant is shown of jobs for which it has no schedule yet."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler_service.domain.access import Principal
from scheduler_service.domain.errors import NotFound, NothingToSee
from scheduler_service.domain.job import JobOverrides, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName, ScheduleParent
from scheduler_service.domain.schedule import NO_CRON, Schedule, ScheduleSpec
from scheduler_service.usecases import deleting, schedules, tenants
from tests.builders import ADMIN, service, user
from tests.store.definitions_case import (
    EMAIL,
    TABLES,
    TENANT_USER,
    Scheduler,
    digest,
    every,
    for_tenant,
)

OF_ACME = ScheduleParent.parse("services/-/jobs/-/tenants/acme")


def offered(job: str, **fields: Any) -> Any:
    timing = TimingSpec(cron="0 9 * * 1", time_zone="Europe/Berlin")
    return digest(job, **({"tenant_schedules": True, "timing": timing} | fields))


def default_of(job: str, tenant: str = "acme") -> ScheduleName:
    return ScheduleName(JobName("email-service", job), tenant, "default")


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    """With three jobs that tenants may schedule, and one that they may not."""
    await scheduler.register(
        offered("a"), digest("b", timing=every("1h")), offered("c", timing=TimingSpec()), offered("weekly-digest")
    )
    return scheduler


async def listed(
    scheduler: Scheduler, parent: ScheduleParent = OF_ACME, by: Principal = ADMIN, size: int = 0
) -> list[Schedule]:
    found, token = [], ""
    for _ in range(50):
        page, token = await schedules.list_schedules(
            scheduler.database, by, parent, size=size, token=token, default_time_zone="Asia/Tokyo"
        )
        found += page
        if not token:
            return found
        assert len(page) == size
    raise AssertionError("the pages have no end")


async def test_a_tenant_without_schedules_sees_each_jobs_default(scheduler: Scheduler) -> None:
    found = await listed(scheduler)
    assert [each.name for each in found] == [default_of("a"), default_of("c"), default_of("weekly-digest")]
    first, second, _ = found
    assert (first.stored, first.spec, first.next_occurrence) == (False, ScheduleSpec(enabled=False), None)
    assert (first.in_force.cron, first.in_force.time_zone) == ("0 9 * * 1", "Europe/Berlin")
    assert first.description == "At 09:00 on Monday, Berlin time"
    assert (first.created_at, first.created_by, first.revision) == (None, "", 0)
    assert (second.in_force.as_spec().cron, second.in_force.time_zone) == (None, "Asia/Tokyo")
    assert second.description == NO_CRON
    for by, parent in ((TENANT_USER, ScheduleParent()), (TENANT_USER, OF_ACME), (EMAIL, OF_ACME)):
        assert await listed(scheduler, parent, by) == found


async def test_a_default_is_in_the_tenants_zone_and_has_the_jobs_overrides(scheduler: Scheduler) -> None:
    await tenants.put_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme", "America/New_York")
    await scheduler.override(JobOverrides(timing=TimingSpec(cron="0 7 * * *")), "timing.cron")
    for by in (TENANT_USER, EMAIL, ADMIN):
        *_, last = await listed(scheduler, by=by)
        assert last.description == "At 07:00 every day, New York time"


async def test_what_is_put_takes_the_defaults_place(scheduler: Scheduler) -> None:
    (shown, *_) = await listed(scheduler)
    put = await scheduler.put(default_of("a"), ScheduleSpec(enabled=True), "enabled", by=TENANT_USER)
    assert (put.in_force.as_spec(), put.stored) == (shown.in_force.as_spec(), True)
    assert (await listed(scheduler))[0] == put
    await scheduler.put(for_tenant("acme", "a-first"), ScheduleSpec())
    found = await listed(scheduler)
    assert [each.name.schedule for each in found if each.name.job.job == "weekly-digest"] == ["a-first"]
    await deleting.delete_schedule(scheduler.database, scheduler.wakeups, ADMIN, for_tenant("acme", "a-first"))
    assert [(each.name, each.stored) for each in await listed(scheduler)][-1] == (default_of("weekly-digest"), False)


async def test_reading_a_default_answers_as_the_list_does(scheduler: Scheduler) -> None:
    first, second, _ = await listed(scheduler)
    for shown, by in ((first, TENANT_USER), (second, ADMIN), (first, EMAIL)):
        read = await schedules.get_schedule(scheduler.database, by, shown.name, default_time_zone="Asia/Tokyo")
        assert read == shown


@pytest.mark.parametrize(
    "name",
    [
        for_tenant("acme", "daily"),  # another name
        default_of("b"),  # allows none
        default_of("nowhere"),
        default_of("c", tenant="-"),
    ],
    ids=str,
)
async def test_nothing_else_is_made_up(scheduler: Scheduler, name: ScheduleName) -> None:
    with pytest.raises(NotFound):
        await scheduler.get(name)


async def test_a_default_goes_with_the_first_schedule_and_with_its_job(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme", "daily"), ScheduleSpec())
    with pytest.raises(NotFound):
        await scheduler.get(default_of("weekly-digest"))
    await scheduler.register(offered("weekly-digest"), allow_mass_removal=True)
    with pytest.raises(NotFound):
        await scheduler.get(default_of("a"))
    assert [each.name.schedule for each in await listed(scheduler)] == ["daily"]


async def test_lists_of_everyone_and_of_the_system_show_what_is_stored_only(scheduler: Scheduler) -> None:
    for parent in ("", "services/-/jobs/-/tenants/*", "services/-/jobs/-/tenants/-"):
        found = await listed(scheduler, ScheduleParent.parse(parent))
        assert [(each.name.tenant, each.stored) for each in found] == [("-", True)] * 3


async def test_nobody_else_is_shown_a_default(scheduler: Scheduler) -> None:
    with pytest.raises(NothingToSee):
        await listed(scheduler, ScheduleParent(), user(""))
    assert await listed(scheduler, ScheduleParent(), user("-")) == []
    assert await listed(scheduler, OF_ACME, service("billing-service")) == []
    with pytest.raises(NotFound):
        await schedules.get_schedule(scheduler.database, user("globex"), default_of("a"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
async def test_pages_have_defaults_in_their_places(scheduler: Scheduler, size: int) -> None:
    await scheduler.register(
        offered("a"), offered("c"), offered("d"), offered("e"), offered("weekly-digest"), generation=1
    )
    for name in ("a", "default", "z"):
        await scheduler.put(ScheduleName(JobName("email-service", "d"), "acme", name), ScheduleSpec())
    await scheduler.put(default_of("c", tenant="globex"), ScheduleSpec())
    found = await listed(scheduler, by=TENANT_USER, size=size)
    assert [(each.name.job.job, each.name.schedule, each.stored) for each in found] == [
        ("a", "default", False),
        ("c", "default", False),
        ("d", "a", True),
        ("d", "default", True),
        ("d", "z", True),
        ("e", "default", False),
        ("weekly-digest", "default", False),
    ]
    of_job = ScheduleParent.parse("services/email-service/jobs/c/tenants/acme")
    assert [each.name for each in await listed(scheduler, of_job, size=size)] == [default_of("c")]


async def test_listing_and_reading_write_nothing(scheduler: Scheduler) -> None:
    def contents() -> dict[str, list[Any]]:
        tables = (*TABLES, "tenants", "job_changes")
        return {
            each: scheduler.admin.execute(f"select xmin::text, t::text from carillon.{each} t order by 2").fetchall()
            for each in tables
        }

    before = contents()
    assert len(await listed(scheduler, by=TENANT_USER)) == 3
    await scheduler.get(default_of("a"))
    assert contents() == before


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_pages_of_everyone_begin_each_job_with_its_first_tenant(scheduler: Scheduler, size: int) -> None:
    await scheduler.register(offered("a", timing=TimingSpec()), offered("c", timing=TimingSpec()), generation=1)
    wanted = [
        ScheduleName(JobName("email-service", job), tenant, schedule)
        for job in ("a", "c")
        for tenant in ("acme", "globex")
        for schedule in ("daily", "weekly")
    ]
    for name in wanted:
        await scheduler.put(name, ScheduleSpec(every("1h")))
    system = {ScheduleName(JobName("email-service", job), "-", "default") for job in ("a", "b", "weekly-digest")}
    found = [each.name for each in await listed(scheduler, ScheduleParent(), size=size)]
    assert [name for name in found if name not in system] == wanted
