"""Resuming does not run again what somebody has had run, or is having run, by hand during the pause."""

from __future__ import annotations

from datetime import datetime

import pytest

from scheduler_service.domain.catching_up import CatchUpPlan
from scheduler_service.domain.ledger import Outcome
from scheduler_service.domain.run import RunState
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases.backfill import BackfillRequest
from tests.store.backfill_case import fill
from tests.store.definitions_case import DIGEST, MINUTE, START, Scheduler, every, for_tenant
from tests.store.ledger_case import read
from tests.store.pausing_case import gaps, job, pause, pause_job, resume, resume_job, unaccounted
from tests.store.retry_case import end, retry

ACME = for_tenant("acme")
REMEDIED = "REMEDIED"


def at(minute: int) -> datetime:
    return START + minute * MINUTE


async def begin(scheduler: Scheduler, *, whole_job: bool) -> None:
    """The job's own schedule, and a tenant's, are due each 10 minutes; paused from START to 35 minutes later."""
    await scheduler.register(job())
    await scheduler.put(ACME, ScheduleSpec(every("10m")))
    await (pause_job(scheduler) if whole_job else pause(scheduler, ACME))
    scheduler.database.now = at(35)


async def run_by_hand(scheduler: Scheduler, minute: int, state: RunState | None) -> None:
    """Has the tenant's occurrence of then run by hand, which ends so (None: it goes on)."""
    await fill(scheduler, BackfillRequest(DIGEST, at(minute), at(minute + 1), tenant="acme"))
    ((run_id,),) = scheduler.admin.execute(
        "select run_id from carillon.live_runs where scheduled_for = %s and trigger = 'BACKFILL'", [at(minute)]
    ).fetchall()
    if state is not None:
        end(scheduler, run_id, state)


async def let_go(scheduler: Scheduler, policy: CatchUp, *, whole_job: bool, validate_only: bool = False) -> CatchUpPlan:
    if whole_job:
        return await resume_job(scheduler, policy, validate_only=validate_only)
    return (await resume(scheduler, ACME, policy, validate_only=validate_only))[1]


def caught_up(scheduler: Scheduler) -> dict[str, list[datetime]]:
    """The instants that each tenant catches up."""
    return dict(
        scheduler.admin.execute(
            "select tenant_id, array_agg(scheduled_for order by scheduled_for) from carillon.live_runs"
            " where trigger = 'CATCH_UP' group by 1"
        ).fetchall()
    )


OWN = {"-": [at(10), at(20), at(30)]}


@pytest.mark.parametrize("whole_job", [False, True])
@pytest.mark.parametrize("state", [RunState.COMPLETED, None])
async def test_what_was_run_by_hand_is_not_run_again(
    scheduler: Scheduler, state: RunState | None, whole_job: bool
) -> None:
    await begin(scheduler, whole_job=whole_job)
    await run_by_hand(scheduler, 20, state)
    plan = await let_go(scheduler, CatchUp.ALL, whole_job=whole_job, validate_only=True)
    assert await let_go(scheduler, CatchUp.ALL, whole_job=whole_job) == plan
    assert plan == CatchUpPlan(5 if whole_job else 2, 1, at(10), at(30))
    assert caught_up(scheduler) == {"acme": [at(10), at(30)]} | (OWN if whole_job else {})
    assert gaps(scheduler.admin) == [(at(20), at(20), 1, REMEDIED)]
    entry = next(each for each in await read(scheduler, ACME) if each.owed.first == at(20))
    assert (entry.outcome, entry.reason, entry.remedy is not None) == (Outcome.MISSED, REMEDIED, True)
    assert entry.remedy is not None
    assert entry.remedy.state is (state or RunState.PENDING)
    assert "by hand" in entry.message
    if whole_job:
        assert await unaccounted(scheduler) == []


@pytest.mark.parametrize("whole_job", [False, True])
async def test_where_all_was_run_by_hand_nothing_is(scheduler: Scheduler, whole_job: bool) -> None:
    await begin(scheduler, whole_job=whole_job)
    for minute in (10, 20, 30):
        await run_by_hand(scheduler, minute, RunState.COMPLETED)
    plan = await let_go(scheduler, CatchUp.ALL, whole_job=whole_job)
    assert plan == (CatchUpPlan(3, 3, at(10), at(30)) if whole_job else CatchUpPlan(0, 3))
    assert caught_up(scheduler) == (OWN if whole_job else {})


@pytest.mark.parametrize("whole_job", [False, True])
async def test_what_failed_by_hand_is_caught_up_and_what_completed_when_tried_again_is_not(
    scheduler: Scheduler, whole_job: bool
) -> None:
    await begin(scheduler, whole_job=whole_job)
    for minute in (10, 20):
        await run_by_hand(scheduler, minute, RunState.FAILED)
    ((failed,),) = scheduler.admin.execute(
        "select run_id from carillon.runs where scheduled_for = %s", [at(20)]
    ).fetchall()
    end(scheduler, await retry(scheduler, failed), RunState.COMPLETED)
    await let_go(scheduler, CatchUp.ALL, whole_job=whole_job)
    assert caught_up(scheduler)["acme"] == [at(10), at(30)]


@pytest.mark.parametrize("whole_job", [False, True])
async def test_where_the_latest_was_run_by_hand_no_older_one_stands_in_for_it(
    scheduler: Scheduler, whole_job: bool
) -> None:
    await begin(scheduler, whole_job=whole_job)
    await run_by_hand(scheduler, 30, RunState.COMPLETED)
    plan = await let_go(scheduler, CatchUp.LATEST, whole_job=whole_job)
    assert (plan.runs, plan.missed) == ((1, 5) if whole_job else (0, 3))
    assert "acme" not in caught_up(scheduler)
    assert (at(30), at(30), 1, REMEDIED) in gaps(scheduler.admin)
