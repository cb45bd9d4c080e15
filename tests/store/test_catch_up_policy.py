"""Catch-up as a manifest or an operator says it: what the tick does with it, and what a change of it leaves alone."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest

from scheduler_service.domain.errors import InvalidInput
from scheduler_service.domain.job import JobOverrides, Policies
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases import jobs
from tests.builders import ADMIN
from tests.store.definitions_case import DIGEST, HOUR, MINUTE, START, Scheduler, digest, every, own


def beside(catch_up: CatchUp | None = None, window: timedelta | None = None) -> Policies:
    return Policies(overlap=Overlap.ALLOW_ALL, catch_up=catch_up, catch_up_window=window)


def fired(scheduler: Scheduler) -> list[float]:
    """Each scheduled run, in minutes since START."""
    return [(instant - START) / MINUTE for instant, _ in scheduler.fired()]


def missed(scheduler: Scheduler) -> list[tuple[float, int, str]]:
    """Each gap: its first occurrence in minutes since START, how many, and why."""
    rows = scheduler.admin.execute("select first_at, occurrences, reason from carillon.gaps order by first_at")
    return [((first.astimezone(UTC) - START) / MINUTE, count, reason) for first, count, reason in rows]


@pytest.mark.parametrize(
    ("policies", "run", "not_run"),
    [
        (beside(), [40], [(10, 3, "CATCH_UP_LATEST")]),
        (beside(CatchUp.NONE), [], [(10, 4, "CATCH_UP_NONE")]),
        (beside(CatchUp.ALL), [10, 20, 30, 40], []),
        (beside(CatchUp.ALL, 16 * MINUTE), [30, 40], [(10, 2, "OUTSIDE_WINDOW")]),
        (beside(CatchUp.ALL, timedelta()), [], [(10, 4, "OUTSIDE_WINDOW")]),
    ],
)
async def test_the_tick_catches_up_as_the_manifest_says(
    scheduler: Scheduler, policies: Policies, run: list[float], not_run: list[tuple[float, int, str]]
) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=policies))
    await scheduler.tick_until(START + 45 * MINUTE, step=HOUR)
    assert (fired(scheduler), missed(scheduler)) == (run, not_run)


async def test_what_was_owed_before_a_change_is_caught_up_as_the_policy_was_then(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=beside(CatchUp.ALL)))
    scheduler.database.now = START + 35 * MINUTE
    await scheduler.override(JobOverrides(policies=beside(CatchUp.NONE)), "policies.catch_up")
    assert fired(scheduler) == [10, 20, 30]
    await scheduler.tick_until(START + 65 * MINUTE, step=HOUR)
    assert (fired(scheduler), missed(scheduler)) == ([10, 20, 30], [(40, 3, "CATCH_UP_NONE")])


async def test_a_manifest_with_another_catch_up_settles_first_too(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=beside(CatchUp.NONE)))
    scheduler.database.now = START + 35 * MINUTE
    registration = await scheduler.register(digest(timing=every("10m"), policies=beside(CatchUp.ALL, HOUR)))
    assert registration.changes[0].changed_fields == ["policies.catch_up", "policies.catch_up_window"]
    await scheduler.tick_until(START + 55 * MINUTE, step=HOUR)
    assert (fired(scheduler), missed(scheduler)) == ([40, 50], [(10, 3, "CATCH_UP_NONE")])


async def test_a_change_of_policies_alone_makes_no_revision(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")))
    await scheduler.override(JobOverrides(policies=beside(CatchUp.ALL, HOUR)), "policies")
    await scheduler.register(digest(timing=every("10m"), policies=Policies(overlap=Overlap.BUFFER_ALL)))
    schedule = await scheduler.get(own())
    assert (schedule.revision, schedule.next_run_at) == (1, START + 10 * MINUTE)
    assert scheduler.admin.execute("select count(*) from carillon.schedule_revisions").fetchone() == (1,)


async def test_an_override_is_stored_shown_and_reset(scheduler: Scheduler) -> None:
    declared = Policies(catch_up=CatchUp.ALL, catch_up_window=6 * HOUR)
    await scheduler.register(digest(timing=every("10m"), policies=declared))
    stored = "select catch_up::text, catch_up_window from carillon.jobs"
    assert scheduler.admin.execute(stored).fetchone() == ("ALL", 6 * HOUR)
    await scheduler.override(JobOverrides(policies=Policies(catch_up_window=MINUTE)), "policies.catch_up_window")
    job = await jobs.get_job(scheduler.database, ADMIN, DIGEST)
    effective = job.in_force("UTC").policies
    assert (effective.catch_up, effective.catch_up_window) == (CatchUp.ALL, MINUTE)
    assert scheduler.admin.execute(stored).fetchone() == ("ALL", MINUTE)
    await jobs.reset_job_overrides(scheduler.database, scheduler.wakeups, ADMIN, DIGEST, ["policies.catch_up_window"])
    assert scheduler.admin.execute(stored).fetchone() == ("ALL", 6 * HOUR)


@pytest.mark.parametrize("window", [timedelta(seconds=-1), timedelta(days=30, microseconds=1)])
async def test_a_window_is_from_nothing_to_30_days(scheduler: Scheduler, window: timedelta) -> None:
    wrong = Policies(catch_up_window=window)
    with pytest.raises(InvalidInput, match=r"jobs\[0\]\.policies\.catch_up_window: .* is not from 0 s to 30 days"):
        await scheduler.register(digest(policies=wrong))
    await scheduler.register(digest(policies=Policies(catch_up_window=timedelta(days=30))))
    with pytest.raises(InvalidInput, match=r"overrides\.policies\.catch_up_window: .* is not from 0 s to 30 days"):
        await scheduler.override(JobOverrides(policies=wrong), "policies.catch_up_window")


@pytest.mark.parametrize("overlap", Overlap)
async def test_every_overlap_can_be_declared_and_is_what_the_database_holds(
    scheduler: Scheduler, overlap: Overlap
) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=Policies(overlap=overlap)))
    assert scheduler.admin.execute("select overlap::text from carillon.jobs").fetchone() == (overlap.value,)
    assert (await jobs.get_job(scheduler.database, ADMIN, DIGEST)).declared.policies.overlap is overlap
