"""Resuming schedules and jobs: nothing is caught up unless it is asked for, and then what was said before."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.catching_up import NOTHING, CatchUpPlan
from scheduler_service.domain.errors import Conflict
from scheduler_service.domain.job import JobOverrides, Policies
from scheduler_service.domain.ledger import Outcome
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases import deleting, registry
from scheduler_service.usecases.wakeups import Topic
from tests.builders import ADMIN
from tests.store.definitions_case import DIGEST, EMAIL, HOUR, MINUTE, START, Scheduler, every, for_tenant, own
from tests.store.ledger_case import end_all, read
from tests.store.pausing_case import (
    gaps,
    job,
    made,
    pause,
    pause_job,
    resume,
    resume_job,
    unaccounted,
)
from tests.store.test_waiting import SECOND, ticking, until_it_waits


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    await scheduler.register(job())
    return scheduler


def at(minute: float) -> Any:
    return START + minute * MINUTE


CATCH_UP = "CATCH_UP"
MISSED = "CATCH_UP_LATEST"


async def test_resuming_owes_nothing_for_the_pause(scheduler: Scheduler) -> None:
    await pause(scheduler, own())
    await scheduler.tick_until(at(35))
    resumed, plan = await resume(scheduler, own())
    assert (plan, resumed.paused_at, resumed.next_run_at, resumed.revision) == (NOTHING, None, at(40), 3)
    await scheduler.tick_until(at(40))
    assert scheduler.fired() == [(at(40), 3)]
    assert gaps(scheduler.admin) == []
    assert await unaccounted(scheduler) == []


async def test_resuming_twice_changes_nothing(scheduler: Scheduler) -> None:
    await pause(scheduler, own())
    scheduler.database.now = at(35)
    await resume(scheduler, own(), CatchUp.ALL)
    before = scheduler.contents()
    scheduler.database.now = at(55)
    assert (await resume(scheduler, own(), CatchUp.ALL))[1] == NOTHING
    assert await resume_job(scheduler, CatchUp.ALL) == NOTHING
    assert scheduler.contents() == before


@pytest.mark.parametrize(
    ("policy", "plan", "runs", "missed"),
    [
        (CatchUp.ALL, CatchUpPlan(3, 0, at(10), at(30)), [10, 20, 30], []),
        (CatchUp.LATEST, CatchUpPlan(1, 2, at(30), at(30)), [30], [(at(10), at(20), 2, MISSED)]),
    ],
)
@pytest.mark.parametrize("whole_job", [False, True])
async def test_resuming_catches_up_what_it_said_it_would(
    scheduler: Scheduler,
    whole_job: bool,
    policy: CatchUp,
    plan: CatchUpPlan,
    runs: list[int],
    missed: list[tuple[Any, ...]],
) -> None:
    async def let_go(*, validate_only: bool = False) -> CatchUpPlan:
        if whole_job:
            return await resume_job(scheduler, policy, validate_only=validate_only)
        return (await resume(scheduler, own(), policy, validate_only=validate_only))[1]

    await (pause_job(scheduler) if whole_job else pause(scheduler, own()))
    await scheduler.tick_until(at(35))
    before = scheduler.contents()
    assert await let_go(validate_only=True) == plan
    assert scheduler.contents() == before
    pending = scheduler.wakeups.listen(Topic.PENDING)
    assert await let_go() == plan
    assert pending.take()
    assert made(scheduler.admin) == [(at(minute), CATCH_UP, 1) for minute in runs]
    assert gaps(scheduler.admin) == missed
    assert (await scheduler.get(own())).next_run_at == at(40)
    assert await unaccounted(scheduler) == []
    await scheduler.tick_until(at(50))
    assert [instant for instant, _, _ in made(scheduler.admin)] == [at(minute) for minute in (*runs, 40, 50)]
    assert await unaccounted(scheduler) == []


@pytest.mark.parametrize("whole_job", [False, True])
async def test_what_is_less_than_a_minute_late_is_on_time(scheduler: Scheduler, whole_job: bool) -> None:
    await (pause_job(scheduler) if whole_job else pause(scheduler, own()))
    scheduler.database.now = at(20) + 59 * SECOND
    await (resume_job(scheduler, CatchUp.LATEST) if whole_job else resume(scheduler, own(), CatchUp.LATEST))
    assert made(scheduler.admin) == [(at(20), "SCHEDULE", 0)]
    assert gaps(scheduler.admin) == [(at(10), at(10), 1, MISSED)]


@pytest.mark.parametrize("whole_job", [False, True])
async def test_what_falls_outside_the_jobs_window_is_missed(scheduler: Scheduler, whole_job: bool) -> None:
    window = Policies(overlap=Overlap.ALLOW_ALL, catch_up_window=15 * MINUTE)
    await scheduler.register(job(policies=window))
    await (pause_job(scheduler) if whole_job else pause(scheduler, own()))
    await scheduler.tick_until(at(45))
    await (resume_job(scheduler, CatchUp.ALL) if whole_job else resume(scheduler, own(), CatchUp.ALL))
    assert made(scheduler.admin) == [(at(30), CATCH_UP, 1), (at(40), CATCH_UP, 1)]
    assert gaps(scheduler.admin) == [(at(10), at(20), 2, "OUTSIDE_WINDOW")]
    assert await unaccounted(scheduler) == []


@pytest.mark.parametrize("aside_at", [5, 25])
async def test_what_a_schedule_owed_in_its_jobs_pause_is_missed_if_it_is_set_aside(
    scheduler: Scheduler, aside_at: int
) -> None:
    set_aside = "update carillon.schedules set next_run_at = null, set_aside_reason = 'no such zone'"
    for moment, act in sorted([(aside_at, None), (15, pause_job)], key=lambda each: each[0]):
        await scheduler.tick_until(at(moment))
        if act is None:
            scheduler.admin.execute(set_aside)
        else:
            await act(scheduler)
    await scheduler.tick_until(at(45))
    plan = await resume_job(scheduler, CatchUp.ALL, validate_only=True)
    assert plan == await resume_job(scheduler, CatchUp.ALL) == CatchUpPlan(runs=0, missed=3)
    scheduler.database.now = at(65)
    assert [entry.outcome for entry in await read(scheduler)][-2:] == [Outcome.MISSED, Outcome.MISSED]
    await pause(scheduler, own())
    assert await unaccounted(scheduler) == []
    assert gaps(scheduler.admin)[-2:] == [(at(20), at(40), 3, "CATCH_UP_NONE"), (at(50), at(60), 2, "SET_ASIDE")]


async def test_what_was_run_before_the_databases_clock_went_back_is_not_run_again(scheduler: Scheduler) -> None:
    await scheduler.tick_until(at(10))
    end_all(scheduler)
    scheduler.database.now = at(5)
    await pause_job(scheduler)
    scheduler.database.now = at(25)
    await resume_job(scheduler, CatchUp.ALL)
    assert made(scheduler.admin) == [(at(20), CATCH_UP, 1)]


async def test_runs_that_are_caught_up_name_the_new_revision_and_take_after_job_and_schedule(
    scheduler: Scheduler,
) -> None:
    name = for_tenant("acme")
    await scheduler.register(job(config={"limit": 1, "dry": True}, labels={"team": "crm"}))
    await scheduler.put(name, ScheduleSpec(every("10m"), config={"limit": 2}, labels={"brand_id": "b"}))
    await pause(scheduler, name)
    scheduler.database.now = at(15)
    await resume(scheduler, name, CatchUp.ALL)
    row = scheduler.admin.execute(
        "select revision, tenant_id, payload, labels, triggered_by, time_zone, scheduled_local is not null"
        " from carillon.live_runs"
    ).fetchone()
    config, labels = {"limit": 2, "dry": True}, {"team": "crm", "brand_id": "b"}
    assert row == (3, "acme", config, labels, "admin:alice", "UTC", True)
    revision = "select in_force_from from carillon.schedule_revisions order by schedule_id desc, revision desc limit 1"
    assert scheduler.admin.execute(revision).fetchone() == (START,)


@pytest.mark.parametrize("whole_job", [False, True])
async def test_runs_that_are_caught_up_take_their_turn_whatever_the_overlap(
    scheduler: Scheduler, whole_job: bool
) -> None:
    await scheduler.register(job(policies=Policies(overlap=Overlap.SKIP)))
    await (pause_job(scheduler) if whole_job else pause(scheduler, own()))
    scheduler.database.now = at(35)
    await (resume_job(scheduler, CatchUp.ALL) if whole_job else resume(scheduler, own(), CatchUp.ALL))
    found = scheduler.admin.execute(
        "select blocked, followed, exclusive from carillon.live_runs order by scheduled_for"
    ).fetchall()
    assert found == [(False, True, True), (True, False, True), (True, False, True)]


async def test_a_schedule_that_was_changed_while_it_was_paused_catches_up_from_then_on(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("1m")))
    await pause(scheduler, name)
    await scheduler.tick_until(at(15))
    await scheduler.put(name, ScheduleSpec(every("5m")), "timing")
    await scheduler.tick_until(at(27))
    _, plan = await resume(scheduler, name, CatchUp.ALL)
    assert (plan.runs, plan.first, plan.last) == (2, at(20), at(25))
    assert await unaccounted(scheduler) == []


async def test_a_schedule_does_not_catch_up_what_its_job_did_not_owe(scheduler: Scheduler) -> None:
    await pause(scheduler, own())
    scheduler.database.now = at(15)
    await pause_job(scheduler)
    scheduler.database.now = at(35)
    await resume_job(scheduler)
    scheduler.database.now = at(55)
    await pause_job(scheduler)
    scheduler.database.now = at(75)
    _, plan = await resume(scheduler, own(), CatchUp.ALL)
    assert plan == CatchUpPlan(3, 0, at(10), at(50))
    assert [instant for instant, _, _ in made(scheduler.admin)] == [at(10), at(40), at(50)]
    assert await unaccounted(scheduler) == []
    assert await resume_job(scheduler, CatchUp.ALL) == CatchUpPlan(2, 0, at(60), at(70))
    await scheduler.tick_until(at(80))
    assert await unaccounted(scheduler) == []


async def test_a_disabled_schedule_catches_up_nothing(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await pause(scheduler, name)
    await scheduler.put(name, ScheduleSpec(enabled=False), "enabled")
    scheduler.database.now = at(15)
    resumed, plan = await resume(scheduler, name, CatchUp.ALL)
    assert (plan, resumed.paused_at, resumed.spec.enabled, resumed.next_run_at) == (NOTHING, None, False, None)


async def test_one_that_was_enabled_while_it_was_paused_catches_up_from_then_on(scheduler: Scheduler) -> None:
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m"), enabled=False))
    await pause(scheduler, name)
    scheduler.database.now = at(15)
    await scheduler.put(name, ScheduleSpec(enabled=True), "enabled")
    scheduler.database.now = at(25)
    assert (await resume(scheduler, name, CatchUp.ALL))[1] == CatchUpPlan(1, 0, at(20), at(20))


async def test_a_job_catches_up_for_all_its_schedules_but_runs_nothing_of_old_revisions(scheduler: Scheduler) -> None:
    names = {kind: for_tenant(kind) for kind in ("steady", "changed", "paused", "disabled", "deleted", "late", "off")}
    for kind, name in names.items():
        if kind != "late":
            await scheduler.put(name, ScheduleSpec(every("10m"), enabled=kind != "off"))
    await pause_job(scheduler)
    await scheduler.tick_until(at(15))
    await scheduler.put(names["changed"], ScheduleSpec(every("4m")), "timing")
    await pause(scheduler, names["paused"])
    await scheduler.put(names["disabled"], ScheduleSpec(enabled=False), "enabled")
    await deleting.delete_schedule(scheduler.database, scheduler.wakeups, ADMIN, names["deleted"])
    await scheduler.put(names["late"], ScheduleSpec(every("10m")))
    await scheduler.tick_until(at(25))
    plan = await resume_job(scheduler, CatchUp.ALL, validate_only=True)
    assert await resume_job(scheduler, CatchUp.ALL) == plan == CatchUpPlan(8, 4, at(10), at(24))
    found = scheduler.admin.execute(
        "select tenant_id, array_agg(scheduled_for order by scheduled_for) from carillon.live_runs"
        " group by 1 order by 1"
    ).fetchall()
    assert found == [
        ("-", [at(10), at(20)]),
        ("changed", [at(16), at(20), at(24)]),
        ("late", [at(20)]),
        ("steady", [at(10), at(20)]),
    ]
    assert gaps(scheduler.admin) == [(at(10), at(10), 1, "CATCH_UP_NONE")] * 4
    assert await unaccounted(scheduler) == []
    await scheduler.tick_until(at(30))
    assert await unaccounted(scheduler) == []
    assert (await resume(scheduler, names["paused"], CatchUp.ALL))[1] == CatchUpPlan(2, 0, at(20), at(30))
    assert await unaccounted(scheduler) == []


async def test_a_job_does_not_run_again_what_ran_before_its_pause(scheduler: Scheduler) -> None:
    jittered = for_tenant("acme")
    await scheduler.put(jittered, ScheduleSpec(every("10m", jitter=9 * MINUTE)))
    await scheduler.tick_until(at(21))
    await pause_job(scheduler)
    await scheduler.tick_until(at(31))
    await resume_job(scheduler, CatchUp.ALL)
    await scheduler.tick_until(at(59))
    count = "select count(*), count(distinct (schedule_id, scheduled_for)) from carillon.live_runs"
    assert scheduler.admin.execute(count).fetchone() == (10, 10)
    assert await unaccounted(scheduler) == []


async def test_pauses_one_after_the_other_are_each_caught_up_once(scheduler: Scheduler) -> None:
    for end in (15, 35, 55):
        await pause_job(scheduler)
        await scheduler.tick_until(at(end))
        await resume_job(scheduler, CatchUp.ALL)
        await pause(scheduler, own())
        scheduler.database.now = at(end + 10)
        await resume(scheduler, own(), CatchUp.ALL)
        assert await unaccounted(scheduler) == []
    assert [instant for instant, _, _ in made(scheduler.admin)] == [at(minute) for minute in range(10, 70, 10)]


@pytest.mark.parametrize("whole_job", [False, True])
async def test_more_than_ten_thousand_runs_are_refused_with_their_number(scheduler: Scheduler, whole_job: bool) -> None:
    await scheduler.register(job(timing=every("1s")))
    await (pause_job(scheduler) if whole_job else pause(scheduler, own()))
    scheduler.database.now = at(0) + 10_001 * SECOND
    before = scheduler.contents()

    async def let_go(*, validate_only: bool = False) -> CatchUpPlan:
        if whole_job:
            return await resume_job(scheduler, CatchUp.ALL, validate_only=validate_only)
        return (await resume(scheduler, own(), CatchUp.ALL, validate_only=validate_only))[1]

    with pytest.raises(Conflict, match=r"10,001 runs would be caught up.*`CATCH_UP_LATEST`.*catch_up_window"):
        await let_go()
    assert (await let_go(validate_only=True)).runs == 10_001
    assert scheduler.contents() == before
    scheduler.database.now -= SECOND
    assert (await let_go()).runs == 10_000
    assert len(made(scheduler.admin)) == 10_000


async def test_the_runs_of_all_schedules_of_a_job_are_counted_together(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    for number in range(3):
        await scheduler.put(for_tenant(f"t{number}"), ScheduleSpec())
    await pause_job(scheduler)
    scheduler.database.now = START + 2500 * 10 * MINUTE + MINUTE
    await scheduler.override(JobOverrides(policies=Policies(catch_up_window=timedelta(days=30))), "policies")
    plan = await resume_job(scheduler, CatchUp.ALL, validate_only=True)
    assert plan.runs == 4 * 2500
    scheduler.database.now += 10 * MINUTE
    with pytest.raises(Conflict, match="10,004 runs"):
        await resume_job(scheduler, CatchUp.ALL)
    latest = await resume_job(scheduler, CatchUp.LATEST)
    assert (latest.runs, latest.missed) == (4, 4 * 2500)
    assert len(made(admin)) == 4


async def test_nothing_is_caught_up_for_an_archived_job(scheduler: Scheduler) -> None:
    await pause(scheduler, own())
    await pause_job(scheduler)
    await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    for verb in (resume(scheduler, own(), CatchUp.ALL), resume_job(scheduler, CatchUp.ALL, validate_only=True)):
        with pytest.raises(Conflict) as refused:
            await verb
        assert refused.value.reason == "JOB_ARCHIVED"
    resumed, _ = await resume(scheduler, own())
    assert resumed.paused_at is None


async def test_a_tick_that_passes_an_occurrence_over_leaves_it_to_be_caught_up(
    scheduler: Scheduler, admin: psycopg.Connection[Any]
) -> None:
    await pause_job(scheduler)
    due = at(10)
    scheduler.database.now = due - SECOND
    async with ticking(scheduler.hot, due):
        resuming = asyncio.create_task(resume_job(scheduler, CatchUp.ALL))
        await until_it_waits(resuming, admin)
        assert not resuming.done()
        scheduler.database.now = due + SECOND
    assert (await resuming).runs == 1
    await scheduler.tick_until(at(25))
    assert [instant for instant, _, _ in made(admin)] == [at(10), at(20)]
    assert await unaccounted(scheduler) == []


async def test_of_two_who_resume_at_once_one_catches_up(scheduler: Scheduler) -> None:
    await pause(scheduler, own())
    scheduler.database.now = at(35)
    found = await asyncio.gather(*(resume(scheduler, own(), CatchUp.ALL) for _ in range(4)))
    assert sorted(plan.runs for _, plan in found) == [0, 0, 0, 3]
    await pause_job(scheduler)
    scheduler.database.now = at(35) + HOUR
    plans = await asyncio.gather(*(resume_job(scheduler, CatchUp.LATEST) for _ in range(4)))
    assert sorted(plan.runs for plan in plans) == [0, 0, 0, 1]
    assert await unaccounted(scheduler) == []
