"""Trying runs again twice, at once, or by several ways: what was to be done is done once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from scheduler_service.domain.errors import (
    AlreadyExists,
)
from scheduler_service.domain.run import RunState, TriggerSource, scheduled_run_id
from scheduler_service.usecases.retry_run import RetryRunRequest, retry_run
from scheduler_service.usecases.runs import get_run
from tests.builders import ADMIN, make_ended_run
from tests.conftest import DatabaseUrls
from tests.store.backfill_case import fill, hours
from tests.store.backfill_case import register as register_hourly
from tests.store.definitions_case import HOUR, MINUTE, START, Scheduler
from tests.store.retry_case import (
    DUE,
    ONE_AT_A_TIME,
    begin,
    end,
    ended,
    failed_occurrence,
    retries,
    retry,
    the_job,
)
from tests.store.test_waiting import SECOND, held, ticking, until_it_waits


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    return await begin(scheduler)


async def both_wait(scheduler: Scheduler) -> None:
    """Until two calls wait for locks."""
    waiting = (
        "select count(*) from pg_stat_activity"
        " where usename = 'carillon_api' and wait_event_type = 'Lock' and datname = current_database()"
    )
    async with asyncio.timeout(60):
        while scheduler.admin.execute(waiting).fetchone() != (2,):  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)


async def test_a_live_or_completed_retry_is_answered_and_a_failed_one_is_followed_by_another(
    scheduler: Scheduler,
) -> None:
    failed = await failed_occurrence(scheduler)
    first = await retry(scheduler, failed)
    assert await retry(scheduler, failed) == first
    end(scheduler, first)
    second = await retry(scheduler, failed)
    assert second.run_id != first.run_id
    end(scheduler, second, RunState.COMPLETED)
    assert await retry(scheduler, failed) == await get_run(scheduler.database, ADMIN, second.run_id)
    assert retries(scheduler) == {first.run_id: failed, second.run_id: failed}


@pytest.mark.parametrize("scheduled", [True, False])
async def test_a_retry_can_be_tried_again_and_nothing_is_done_twice(scheduler: Scheduler, scheduled: bool) -> None:
    failed = await failed_occurrence(scheduler) if scheduled else ended(scheduler)
    first = end(scheduler, await retry(scheduler, failed))
    second = await retry(scheduler, first)
    assert second.retry_of == first
    # Whichever of the family is asked about: one is at it, or has done it.
    assert [(await retry(scheduler, each)).run_id for each in (failed, first)] == [second.run_id] * 2
    end(scheduler, second, RunState.COMPLETED)
    assert [(await retry(scheduler, each)).run_id for each in (failed, first)] == [second.run_id] * 2
    assert retries(scheduler) == {first: failed, second.run_id: first}


async def test_a_brother_of_the_run_counts_as_well(scheduler: Scheduler) -> None:
    failed = ended(scheduler)
    first = end(scheduler, await retry(scheduler, failed))
    second = await retry(scheduler, failed)
    assert (await retry(scheduler, first)).run_id == second.run_id


async def test_backfills_and_retries_know_of_each_other(scheduler: Scheduler) -> None:
    await register_hourly(scheduler, ONE_AT_A_TIME)
    await scheduler.tick_until(START + HOUR)
    (run_id,) = [
        run_id
        for run_id, tenant in scheduler.admin.execute("select run_id, tenant_id from carillon.live_runs").fetchall()
        if tenant == "-"
    ]
    failed = end(scheduler, run_id)
    retried = await retry(scheduler, failed)
    scheduler.database.now += 2 * MINUTE
    that_hour = replace(hours(1, 2), until=START + HOUR + MINUTE)
    assert (await fill(scheduler, that_hour)).passed_over == 1
    end(scheduler, retried)
    assert (await fill(scheduler, that_hour)).runs == 1
    ((backfilled,),) = scheduler.admin.execute(
        "select run_id from carillon.live_runs where trigger = 'BACKFILL'"
    ).fetchall()
    assert (await retry(scheduler, failed)).run_id == backfilled
    end(scheduler, backfilled)
    again = await retry(scheduler, backfilled)
    assert (again.trigger, again.retry_of) == (TriggerSource.MANUAL, backfilled)
    assert (await retry(scheduler, failed)).run_id == again.run_id


async def test_two_calls_at_once_make_one(scheduler: Scheduler) -> None:
    for failed in (ended(scheduler), await failed_occurrence(scheduler)):
        made = await asyncio.gather(*(retry(scheduler, failed) for _ in range(4)))
        assert len({run.run_id for run in made}) == 1
    assert len(retries(scheduler)) == 2


async def test_two_calls_at_once_for_a_run_and_its_retry_make_one(
    scheduler: Scheduler, database_urls: DatabaseUrls
) -> None:
    failed = ended(scheduler)
    first = end(scheduler, await retry(scheduler, failed))
    with held(database_urls, "jobs"):
        calls = [asyncio.create_task(retry(scheduler, each)) for each in (failed, first)]
        await both_wait(scheduler)
    made = await asyncio.gather(*calls)
    assert len({run.run_id for run in made}) == 1
    assert len(retries(scheduler)) == 2


async def test_the_run_that_the_schedule_itself_had_for_the_occurrence_counts_as_well(scheduler: Scheduler) -> None:
    await register_hourly(scheduler, ONE_AT_A_TIME)
    await fill(scheduler, hours(-2, -1))
    ((backfilled, schedule_id),) = scheduler.admin.execute(
        "select run_id, schedule_id from carillon.live_runs"
    ).fetchall()
    end(scheduler, backfilled)
    columns = {"schedule_id": schedule_id, "revision": 1, "trigger": "CATCH_UP"}
    caught_up = scheduled_run_id(schedule_id, START - 2 * HOUR)
    make_ended_run(scheduler.admin, the_job(scheduler), run_id=caught_up, at=START - 2 * HOUR, **columns)
    assert (await retry(scheduler, backfilled)).run_id == caught_up
    assert retries(scheduler) == {}


async def test_two_calls_at_once_for_two_runs_of_one_occurrence_make_one(scheduler: Scheduler) -> None:
    await register_hourly(scheduler, ONE_AT_A_TIME)
    await fill(scheduler, hours(-2, -1))
    ((first,),) = scheduler.admin.execute("select run_id from carillon.live_runs").fetchall()
    end(scheduler, first)
    await fill(scheduler, hours(-2, -1))
    ((second,),) = scheduler.admin.execute("select run_id from carillon.live_runs").fetchall()
    end(scheduler, second)
    made = await asyncio.gather(*(retry(scheduler, each) for each in (first, second)))
    assert len({run.run_id for run in made}) == len(retries(scheduler)) == 1


async def test_a_tick_at_the_schedule_comes_first(scheduler: Scheduler) -> None:
    failed = await failed_occurrence(scheduler)
    async with ticking(scheduler.hot, DUE + 10 * MINUTE):
        retrying = asyncio.create_task(retry(scheduler, failed))
        await until_it_waits(retrying, scheduler.admin)
        assert not retrying.done()
        scheduler.database.now = DUE + 10 * MINUTE + SECOND
    run = await retrying
    assert (run.blocked, run.created_at) == (True, DUE + 10 * MINUTE + SECOND)


async def test_the_same_request_id_gets_the_same_answer(scheduler: Scheduler) -> None:
    failed = ended(scheduler)

    async def made(digest: bytes = b"one") -> bytes:
        request = RetryRunRequest(failed, request_id="r-1", digest=digest)
        return await retry_run(scheduler.database, scheduler.wakeups, ADMIN, request, lambda run: run.run_id.bytes)

    (first,) = set(await asyncio.gather(*(made() for _ in range(4))))
    end(scheduler, UUID(bytes=first))
    assert await made() == first
    with pytest.raises(AlreadyExists) as refused:
        await made(b"two")
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert len(retries(scheduler)) == 1
