"""An ended run names the newest run that was made to do what it did not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from scheduler_service.domain.access import Principal
from scheduler_service.domain.run import RunState, new_run_id
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.usecases.runs import get_run, list_runs
from tests.builders import ADMIN, service, user
from tests.store import retry_case
from tests.store.backfill_case import fill, hours
from tests.store.definitions_case import EMAIL, MINUTE, TENANT_USER, Scheduler
from tests.store.retry_case import DUE, end, ended, failed_occurrence, retry


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    return await retry_case.begin(scheduler)


async def retried_by(scheduler: Scheduler, run_id: UUID, by: Principal = ADMIN) -> UUID | None:
    """As GetRun and ListRuns say it."""
    got = (await get_run(scheduler.database, by, run_id)).retried_by
    listed = {run.run_id: run.retried_by for run in (await list_runs(scheduler.database, by, RunFilter())).runs}
    assert listed[run_id] == got
    return got


async def backfilled(scheduler: Scheduler) -> UUID:
    """The run that a backfill makes for the occurrence at DUE."""
    request = replace(hours(0, 1, tenant="acme"), since=DUE, until=DUE + MINUTE)
    assert (await fill(scheduler, request)).runs == 1
    ((run_id,),) = scheduler.admin.execute(
        "select run_id from carillon.live_runs where trigger = 'BACKFILL'"
    ).fetchall()
    assert isinstance(run_id, UUID)
    return run_id


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED])
async def test_a_run_names_its_retry_while_that_is_live_and_once_it_has_ended(
    scheduler: Scheduler, state: RunState
) -> None:
    run_id = ended(scheduler, state)
    assert await retried_by(scheduler, run_id) is None
    run = await retry(scheduler, run_id)
    assert await retried_by(scheduler, run_id) == run.run_id
    assert await retried_by(scheduler, run.run_id) is None
    end(scheduler, run, RunState.COMPLETED)
    assert await retried_by(scheduler, run_id) == run.run_id


async def test_of_several_retries_it_names_the_newest(scheduler: Scheduler) -> None:
    run_id, other = ended(scheduler), ended(scheduler)
    end(scheduler, await retry(scheduler, run_id))
    scheduler.database.now += MINUTE
    newest = await retry(scheduler, run_id)
    scheduler.database.now += MINUTE
    of_other = await retry(scheduler, other)
    assert await retried_by(scheduler, run_id) == newest.run_id
    assert await retried_by(scheduler, other) == of_other.run_id


async def test_an_occurrence_names_what_a_backfill_made_for_it(scheduler: Scheduler) -> None:
    occurrence = await failed_occurrence(scheduler)
    scheduler.database.now += 2 * MINUTE
    first = await backfilled(scheduler)
    assert await retried_by(scheduler, occurrence) == first
    end(scheduler, first)
    scheduler.database.now += MINUTE
    second = await retry(scheduler, occurrence)
    for run_id in (occurrence, first):
        assert await retried_by(scheduler, run_id) == second.run_id, "of the same occurrence, made later"
    assert await retried_by(scheduler, second.run_id) is None
    end(scheduler, second)
    assert await retried_by(scheduler, second.run_id) is None, "nothing was made after it"


async def test_a_run_by_hand_of_the_same_instant_is_not_the_occurrences(scheduler: Scheduler) -> None:
    occurrence = await failed_occurrence(scheduler)
    ((schedule_id,),) = scheduler.admin.execute("select schedule_id from carillon.runs").fetchall()
    of_it: dict[str, Any] = {"schedule_id": schedule_id, "revision": 1, "tenant": "acme"}
    by_hand = ended(scheduler, at=DUE, run_id=new_run_id(DUE - MINUTE), **of_it)
    run = await retry(scheduler, occurrence)
    assert await retried_by(scheduler, occurrence) == run.run_id
    assert await retried_by(scheduler, by_hand) is None


async def test_a_completed_run_names_none(scheduler: Scheduler) -> None:
    """Also where somebody made one that stands for it: a retry that was under way when the other ended, for one."""
    await scheduler.tick_until(DUE)
    ((run_id, schedule_id),) = scheduler.admin.execute("select run_id, schedule_id from carillon.live_runs").fetchall()
    end(scheduler, run_id, RunState.COMPLETED)
    scheduler.admin.execute(
        "insert into carillon.remedies (run_id, schedule_id, scheduled_for, created_at)"
        " values ('ffffffff-0000-7000-8000-000000000000', %s, %s, now())",
        [schedule_id, DUE],
    )
    assert await retried_by(scheduler, run_id) is None


async def test_whoever_may_see_a_run_sees_what_became_of_it(scheduler: Scheduler) -> None:
    occurrence = await failed_occurrence(scheduler)
    run = await retry(scheduler, occurrence)
    for principal in (ADMIN, EMAIL, TENANT_USER):
        assert await retried_by(scheduler, occurrence, principal) == run.run_id, principal
    for principal in (service("kpi-service"), user("globex")):
        assert (await list_runs(scheduler.database, principal, RunFilter())).runs == []
