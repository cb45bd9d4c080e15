"""Deleting schedules, one by one or with their tenant."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.access import SYSTEM_TENANT, Principal
from scheduler_service.domain.errors import Conflict, Forbidden, NotFound
from scheduler_service.domain.job import Policies, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName, ScheduleParent
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.tenant import Tenant
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.usecases import deleting, runs, schedules, tenants
from scheduler_service.usecases.deleting import Deleted
from scheduler_service.usecases.wakeups import Topic
from tests.builders import ADMIN, claim, make_session, user
from tests.store.definitions_case import (
    EMAIL,
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

NAME = for_tenant("acme")


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    """With one job, of which tenants may have several schedules' runs at once."""
    await scheduler.register(scheduled())
    return scheduler


def scheduled(job: str = "weekly-digest", overlap: Overlap = Overlap.ALLOW_ALL, **timing: Any) -> Any:
    return digest(job, timing=TimingSpec(**timing), tenant_schedules=True, policies=Policies(overlap=overlap))


async def delete(scheduler: Scheduler, name: ScheduleName = NAME, by: Principal = ADMIN) -> Deleted:
    return await deleting.delete_schedule(scheduler.database, scheduler.wakeups, by, name)


async def remove_tenant(scheduler: Scheduler, tenant: str = "acme", by: Principal = ADMIN) -> Deleted:
    return await deleting.remove_tenant(scheduler.database, scheduler.wakeups, by, tenant)


def outcomes(scheduler: Scheduler) -> list[tuple[Any, ...]]:
    return scheduler.admin.execute(
        "select state::text, error ->> 'code', error ->> 'message' from carillon.runs order by run_id"
    ).fetchall()


def live(scheduler: Scheduler) -> int:
    ((count,),) = scheduler.admin.execute("select count(*) from carillon.live_runs").fetchall()
    return int(count)


async def test_a_deleted_schedule_owes_nothing_and_is_not_found(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")), by=TENANT_USER)
    assert await delete(scheduler, by=TENANT_USER) == Deleted(schedules=1)
    await scheduler.tick_until(START + HOUR, step=10 * MINUTE)
    assert scheduler.fired() == []
    with pytest.raises(NotFound):
        await schedules.get_schedule(scheduler.database, ADMIN, NAME)
    with pytest.raises(NotFound):
        await delete(scheduler)
    assert await schedules.list_schedules(scheduler.database, ADMIN, ScheduleParent()) == ([], "")


async def test_its_last_revision_says_since_when_it_owes_nothing(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    scheduler.database.now = START + 25 * MINUTE
    assert (await delete(scheduler, by=TENANT_USER)).settled > 0
    rows = scheduler.admin.execute(
        "select revision, enabled, in_force_from, changed_by from carillon.schedule_revisions order by revision"
    ).fetchall()
    assert rows == [(1, True, START, "admin:alice"), (2, False, START + 25 * MINUTE, str(TENANT_USER))]
    (row,) = scheduler.admin.execute(
        "select revision, enabled, next_run_at, deleted_at, settled_to, updated_by from carillon.schedules"
    ).fetchall()
    assert row == (2, False, None, START + 25 * MINUTE, START + 25 * MINUTE, str(TENANT_USER))


async def test_what_it_owed_until_then_is_settled_and_cancelled(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    scheduler.database.now = START + 10 * MINUTE + timedelta(seconds=30)
    assert await delete(scheduler) == Deleted(schedules=1, cancelled_runs=1, settled=1)
    assert scheduler.fired() == [(START + 10 * MINUTE, 1)]
    assert outcomes(scheduler) == [("CANCELLED", "CANCELLED", "its schedule was deleted by admin:alice")]


async def test_it_never_counts_from_before_what_a_tick_has_settled(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 20 * MINUTE)
    scheduler.database.now = START + 15 * MINUTE  # it began before that tick, and waited for the schedule
    await delete(scheduler)
    since = scheduler.admin.execute("select max(in_force_from) from carillon.schedule_revisions").fetchone()
    assert since == (START + 20 * MINUTE,)


async def test_waiting_runs_end_and_running_ones_go_on(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    await scheduler.put(for_tenant("globex"), ScheduleSpec(every("30m")))
    await scheduler.tick_until(START + 40 * MINUTE)
    of_acme = [
        row[0]
        for row in scheduler.admin.execute(
            "select run_id from carillon.live_runs where tenant_id = 'acme' order by run_id"
        ).fetchall()
    ]
    claim(scheduler.admin, of_acme[0], make_session(scheduler.admin))
    # One waits for its retry, one for another run.
    retry = "attempt = 2, run_after = run_after + interval '1 hour', last_error = '{}'"
    scheduler.admin.execute(f"update carillon.live_runs set {retry} where run_id = %s", [of_acme[1]])
    scheduler.admin.execute(
        "update carillon.live_runs set exclusive = true, blocked = true where run_id = %s", [of_acme[2]]
    )
    assert await delete(scheduler) == Deleted(schedules=1, cancelled_runs=3)
    left = scheduler.admin.execute("select run_id, tenant_id from carillon.live_runs order by tenant_id").fetchall()
    assert (left[0], [tenant for _, tenant in left]) == ((of_acme[0], "acme"), ["acme", "globex"])
    ended = scheduler.admin.execute("select run_id, attempt from carillon.runs order by run_id").fetchall()
    assert ended == [(of_acme[1], 2), (of_acme[2], 1), (of_acme[3], 1)]


async def test_those_who_watch_runs_are_told(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 10 * MINUTE)
    told = scheduler.wakeups.listen(Topic.RUNS)
    await delete(scheduler)
    assert told.take()


async def test_its_runs_keep_its_name(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 10 * MINUTE)
    await delete(scheduler)
    ((run_id,),) = scheduler.admin.execute("select run_id from carillon.runs").fetchall()
    assert (await runs.get_run(scheduler.database, TENANT_USER, run_id)).schedule == "daily"
    listed = await runs.list_runs(scheduler.database, TENANT_USER, RunFilter())
    assert [(each.run_id, each.schedule) for each in listed.runs] == [(run_id, "daily")]


async def test_its_name_is_free_for_another(scheduler: Scheduler) -> None:
    first = await scheduler.put(NAME, ScheduleSpec(every("10m"), config={"n": 1}))
    await delete(scheduler)
    second = await scheduler.put(NAME, ScheduleSpec(every("10m")), "timing")
    assert second.schedule_id != first.schedule_id
    assert (second.revision, second.spec.enabled, second.spec.config) == (1, True, {})
    await scheduler.tick_until(START + 10 * MINUTE)
    assert scheduler.fired() == [(START + 10 * MINUTE, 1)]
    await delete(scheduler)
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    page, _ = await schedules.list_schedules(scheduler.database, ADMIN, ScheduleParent())
    assert [each.name for each in page] == [NAME]


async def test_a_changed_job_leaves_deleted_schedules_as_they_were(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(TimingSpec(cron="0 9 * * *")))
    await delete(scheduler)
    before = scheduler.contents()["schedules"]
    await scheduler.register(scheduled(time_zone="Asia/Tokyo"), generation=1)
    await tenants.put_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme", "Asia/Kolkata")
    assert scheduler.contents()["schedules"] == before


async def test_a_jobs_own_schedule_is_not_deleted_by_hand(scheduler: Scheduler) -> None:
    await scheduler.register(scheduled(cron="0 9 * * *"))
    with pytest.raises(Conflict, match=r"PauseJob.*UpdateJob"):
        await delete(scheduler, own())
    with pytest.raises(NotFound):
        await delete(scheduler, own("nowhere"))


async def test_operators_delete_what_they_added_to_the_system(scheduler: Scheduler) -> None:
    name = ScheduleName(JobName("email-service", "weekly-digest"), SYSTEM_TENANT, "extra")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    assert (await delete(scheduler, name)).schedules == 1


async def test_a_schedule_of_an_archived_job_may_go(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    await scheduler.register(allow_mass_removal=True)
    assert (await delete(scheduler, by=TENANT_USER)).schedules == 1


async def test_only_operators_and_the_tenant_delete(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    for other in (user("globex"), user("-"), user("")):
        with pytest.raises(NotFound):
            await delete(scheduler, by=other)
    with pytest.raises(Forbidden):
        await delete(scheduler, by=EMAIL)
    for nobody in (EMAIL, TENANT_USER):
        with pytest.raises(Forbidden):
            await remove_tenant(scheduler, by=nobody)
    assert (await scheduler.get(NAME)).revision == 1


async def test_of_two_who_delete_at_once_one_finds_nothing(scheduler: Scheduler) -> None:
    await scheduler.put(NAME, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 10 * MINUTE)
    answers = await asyncio.gather(*(delete(scheduler) for _ in range(3)), return_exceptions=True)
    assert [each for each in answers if isinstance(each, Deleted)] == [Deleted(schedules=1, cancelled_runs=1)]
    assert sum(isinstance(each, NotFound) for each in answers) == 2
    assert len(outcomes(scheduler)) == 1


async def test_removing_a_tenant_deletes_all_its_schedules_by_the_batch(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "BATCH", 3)
    await scheduler.register(scheduled(), scheduled("another", cron="@every 10m"), generation=1)
    for n in range(5):
        await scheduler.put(for_tenant("acme", f"s{n}"), ScheduleSpec(every("10m")))
    another = JobName("email-service", "another")
    for n in range(3):
        await scheduler.put(ScheduleName(another, "acme", f"s{n}"), ScheduleSpec())
    await scheduler.put(for_tenant("globex"), ScheduleSpec(every("10m")))
    await tenants.put_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme", "Asia/Tokyo")
    await scheduler.tick_until(START + 10 * MINUTE)
    assert await remove_tenant(scheduler) == Deleted(schedules=8, cancelled_runs=8)
    assert await tenants.get_tenant(scheduler.database, ADMIN, "acme") == Tenant("acme")
    await scheduler.tick_until(START + 20 * MINUTE)
    rows = scheduler.admin.execute("select tenant_id, count(*) from carillon.live_runs group by 1 order by 1")
    assert rows.fetchall() == [("-", 2), ("globex", 2)]
    assert set(outcomes(scheduler)) == {("CANCELLED", "CANCELLED", "its schedule was deleted by admin:alice")}
    deleted_in = scheduler.admin.execute(
        "select count(distinct xmin::text) from carillon.schedules where deleted_at is not null"
    ).fetchone()
    assert deleted_in == (3,)
    assert await remove_tenant(scheduler) == Deleted()


async def test_removing_a_tenant_that_was_cut_off_goes_on_when_asked_again(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "BATCH", 2)
    for n in range(5):
        await scheduler.put(for_tenant("acme", f"s{n}"), ScheduleSpec(every("10m")))

    def cut_off(*_: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(deleting, "announce", cut_off)
        with pytest.raises(ConnectionResetError):
            await remove_tenant(scheduler)
    assert await remove_tenant(scheduler) == Deleted(schedules=3)


async def test_removal_registration_puts_ticks_and_deletions_at_once_end_well(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, other: psycopg.AsyncConnection[Any]
) -> None:
    monkeypatch.setattr(deleting, "BATCH", 4)
    another = JobName("email-service", "another")
    for n in range(1, 6):
        await scheduler.register(
            scheduled(jitter=n * MINUTE), scheduled("another", cron="@every 10m", jitter=n * MINUTE), generation=n
        )
        names = [ScheduleName(job, "acme", f"s{m}") for job in (for_tenant("acme").job, another) for m in range(6)]
        for name in names:
            await scheduler.put(name, ScheduleSpec(every("10m")))
        scheduler.database.now += 10 * MINUTE
        answers = await asyncio.gather(
            remove_tenant(scheduler),
            scheduler.register(scheduled(jitter=HOUR), scheduled("another", cron="@every 5m"), generation=n),
            tenants.put_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme", "Asia/Tokyo"),
            tick(other, NobodySeated(), now=scheduler.database.now),
            *(delete(scheduler, name) for name in names[::4]),
            *(scheduler.put(name, ScheduleSpec(every("7m")), "timing") for name in names[1::4]),
            return_exceptions=True,
        )
        assert [each for each in answers if isinstance(each, Exception) and not isinstance(each, NotFound)] == []
        await remove_tenant(scheduler)
        waiting = scheduler.admin.execute("select count(*) from carillon.live_runs where tenant_id = 'acme'").fetchone()
        assert waiting == (0,)
