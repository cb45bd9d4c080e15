"""The ledger: every occurrence that a schedule owed, with exactly one outcome, whatever happened to it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from scheduler_service.domain.job import JobOverrides, Policies
from scheduler_service.domain.ledger import Outcome, Remedy
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.run import RunState, new_run_id, scheduled_run_id
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases import deleting, jobs, pausing
from tests.builders import (
    ADMIN,
    MadeJob,
    claim,
    make_ended_run,
    make_live_run,
    make_session,
    rewriting_records,
)
from tests.store.definitions_case import (
    DIGEST,
    HOUR,
    MINUTE,
    START,
    Scheduler,
    digest,
    every,
    for_tenant,
    own,
)
from tests.store.engine_case import oldest_month
from tests.store.ledger_case import ALLOW_ALL, SECOND, age_all, end_all, lines, read


async def test_each_occurrence_is_what_became_of_its_run(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 10 * MINUTE)
    end_all(scheduler)
    await scheduler.tick_until(START + 20 * MINUTE)
    end_all(scheduler, RunState.FAILED, error={"code": "HANDLER_ERROR", "message": "no mail server", "detail": "x"})
    await scheduler.tick_until(START + 30 * MINUTE)
    end_all(scheduler, RunState.CANCELLED, error={"code": "CANCELLED", "message": "by hand", "detail": ""})
    await scheduler.tick_until(START + 50 * MINUTE)
    ((schedule_id,),) = scheduler.admin.execute("select schedule_id from carillon.schedules").fetchall()
    claim(scheduler.admin, scheduled_run_id(schedule_id, START + 40 * MINUTE), make_session(scheduler.admin))
    scheduler.database.now = START + 61 * MINUTE  # nobody has ticked at 60 yet
    entries = await read(scheduler)
    assert lines(entries) == [
        (Outcome.COMPLETED, 10, 1),
        (Outcome.FAILED, 20, 1),
        (Outcome.CANCELLED, 30, 1),
        (Outcome.RUNNING, 40, 1),
        (Outcome.PENDING, 50, 1),
        (Outcome.PENDING, 60, 1),
    ]
    assert [(each.reason, each.message) for each in entries[:5]] == [
        ("", ""),
        ("HANDLER_ERROR", "no mail server"),
        ("CANCELLED", "by hand"),
        ("", ""),
        ("", ""),
    ]
    assert [each.run_id for each in entries] == [
        *(scheduled_run_id(schedule_id, START + minute * MINUTE) for minute in (10, 20, 30, 40, 50)),
        None,
    ]


async def test_an_occurrence_that_an_earlier_run_was_in_the_way_of_is_skipped(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")))
    await scheduler.tick_until(START + 25 * MINUTE)
    entries = await read(scheduler)
    assert lines(entries) == [(Outcome.PENDING, 10, 1), (Outcome.SKIPPED, 20, 1)]
    assert entries[1].reason == "OVERLAP"
    assert "was live, or waited" in entries[1].message


async def test_an_outage_is_one_entry_with_a_count(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 10 * MINUTE)
    await scheduler.tick_until(START + 3 * HOUR + 5 * MINUTE, step=3 * HOUR)
    entries = await read(scheduler)
    assert lines(entries) == [(Outcome.PENDING, 10, 1), (Outcome.MISSED, 20, 16), (Outcome.PENDING, 180, 1)]
    missed = entries[1]
    assert missed.owed.last == START + 170 * MINUTE
    assert (missed.run_id, missed.reason) == (None, "CATCH_UP_LATEST")
    assert missed.message == "it was overdue when Carillon came to it, and a newer occurrence stood in for it"


async def test_what_the_catch_up_policy_leaves_out_is_missed_for_its_reason(scheduler: Scheduler) -> None:
    kept = Policies(overlap=Overlap.ALLOW_ALL, catch_up=CatchUp.ALL, catch_up_window=HOUR)
    none = Policies(overlap=Overlap.ALLOW_ALL, catch_up=CatchUp.NONE)
    await scheduler.register(
        digest(timing=every("10m"), policies=kept), digest("other", timing=every("10m"), policies=none)
    )
    await scheduler.tick_until(START + 125 * MINUTE, step=125 * MINUTE)
    late = await read(scheduler)
    assert lines(late) == [
        (Outcome.MISSED, 10, 6),
        *((Outcome.PENDING, minute, 1) for minute in (70, 80, 90, 100, 110, 120)),
    ]
    assert late[0].reason == "OUTSIDE_WINDOW"
    (missed,) = await read(scheduler, own("other"))
    assert (missed.outcome, missed.owed.count, missed.reason) == (Outcome.MISSED, 12, "CATCH_UP_NONE")


async def test_a_window_cuts_a_gap_and_counts_what_is_left_of_it(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 3 * HOUR + 5 * MINUTE, step=3 * HOUR)
    (entry,) = await read(scheduler, since=START + 35 * MINUTE, until=START + 70 * MINUTE)
    assert lines([entry]) == [(Outcome.MISSED, 40, 3)]
    assert entry.owed.last == START + 60 * MINUTE  # 70 itself is not in the window


async def test_history_is_what_was_in_force_at_the_time(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True))
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 20 * MINUTE)
    await scheduler.put(name, ScheduleSpec(every("15m")), "timing")  # at 20: that one is the old revision's
    await scheduler.tick_until(START + 35 * MINUTE)
    await scheduler.put(name, ScheduleSpec(enabled=False), "enabled")
    await scheduler.tick_until(START + 65 * MINUTE)
    await scheduler.put(name, ScheduleSpec(enabled=True), "enabled")
    await scheduler.tick_until(START + 80 * MINUTE)
    end_all(scheduler)
    entries = await read(scheduler, name)
    assert [((each.owed.first - START) // MINUTE, each.owed.stretch.revision) for each in entries] == [
        (10, 1),
        (20, 1),
        (30, 2),
        (75, 4),
    ]
    assert {each.outcome for each in entries} == {Outcome.COMPLETED, Outcome.SKIPPED}


async def test_a_paused_job_owes_nothing(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 10 * MINUTE)
    await jobs.pause_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    await scheduler.tick_until(START + 35 * MINUTE)
    await jobs.resume_job(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    await scheduler.tick_until(START + 51 * MINUTE)
    assert lines(await read(scheduler)) == [(Outcome.PENDING, minute, 1) for minute in (10, 40, 50)]


@pytest.mark.parametrize("whole_job", [False, True], ids=["schedule", "job"])
async def test_a_pause_that_is_caught_up_was_owed_after_all(scheduler: Scheduler, whole_job: bool) -> None:
    await scheduler.register(digest(tenant_schedules=True, policies=ALLOW_ALL))
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 15 * MINUTE)
    at, waking = scheduler.database, scheduler.wakeups
    if whole_job:
        await jobs.pause_job(at, waking, ADMIN, DIGEST)
    else:
        await pausing.pause_schedule(at, waking, ADMIN, name)
    await scheduler.tick_until(START + 55 * MINUTE)
    assert lines(await read(scheduler, name)) == [(Outcome.PENDING, 10, 1)]
    if whole_job:
        await jobs.resume_job(at, waking, ADMIN, DIGEST, CatchUp.LATEST)
    else:
        await pausing.resume_schedule(at, waking, ADMIN, name, CatchUp.LATEST)
    await scheduler.tick_until(START + 65 * MINUTE)
    assert lines(await read(scheduler, name)) == [
        (Outcome.PENDING, 10, 1),
        (Outcome.MISSED, 20, 3),
        (Outcome.PENDING, 50, 1),
        (Outcome.PENDING, 60, 1),
    ]


async def test_what_waits_for_its_jitter_at_an_edit_is_the_old_revisions(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m", jitter=9 * MINUTE), policies=ALLOW_ALL))
    scheduler.database.now = START + 20 * MINUTE + SECOND
    await scheduler.override(JobOverrides(timing=every("7m")), "timing")
    entries = await read(scheduler)
    assert {each.outcome for each in entries} == {Outcome.PENDING}
    assert [(each.owed.first, each.owed.stretch.revision, each.run_id is not None) for each in entries] == [
        (START + 10 * MINUTE, 1, True),
        (START + 20 * MINUTE, 1, True),
    ]


async def test_a_deleted_schedule_keeps_its_history_beside_the_next_of_its_name(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True, policies=ALLOW_ALL))
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 15 * MINUTE)
    await deleting.delete_schedule(scheduler.database, scheduler.wakeups, ADMIN, name)
    await scheduler.tick_until(START + 45 * MINUTE)
    assert lines(await read(scheduler, name)) == [(Outcome.CANCELLED, 10, 1)]
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 65 * MINUTE)
    expected = [(Outcome.CANCELLED, 10, 1), (Outcome.PENDING, 50, 1), (Outcome.PENDING, 60, 1)]
    for size in (1, 2, 1000):
        assert lines(await read(scheduler, name, size=size)) == expected
    of_schedules = {each.owed.account.schedule_id for each in await read(scheduler, name)}
    assert len(of_schedules) == 2


async def test_an_occurrence_without_a_record_shows_with_what_is_likely(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 25 * MINUTE)
    scheduler.admin.execute("delete from carillon.live_runs where scheduled_for = %s", [START + 10 * MINUTE])
    entries = await read(scheduler)
    assert lines(entries) == [(Outcome.UNACCOUNTED, 10, 1), (Outcome.PENDING, 20, 1)]
    assert entries[0].message.startswith("records of its time are kept, and there is none of it")
    scheduler.admin.execute("delete from carillon.live_runs")
    oldest = oldest_month(scheduler.admin)
    long_ago = oldest - timedelta(days=3)
    age_all(scheduler, long_ago)
    scheduler.admin.execute("update carillon.schedules set settled_to = %s", [scheduler.database.now])
    (entry,) = await read(scheduler, since=oldest - 10 * MINUTE, until=oldest)
    assert entry.outcome is Outcome.UNACCOUNTED
    assert entry.message == f"its record is older than what is kept, which begins at {oldest:%Y-%m-%d}T00:00Z"
    (entry,) = await read(scheduler, since=oldest, until=oldest + MINUTE)
    assert entry.message.startswith("records of its time are kept")


async def test_what_a_schedule_owes_while_it_is_set_aside_is_missed(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 15 * MINUTE)
    scheduler.admin.execute("update carillon.schedules set next_run_at = null, set_aside_reason = 'no such zone'")
    await scheduler.tick_until(START + 65 * MINUTE)
    entries = await read(scheduler)
    assert lines(entries) == [(Outcome.PENDING, 10, 1), (Outcome.MISSED, 20, 5)]
    assert (entries[1].reason, entries[1].message) == ("SET_ASIDE", "its schedule was set aside: no such zone")


async def test_a_time_whose_expression_nobody_can_read_any_more_is_one_entry(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 15 * MINUTE)
    await scheduler.override(JobOverrides(timing=every("20m")), "timing")
    await scheduler.tick_until(START + 25 * MINUTE)
    with rewriting_records(scheduler.admin):
        scheduler.admin.execute("update carillon.schedule_revisions set time_zone = 'Mars/Olympus' where revision = 1")
    for size in (1, 1000):
        entries = await read(scheduler, size=size)
        assert lines(entries) == [(Outcome.UNACCOUNTED, 0, 0), (Outcome.PENDING, 20, 1)]
        assert entries[0].owed.last == START + 15 * MINUTE
        assert "'Mars/Olympus' is not an IANA time zone" in entries[0].message


async def remedy(scheduler: Scheduler, minute: int, state: RunState | None) -> UUID:
    """A run that was made afterwards for the occurrence of that minute, in this state (None: pending)."""
    now = scheduler.database.now
    ((job_id, schedule_id),) = scheduler.admin.execute("select job_id, schedule_id from carillon.schedules").fetchall()
    job = MadeJob(job_id, "email-service", "weekly-digest")
    columns: dict[str, Any] = {"trigger": "BACKFILL", "run_id": new_run_id(now), "at": now}
    if state is None:
        run_id = make_live_run(scheduler.admin, job, **columns)
    else:
        run_id = make_ended_run(scheduler.admin, job, state, **columns)
    scheduler.admin.execute(
        "insert into carillon.remedies (run_id, schedule_id, scheduled_for, created_at) values (%s, %s, %s, %s)",
        [run_id, schedule_id, START + minute * MINUTE, now],
    )
    scheduler.database.now += SECOND
    return run_id


async def test_what_was_run_afterwards_is_shown_beside_it(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 10 * MINUTE)
    end_all(scheduler, RunState.FAILED)
    await scheduler.tick_until(START + 62 * MINUTE, step=52 * MINUTE)
    assert lines(await read(scheduler))[:2] == [(Outcome.FAILED, 10, 1), (Outcome.MISSED, 20, 4)]
    assert [each.remedy for each in await read(scheduler)] == [None, None, None]
    await remedy(scheduler, 10, RunState.FAILED)
    second = await remedy(scheduler, 10, RunState.COMPLETED)
    await remedy(scheduler, 20, RunState.COMPLETED)
    await remedy(scheduler, 20, RunState.COMPLETED)
    await remedy(scheduler, 30, RunState.FAILED)
    newest = await remedy(scheduler, 40, None)
    await remedy(scheduler, 30, RunState.FAILED)
    failed, missed, pending = await read(scheduler)
    assert failed.outcome is Outcome.FAILED  # what became of it stays
    assert failed.remedy == Remedy(second, RunState.COMPLETED, 1)
    assert missed.remedy == Remedy(newest, RunState.PENDING, 1)
    assert pending.remedy is None
