"""Backfills: a range of the past is run once, whoever asks, how often, and whatever was changed since."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Unavailable,
)
from scheduler_service.domain.job import JobOverrides, TimingSpec
from scheduler_service.domain.names import JobName
from scheduler_service.domain.run import RunState
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.usecases import jobs
from scheduler_service.usecases.backfill import (
    BackfillRequest,
    get_backfill,
    list_backfills,
)
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.runs import list_runs
from scheduler_service.usecases.wakeups import Topic
from tests import builders
from tests.builders import ADMIN
from tests.conftest import DatabaseUrls
from tests.store.backfill_case import (
    ALLOW_ALL,
    DAY,
    ONE_AT_A_TIME,
    fill,
    hours,
    made_runs,
    name_of,
    numbers,
    register,
    remedies,
    run_of,
    somebody_waits,
)
from tests.store.definitions_case import (
    DIGEST,
    HOUR,
    MINUTE,
    START,
    Scheduler,
    every,
    for_tenant,
)
from tests.store.retry_case import end


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    """With one hourly job, whose runs do not wait for each other."""
    await register(scheduler, ALLOW_ALL)
    return scheduler


async def test_each_occurrence_of_the_range_becomes_a_run(scheduler: Scheduler) -> None:
    filled = await fill(scheduler, hours(-5, 0))
    assert numbers(filled) == (5, 0, 5)
    assert made_runs(scheduler.admin) == [(START + hour * HOUR, 1) for hour in range(-5, 0)]
    runs = (
        await list_runs(scheduler.database, ADMIN, RunFilter(origin=f"backfills/{name_of(filled).backfill_id}"))
    ).runs
    assert [run.scheduled_for for run in runs] == [START + hour * HOUR for hour in range(-1, -6, -1)]
    assert {(str(run.trigger), run.triggered_by, run.schedule, run.time_zone, run.run_after) for run in runs} == {
        ("BACKFILL", "admin:alice", "default", "UTC", START)
    }
    assert await get_backfill(scheduler.database, ADMIN, name_of(filled)) == filled


async def test_the_same_range_twice_makes_nothing_the_second_time(scheduler: Scheduler) -> None:
    assert numbers(await fill(scheduler, hours(-5, 0))) == (5, 0, 5)
    scheduler.database.now += MINUTE
    again = await fill(scheduler, hours(-5, 0))
    assert numbers(again) == (5, 5, 0)
    assert numbers(await fill(scheduler, hours(-7, -3))) == (4, 2, 2)
    assert remedies(scheduler.admin) == len(made_runs(scheduler.admin)) == 7
    assert await get_backfill(scheduler.database, ADMIN, name_of(again)) == again


async def test_of_several_at_once_one_makes_the_runs(scheduler: Scheduler) -> None:
    filled = await asyncio.gather(*(fill(scheduler, hours(-20, 0)) for _ in range(4)))
    assert sorted(each.runs for each in filled) == [0, 0, 0, 20]
    assert remedies(scheduler.admin) == len(made_runs(scheduler.admin)) == 20


async def test_what_a_schedule_completed_or_is_at_is_passed_over(scheduler: Scheduler) -> None:
    await scheduler.tick_until(START + 6 * HOUR, HOUR)
    ends = {1: RunState.COMPLETED, 2: RunState.FAILED, 3: RunState.CANCELLED, 4: RunState.SKIPPED}
    for hour, state in ends.items():
        end(scheduler, run_of(scheduler.admin, START + hour * HOUR), state)
    builders.claim(scheduler.admin, run_of(scheduler.admin, START + 5 * HOUR), builders.make_session(scheduler.admin))
    assert numbers(await fill(scheduler, hours(1, 6))) == (5, 2, 3)
    assert [instant for instant, _ in made_runs(scheduler.admin)] == [START + hour * HOUR for hour in (2, 3, 4)]


async def test_what_a_backfill_completed_is_passed_over_and_what_failed_is_run_again(scheduler: Scheduler) -> None:
    first = await fill(scheduler, hours(-3, 0))
    end(scheduler, run_of(scheduler.admin, START - 3 * HOUR), RunState.COMPLETED)
    end(scheduler, run_of(scheduler.admin, START - 2 * HOUR), RunState.FAILED)
    counts = (await get_backfill(scheduler.database, ADMIN, name_of(first))).counts
    assert (counts.pending, counts.completed, counts.failed) == (1, 1, 1)
    scheduler.database.now += MINUTE
    second = await fill(scheduler, hours(-3, 0))
    assert numbers(second) == (3, 2, 1)
    end(scheduler, run_of(scheduler.admin, START - 2 * HOUR), RunState.FAILED)
    scheduler.database.now += MINUTE
    assert numbers(await fill(scheduler, hours(-3, 0))) == (3, 2, 1)
    assert (await get_backfill(scheduler.database, ADMIN, name_of(first))).counts == counts


async def test_what_is_due_but_not_settled_is_settled_first(scheduler: Scheduler) -> None:
    scheduler.database.now = START + 3 * HOUR + timedelta(seconds=5)
    assert numbers(await fill(scheduler, hours(-1, 3))) == (4, 2, 2)
    fired = [(START + hour * HOUR, 1) for hour in range(-1, 4)]
    assert scheduler.fired() == fired
    assert [instant for instant, _ in made_runs(scheduler.admin)] == [START - HOUR, START]
    await scheduler.tick_until(START + 4 * HOUR - MINUTE)
    assert scheduler.fired() == fired


async def test_what_a_tick_settles_at_this_moment_is_waited_for(
    scheduler: Scheduler, other: psycopg.AsyncConnection[Any]
) -> None:
    scheduler.database.now = START + 2 * HOUR + timedelta(seconds=1)
    async with other.transaction():
        await tick(other, NobodySeated(), now=scheduler.database.now)
        filling = asyncio.create_task(fill(scheduler, hours(0, 2)))
        await somebody_waits(scheduler.admin)
    assert numbers(await filling) == (2, 1, 1)


async def test_missed_occurrences_get_runs(scheduler: Scheduler) -> None:
    await register(scheduler, replace(ALLOW_ALL, catch_up=CatchUp.NONE))
    scheduler.database.now = START + 3 * HOUR + 10 * MINUTE
    assert numbers(await fill(scheduler, hours(1, 3))) == (2, 0, 2)
    assert scheduler.admin.execute("select occurrences from carillon.gaps").fetchall() == [(3,)]


async def test_counting_only_gives_the_same_numbers_and_writes_nothing(scheduler: Scheduler) -> None:
    scheduler.database.now = START + 3 * HOUR
    before = scheduler.contents()
    listener = scheduler.wakeups.listen(Topic.PENDING, Topic.RUNS)
    counted = await fill(scheduler, hours(-5, 3, validate_only=True))
    assert scheduler.contents() == before
    assert remedies(scheduler.admin) == 0
    assert not listener.take()
    assert (counted.name, counted.created_at, counted.created_by) == (None, None, "")
    assert await list_backfills(scheduler.database, ADMIN, DIGEST) == ([], "")
    made = await fill(scheduler, hours(-5, 3))
    assert numbers(made) == numbers(counted) == (8, 2, 6)
    assert (counted.counts.pending, made.counts.pending) == (0, 6)
    assert listener.take()


async def test_an_edit_inside_the_range_counts_from_when_it_was_made(scheduler: Scheduler) -> None:
    scheduler.database.now = START + 90 * MINUTE
    timing = TimingSpec(cron="*/20 * * * *", time_zone="UTC")
    await scheduler.override(JobOverrides(timing=timing), "timing.cron")
    await scheduler.tick_until(START + 3 * HOUR, HOUR)
    scheduler.admin.execute("delete from carillon.live_runs")
    assert numbers(await fill(scheduler, hours(0, 2))) == (3, 0, 3)
    assert made_runs(scheduler.admin) == [(START, 1), (START + HOUR, 1), (START + 100 * MINUTE, 2)]


async def test_a_disabled_or_paused_stretch_is_filled(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1h")))
    scheduler.database.now += MINUTE
    await scheduler.put(for_tenant("acme"), ScheduleSpec(enabled=False), "enabled")
    await jobs.pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    scheduler.database.now = START + 4 * HOUR
    assert numbers(await fill(scheduler, hours(-2, 4, tenant="acme"))) == (6, 0, 6)
    revisions = [revision for _, revision in made_runs(scheduler.admin)]
    assert revisions == [1, 1, 1, 2, 2, 2]


async def test_a_day_on_which_the_clock_changes_is_filled_as_it_was_owed(scheduler: Scheduler) -> None:
    await register(scheduler, ALLOW_ALL, "30 1,2 * * *", time_zone="America/New_York")
    scheduler.database.now += MINUTE
    # The edit counts from START on; before the schedule's first revision, its timing would.
    await scheduler.put(for_tenant("acme"), ScheduleSpec(TimingSpec(cron="30 1,2 * * *", time_zone="America/New_York")))
    autumn = datetime(2024, 11, 3, 4, tzinfo=UTC)
    spring = datetime(2025, 3, 9, 5, tzinfo=UTC)
    for day in (autumn, spring):
        await fill(scheduler, BackfillRequest(DIGEST, day, day + DAY, tenant="acme"))
    rows = scheduler.admin.execute(
        "select scheduled_for, scheduled_local, fold, time_zone, tzdata <> '' from carillon.live_runs"
        " where trigger = 'BACKFILL' order by 1"
    ).fetchall()
    assert [(row[0].astimezone(UTC), row[1].isoformat(), *row[2:]) for row in rows] == [
        (datetime(2024, 11, 3, 5, 30, tzinfo=UTC), "2024-11-03T01:30:00", 0, "America/New_York", True),
        (datetime(2024, 11, 3, 7, 30, tzinfo=UTC), "2024-11-03T02:30:00", 0, "America/New_York", True),
        (datetime(2025, 3, 9, 6, 30, tzinfo=UTC), "2025-03-09T01:30:00", 0, "America/New_York", True),
        (datetime(2025, 3, 9, 7, 0, tzinfo=UTC), "2025-03-09T02:30:00", 0, "America/New_York", True),
    ]


async def test_whose_schedules_are_filled(scheduler: Scheduler) -> None:
    for tenant, schedule in (("acme", "daily"), ("acme", "weekly"), ("beta", "daily"), ("gone", "daily")):
        await scheduler.put(for_tenant(tenant, schedule), ScheduleSpec(every("1h")))
    scheduler.admin.execute(
        "update carillon.schedules set deleted_at = now(), next_run_at = null where tenant_id = 'gone'"
    )

    async def counted(**scope: str) -> int:
        return (await fill(scheduler, hours(-3, 0, validate_only=True, **scope))).runs

    assert await counted() == 3
    assert await counted(tenant="acme") == 6
    assert await counted(tenant="acme", schedule="weekly") == 3
    assert await counted(tenant="*") == 12
    assert await counted(tenant="*", schedule="daily") == 6
    for nobody in ({"tenant": "gone"}, {"schedule": "weekly"}, {"tenant": "*", "schedule": "monthly"}):
        with pytest.raises(NotFound, match="ListSchedules"):
            await counted(**nobody)
    await fill(scheduler, hours(-3, 0, tenant="*"))
    rows = scheduler.admin.execute(
        "select tenant_id, count(*) from carillon.live_runs where trigger = 'BACKFILL' group by 1 order by 1"
    ).fetchall()
    assert rows == [("-", 3), ("acme", 6), ("beta", 3)]


async def test_config_and_labels_of_job_and_schedule_reach_the_runs_and_payload_goes_over_them(
    scheduler: Scheduler,
) -> None:
    await register(scheduler, ALLOW_ALL, labels={"team": "crm", "type": "email"}, config={"a": 1, "b": 1, "c": 1})
    await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1h"), config={"b": 2, "c": 2}, labels={"team": "ops"}))
    await fill(scheduler, hours(-1, 0, tenant="acme", payload={"c": 3}))
    row = scheduler.admin.execute(
        "select payload, labels, priority, exclusive, blocked from carillon.live_runs"
    ).fetchone()
    assert row == ({"a": 1, "b": 2, "c": 3}, {"team": "ops", "type": "email"}, 1, False, False)


async def test_what_a_run_is_given_is_bounded(scheduler: Scheduler) -> None:
    await register(scheduler, ALLOW_ALL, config={"template": "x" * 200_000})
    with pytest.raises(InvalidInput, match="256 KiB") as refused:
        await fill(scheduler, hours(-1, 0, payload={"more": "y" * 100_000}))
    assert [violation.field for violation in refused.value.violations] == ["payload"]
    with pytest.raises(InvalidInput, match="64 MiB") as refused:
        await fill(scheduler, hours(-336, 0))
    assert [violation.field for violation in refused.value.violations] == ["until"]
    assert (await fill(scheduler, hours(-336, 0, payload={"template": ""}))).runs == 336


async def test_one_at_a_time_the_oldest_first_and_what_comes_due_goes_ahead(scheduler: Scheduler) -> None:
    await register(scheduler, ONE_AT_A_TIME)
    await fill(scheduler, hours(-3, 0))

    def turns() -> list[tuple[int, bool, bool]]:
        rows = scheduler.admin.execute(
            "select scheduled_for, blocked, followed from carillon.live_runs order by scheduled_for"
        ).fetchall()
        return [(round((instant - START) / HOUR), blocked, followed) for instant, blocked, followed in rows]

    assert turns() == [(-3, False, True), (-2, True, False), (-1, True, False)]
    await scheduler.tick_until(START + HOUR, HOUR)
    assert turns()[-1] == (1, True, False)
    await end_first(scheduler)
    assert turns() == [(-2, True, False), (-1, True, False), (1, False, True)]
    await end_first(scheduler)
    assert turns() == [(-2, False, True), (-1, True, False)]


async def end_first(scheduler: Scheduler) -> None:
    """Cancels the run that has the turn, as an operator would."""
    row = scheduler.admin.execute("select run_id from carillon.live_runs where not blocked").fetchone()
    assert row is not None
    await cancel_run(scheduler.database, scheduler.wakeups, ADMIN, row[0])


async def test_behind_a_live_run_of_its_schedule_a_backfill_waits(scheduler: Scheduler) -> None:
    await register(scheduler, ONE_AT_A_TIME)
    await scheduler.tick_until(START + HOUR, HOUR)
    await fill(scheduler, hours(-2, 0))
    rows = scheduler.admin.execute(
        "select blocked, followed from carillon.live_runs order by scheduled_for desc"
    ).fetchall()
    assert rows == [(False, True), (True, False), (True, False)]


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"since": START, "until": START}, ["until"]),
        ({"since": datetime(1969, 12, 31, tzinfo=UTC)}, ["since"]),
        ({"until": START + timedelta(microseconds=1)}, ["until"]),
        ({"tenant": "no spaces", "schedule": "NO", "request_id": "r" * 65}, ["request_id", "tenant", "schedule"]),
        ({"payload": {"x": float("nan")}}, ["payload.x"]),
        ({"since": datetime(2000, 1, 1, tzinfo=UTC)}, ["until"]),
    ],
)
async def test_every_wrong_field_is_named_and_nothing_is_made(
    scheduler: Scheduler, asked: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await fill(scheduler, replace(hours(-1, 0), **asked))
    assert [violation.field for violation in refused.value.violations] == fields
    assert made_runs(scheduler.admin) == []


async def test_ten_thousand_runs_are_made_and_one_more_is_refused(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1m")))
    since = START - 10_001 * MINUTE
    request = BackfillRequest(DIGEST, since, START, tenant="acme")
    with pytest.raises(InvalidInput, match="10,001 runs"):
        await fill(scheduler, request)
    assert (await fill(scheduler, replace(request, since=since + MINUTE))).runs == 10_000
    # The range that was too long is not any more: what is live is passed over.
    assert numbers(await fill(scheduler, request)) == (10_001, 10_000, 1)


async def test_a_schedule_that_changes_meanwhile_is_asked_for_again(
    scheduler: Scheduler, database_urls: DatabaseUrls
) -> None:
    with psycopg.connect(database_urls.admin) as rival:
        rival.execute("update carillon.schedules set revision = revision + 1")
        filling = asyncio.create_task(fill(scheduler, hours(-3, 0)))
        await somebody_waits(scheduler.admin)
        rival.commit()
        with pytest.raises(Unavailable):
            await filling
    assert made_runs(scheduler.admin) == []


async def test_an_archived_or_unknown_job_is_not_filled(scheduler: Scheduler) -> None:
    with pytest.raises(NotFound):
        await fill(scheduler, replace(hours(-1, 0), job=JobName("email-service", "other")))
    scheduler.admin.execute("update carillon.jobs set archived_at = now()")
    with pytest.raises(Conflict) as refused:
        await fill(scheduler, hours(-1, 0))
    assert refused.value.reason == "JOB_ARCHIVED"
