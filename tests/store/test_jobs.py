"""Reading and steering jobs, and what that does to the runs they owe."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.errors import Conflict, Forbidden, InvalidInput, NotFound
from scheduler_service.domain.job import JobOverrides, Policies, RetryPolicy, TimingSpec
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.usecases import jobs
from scheduler_service.usecases.jobs import JobFilter
from scheduler_service.usecases.wakeups import Topic
from tests.builders import ADMIN, service
from tests.store.definitions_case import (
    DIGEST,
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

ALONGSIDE = Policies(overlap=Overlap.ALLOW_ALL)


def minutes(scheduler: Scheduler) -> list[tuple[float, int]]:
    """Each scheduled run: minutes since START, and revision."""
    return [((instant - START) / MINUTE, revision) for instant, revision in scheduler.fired()]


async def test_a_changed_timing_counts_from_the_change_and_nothing_fires_twice(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALONGSIDE))
    await scheduler.tick_until(START + 15 * MINUTE)
    scheduler.database.now = START + 32 * MINUTE  # occurrences 20 and 30 are owed, and no tick came for them
    await scheduler.override(JobOverrides(timing=every("4m")), "timing.cron")
    await scheduler.tick_until(START + 41 * MINUTE)
    # 20 is late beyond its minute: LATEST lets 30 stand for it. 32 itself is not owed again by the new revision.
    assert minutes(scheduler) == [(10, 1), (30, 1), (36, 2), (40, 2)]
    gaps = scheduler.admin.execute("select first_at, occurrences, revision from carillon.gaps").fetchall()
    assert [(first.astimezone(START.tzinfo), count, revision) for first, count, revision in gaps] == [
        (START + 20 * MINUTE, 1, 1)
    ]


async def test_changing_a_timing_back_and_forth_fires_no_instant_twice(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALONGSIDE))
    for minute in range(1, 41):
        await scheduler.tick_until(START + minute * MINUTE)
        cron = "@every 10m" if minute % 2 else "@every 5m"
        await scheduler.override(JobOverrides(timing=TimingSpec(cron=cron)), "timing.cron")
    instants = [instant for instant, _ in scheduler.fired()]
    assert len(instants) == len(set(instants))
    assert instants == sorted(instants)
    assert {START + n * MINUTE for n in (10, 20, 30, 40)} <= set(instants)


async def test_an_occurrence_that_waits_for_its_jitter_is_not_lost_by_a_change(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h", jitter=timedelta(minutes=50)), policies=ALONGSIDE))
    armed = (await scheduler.get(own())).next_run_at
    assert armed is not None
    assert armed > START + HOUR
    scheduler.database.now = START + HOUR + timedelta(milliseconds=1)
    await scheduler.override(JobOverrides(timing=every("2h")), "timing.cron")
    assert minutes(scheduler) == [(60, 1)]


async def test_each_revision_is_kept_with_the_instant_from_which_it_counts(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")))
    scheduler.database.now += MINUTE
    await scheduler.override(JobOverrides(timing=TimingSpec(time_zone="Asia/Kolkata")), "timing.time_zone")
    rows = scheduler.admin.execute(
        "select revision, time_zone, in_force_from, changed_by from carillon.schedule_revisions order by revision"
    ).fetchall()
    assert [(r, z, at.astimezone(START.tzinfo), by) for r, z, at, by in rows] == [
        (1, "UTC", START, "service:email-service"),
        (2, "Asia/Kolkata", START + MINUTE, "admin:alice"),
    ]


async def test_an_override_that_alters_nothing_in_force_makes_no_revision(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")))
    await scheduler.override(JobOverrides(timing=every("10m")), "timing.cron")
    await scheduler.override(JobOverrides(config={"limit": 1}), "config")
    assert (await scheduler.get(own())).revision == 1
    before = scheduler.contents()
    await scheduler.override(JobOverrides(config={"limit": 1}), "config")
    assert scheduler.contents() == before


async def test_tenants_schedules_follow_the_fields_that_they_do_not_say_themselves(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=TimingSpec(cron="0 9 * * *"), tenant_schedules=True))
    await scheduler.put(for_tenant("follows"), ScheduleSpec())
    await scheduler.put(for_tenant("own-time"), ScheduleSpec(TimingSpec(cron="0 7 * * *")))
    await scheduler.put(for_tenant("own-zone"), ScheduleSpec(TimingSpec(time_zone="Europe/Berlin")))
    await scheduler.override(JobOverrides(timing=TimingSpec(time_zone="Asia/Kolkata")), "timing.time_zone")
    found = {name: await scheduler.get(for_tenant(name)) for name in ("follows", "own-time", "own-zone")}
    assert {n: (s.in_force.cron, s.in_force.time_zone, s.revision) for n, s in found.items()} == {
        "follows": ("0 9 * * *", "Asia/Kolkata", 2),
        "own-time": ("0 7 * * *", "Asia/Kolkata", 2),
        "own-zone": ("0 9 * * *", "Europe/Berlin", 1),
    }


async def test_however_many_schedules_follow_each_gets_its_own_revision(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    await scheduler.register(digest(timing=TimingSpec(cron="0 9 * * *"), tenant_schedules=True))
    admin.execute("""
insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,
  jitter, settled_to, next_run_at, created_at, created_by, updated_at, updated_by)
select s.job_id, 't' || n, 's', k.timing, n % 7 <> 0, s.cron, k.zone, s.gap, s.repeat, s.phase, k.jitter, s.settled_to,
  case when n % 7 <> 0 then s.next_run_at end, now(), 'x', now(), 'x'
from carillon.schedules s, generate_series(1, 2500) n,
lateral (select * from (values
  (0, '{}'::jsonb, 'UTC', interval '0'),
  (1, '{"time_zone": "Asia/Kolkata"}', 'Asia/Kolkata', '0'),
  (2, '{"jitter": 60}', 'UTC', '60 s'),
  (3, '{"cron": "0 9 * * *"}', 'UTC', '0')) v (kind, timing, zone, jitter) where kind = n % 4) k""")
    await scheduler.register(digest(timing=TimingSpec(cron="30 13 * * *"), tenant_schedules=True))
    found = admin.execute("""
select timing, enabled, count(*)::int, count(distinct next_run_at)::int, min(next_run_at), max(revision)
from carillon.schedules where tenant_id <> '-' group by timing, enabled order by timing::text, enabled""").fetchall()
    half_past = START.replace(hour=13, minute=30)
    in_kolkata = half_past.replace(hour=8, minute=0) + timedelta(days=1)
    nine = START.replace(hour=9) + timedelta(days=1)
    assert [(row[0], row[1], row[2], row[5]) for row in found] == [
        ({"cron": "0 9 * * *"}, False, 90, 1),
        ({"cron": "0 9 * * *"}, True, 535, 1),
        ({"jitter": 60}, False, 89, 2),
        ({"jitter": 60}, True, 536, 2),
        ({"time_zone": "Asia/Kolkata"}, False, 89, 2),
        ({"time_zone": "Asia/Kolkata"}, True, 536, 2),
        ({}, False, 89, 2),
        ({}, True, 536, 2),
    ]
    assert [row[3] for row in found] == [0, 1, 0, 536, 0, 1, 0, 1]
    assert [found[place][4] for place in (1, 5, 7)] == [nine, in_kolkata, half_past]
    assert half_past <= found[3][4] < half_past + MINUTE
    revisions = admin.execute("select count(*)::int, count(distinct schedule_id)::int from carillon.schedule_revisions")
    assert revisions.fetchone() == (1877, 1876)  # the job's own has two; those with a cron of their own have none


async def test_a_job_without_an_expression_has_no_schedule_until_it_gets_one(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True))
    with pytest.raises(NotFound):
        await scheduler.get(own())
    await scheduler.override(JobOverrides(timing=every("10m")), "timing.cron")
    await scheduler.put(for_tenant("acme"), ScheduleSpec())
    await scheduler.override(JobOverrides(), "timing.cron")
    lost, tenants = await scheduler.get(own()), await scheduler.get(for_tenant("acme"))
    assert (lost.spec.enabled, lost.next_occurrence, lost.set_aside_reason) == (False, None, "")
    assert (tenants.spec.enabled, tenants.next_occurrence) == (True, None)
    assert "no cron expression any more" in tenants.set_aside_reason
    scheduler.database.now += HOUR
    await scheduler.override(JobOverrides(timing=every("10m")), "timing.cron")
    again, tenants = await scheduler.get(own()), await scheduler.get(for_tenant("acme"))
    assert again.spec.enabled
    assert not tenants.set_aside_reason
    assert [s.next_occurrence.instant for s in (again, tenants) if s.next_occurrence] == [
        START + HOUR + 10 * MINUTE
    ] * 2


@pytest.mark.parametrize("ticking", [True, False])
async def test_a_paused_job_owes_nothing_for_the_time_it_was_paused(scheduler: Scheduler, ticking: bool) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALONGSIDE))
    scheduler.database.now = START + 10 * MINUTE + timedelta(seconds=5)  # 10 is owed when it is paused
    paused = await jobs.pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    assert (paused.paused_at, paused.next_run_at) == (scheduler.database.now, None)
    if ticking:
        await scheduler.tick_until(START + 34 * MINUTE)
    scheduler.database.now = START + 34 * MINUTE
    resumed, _ = await jobs.resume_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    assert (resumed.paused_at, resumed.next_run_at) == (None, START + 40 * MINUTE)
    await scheduler.tick_until(START + 51 * MINUTE)
    assert [minute for minute, _ in minutes(scheduler)] == [10, 40, 50]
    assert scheduler.admin.execute("select count(*) from carillon.gaps").fetchone() == (0,)


async def test_pausing_or_resuming_twice_changes_nothing(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    for verb in (jobs.pause_job, jobs.resume_job):
        await verb(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
        before = scheduler.contents()
        scheduler.database.now += MINUTE
        await verb(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
        assert scheduler.contents() == before


async def test_policies_changed_by_hand_are_in_force_for_what_comes_due_later(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALONGSIDE))
    scheduler.database.now = START + 10 * MINUTE
    changed = JobOverrides(policies=Policies(retry=RetryPolicy(max_attempts=7)))
    await scheduler.override(changed, "policies.retry.max_attempts")
    await scheduler.tick_until(START + 20 * MINUTE)
    rows = scheduler.admin.execute("select max_attempts from carillon.live_runs order by scheduled_for").fetchall()
    assert rows == [(3,), (7,)]


async def test_resetting_brings_back_what_was_declared(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), config={"limit": 5}))
    await scheduler.override(JobOverrides(timing=every("5m"), config={"limit": 1}), "timing", "config")
    partly = await jobs.reset_job_overrides(scheduler.database, scheduler.wakeups, ADMIN, DIGEST, ["config"])
    assert (partly.in_force("UTC").config, partly.in_force("UTC").timing.cron) == ({"limit": 5}, "@every 5m")
    wholly = await jobs.reset_job_overrides(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    assert (wholly.overrides, wholly.in_force("UTC").timing.cron) == (JobOverrides(), "@every 10m")


async def test_masks_and_values_that_are_wrong_are_named(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=TimingSpec(cron="0 9 * * *")))
    with pytest.raises(InvalidInput, match=r"no field 'timing.croon'.*timing.cron"):
        await scheduler.override(JobOverrides(), "timing.croon")
    with pytest.raises(InvalidInput, match="it is empty"):
        await scheduler.override(JobOverrides())
    wrong = JobOverrides(TimingSpec(cron="61 * * * *", phase=MINUTE), Policies(run_timeout=timedelta(days=31)))
    with pytest.raises(InvalidInput) as refused:
        await scheduler.override(wrong, "timing.cron", "policies.run_timeout")
    assert [v.field for v in refused.value.violations] == ["overrides.timing.cron", "overrides.policies.run_timeout"]
    with pytest.raises(InvalidInput, match="only @every has a phase"):
        await scheduler.override(wrong, "timing.phase")


async def test_an_archived_job_is_not_steered(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    await scheduler.register(allow_mass_removal=True)
    with pytest.raises(Conflict) as refused:
        await jobs.pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    assert refused.value.reason == "JOB_ARCHIVED"


async def test_only_admins_steer_and_users_do_not_see_jobs(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True))
    with pytest.raises(Forbidden):
        await jobs.pause_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    with pytest.raises(NotFound):
        await jobs.get_job(scheduler.database, TENANT_USER, DIGEST)
    assert await jobs.list_jobs(scheduler.database, TENANT_USER, JobFilter()) == ([], "")
    assert (await jobs.get_job(scheduler.database, EMAIL, DIGEST)).name == DIGEST


async def test_jobs_are_listed_page_by_page_with_filters(scheduler: Scheduler) -> None:
    names = [f"job-{n:02}" for n in range(7)]
    await scheduler.register(*(digest(name, labels={"job_type": "mail"}) for name in names), digest("other"))
    await scheduler.register(*(digest(name, labels={"job_type": "mail"}) for name in names))
    wanted = JobFilter(labels={"job_type": "mail"})
    seen, token = [], ""
    while True:
        page, token = await jobs.list_jobs(scheduler.database, ADMIN, wanted, size=3, token=token)
        seen += [job.name.job for job in page]
        if not token:
            break
    assert seen == names
    everything, _ = await jobs.list_jobs(scheduler.database, ADMIN, JobFilter(archived=True))
    assert [job.name.job for job in everything] == [*names, "other"]
    assert await jobs.list_jobs(scheduler.database, service("kpi-service"), JobFilter()) == ([], "")


async def test_a_change_wakes_the_ticker_once_it_is_committed(scheduler: Scheduler) -> None:
    listener = scheduler.wakeups.listen(Topic.SCHEDULES)
    await scheduler.register(digest(timing=every("10m")))
    assert await listener.wait(0)
    await scheduler.register(digest(timing=every("10m")))
    assert not await listener.wait(0)
    await scheduler.override(JobOverrides(timing=every("5m")), "timing.cron")
    assert await listener.wait(0)


def test_start_is_at_a_boundary_of_the_periods_used_here() -> None:
    epoch = datetime.fromtimestamp(0, START.tzinfo)
    assert (START - epoch) % HOUR == timedelta()
