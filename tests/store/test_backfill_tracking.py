"""Backfills once they are made: how far they are, cancelling them, and who may."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from scheduler_service.domain.access import ANONYMOUS, Principal
from scheduler_service.domain.backfill import Backfill
from scheduler_service.domain.errors import (
    AlreadyExists,
    Forbidden,
    InvalidInput,
    NotFound,
    Refusal,
    Unauthenticated,
)
from scheduler_service.domain.job import TimingSpec
from scheduler_service.domain.names import JobName
from scheduler_service.domain.run import new_run_id
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.usecases.backfill import (
    BackfillRequest,
    backfill_job,
    cancel_backfill,
    get_backfill,
    list_backfills,
)
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests import builders
from tests.builders import ADMIN
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


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    """With one hourly job, whose runs do not wait for each other."""
    await register(scheduler, ALLOW_ALL)
    return scheduler


async def test_cancelling_ends_what_waits_and_asks_what_runs(scheduler: Scheduler) -> None:
    await scheduler.put(for_tenant("acme"), ScheduleSpec(every("1h")))
    name = name_of(await fill(scheduler, hours(-4, 0, tenant="*")))
    runs = scheduler.admin.execute("select run_id from carillon.live_runs order by run_id").fetchall()
    (done,), (held,) = runs[:2]
    builders.claim(scheduler.admin, held, builders.make_session(scheduler.admin))
    builders.finish(scheduler.admin, done, finished_at=START)
    listeners = [scheduler.wakeups.listen(topic) for topic in (Topic.CANCELS, Topic.PENDING, Topic.RUNS)]
    scheduler.database.now += MINUTE
    cancelled = await cancel_backfill(scheduler.database, scheduler.wakeups, ADMIN, name, "wrong month")
    counts = cancelled.counts
    assert (counts.pending, counts.running, counts.completed, counts.failed, counts.cancelled) == (0, 1, 1, 0, 6)
    assert (cancelled.cancelled_at, cancelled.cancelled_by) == (START + MINUTE, "admin:alice")
    assert [listener.take() for listener in listeners] == [True, True, True]
    live = scheduler.admin.execute(
        "select run_id, cancel_requested_at, cancel_reason, cancelled_by from carillon.live_runs"
    ).fetchall()
    assert live == [(held, START + MINUTE, "cancelled by admin:alice: wrong month", "admin:alice")]
    errors = scheduler.admin.execute("select distinct error from carillon.runs where state = 'CANCELLED'").fetchall()
    assert errors == [({"code": "CANCELLED", "message": "cancelled by admin:alice: wrong month", "detail": ""},)]


async def test_cancelling_twice_changes_nothing_and_cancelled_ones_are_run_by_the_next(scheduler: Scheduler) -> None:
    filled = await fill(scheduler, hours(-4, 0))
    first = await cancel_backfill(scheduler.database, scheduler.wakeups, ADMIN, name_of(filled))
    scheduler.database.now += MINUTE
    mallory = replace(ADMIN, name="mallory")
    assert await cancel_backfill(scheduler.database, scheduler.wakeups, mallory, name_of(filled)) == first
    again = await fill(scheduler, hours(-4, 0))
    assert numbers(again) == (4, 0, 4)
    assert (await get_backfill(scheduler.database, ADMIN, name_of(filled))) == first
    assert (await get_backfill(scheduler.database, ADMIN, name_of(again))).counts.pending == 4


async def test_cancelling_gives_the_turn_to_what_waits_behind(scheduler: Scheduler) -> None:
    await register(scheduler, ONE_AT_A_TIME)
    first = await fill(scheduler, hours(-4, -2))
    scheduler.database.now += MINUTE
    await fill(scheduler, hours(-2, 0))
    await cancel_backfill(scheduler.database, scheduler.wakeups, ADMIN, name_of(first))
    rows = scheduler.admin.execute(
        "select scheduled_for, blocked, followed from carillon.live_runs order by scheduled_for"
    ).fetchall()
    assert rows == [(START - 2 * HOUR, False, True), (START - HOUR, True, False)]


async def test_cancelling_leaves_other_runs_alone(scheduler: Scheduler) -> None:
    await scheduler.tick_until(START + 2 * HOUR, HOUR)
    one = await fill(scheduler, hours(-4, -2))
    other = await fill(scheduler, hours(-2, 0))
    await cancel_backfill(scheduler.database, scheduler.wakeups, ADMIN, name_of(one))
    assert (await get_backfill(scheduler.database, ADMIN, name_of(other))).counts.pending == 2
    assert [instant for instant, _ in scheduler.fired()] == [
        *(START + hour * HOUR for hour in (-4, -3, -2, -1, 1, 2)),
    ]


async def test_a_jobs_backfills_are_listed_newest_first_by_the_page(scheduler: Scheduler) -> None:
    await scheduler.register(
        digest(timing=TimingSpec(cron="0 * * * *"), policies=ALLOW_ALL, tenant_schedules=True),
        digest("other", timing=every("1h")),
    )
    made = []
    for hour in range(5):
        scheduler.database.now += MINUTE
        made.append(await fill(scheduler, hours(-6, -5 + hour)))
    await fill(scheduler, replace(hours(-2, 0), job=JobName("email-service", "other")))
    assert [each.runs for each in made] == [1, 1, 1, 1, 1]
    first, token = await list_backfills(scheduler.database, ADMIN, DIGEST, size=3)
    rest, last = await list_backfills(scheduler.database, ADMIN, DIGEST, size=3, token=token)
    assert [*first, *rest] == made[::-1]
    assert (len(first), last) == (3, "")
    with pytest.raises(InvalidInput):
        await list_backfills(scheduler.database, replace(ADMIN, name="bob"), DIGEST, token=token)
    with pytest.raises(InvalidInput):
        await list_backfills(scheduler.database, ADMIN, JobName("email-service", "other"), token=token)


async def test_a_page_ends_early_rather_than_count_too_much(scheduler: Scheduler) -> None:
    for _ in range(12):
        scheduler.database.now += MINUTE
        scheduler.admin.execute(
            "insert into carillon.backfills (backfill_id, job_id, since, until, tenant_id, schedule, occurrences, runs,"
            " created_at, created_by) select %s, job_id, %s, %s, '-', '', 10000, 10000, %s, 'test' from carillon.jobs",
            [new_run_id(scheduler.database.now), START - DAY, START, scheduler.database.now],
        )
    first, token = await list_backfills(scheduler.database, ADMIN, DIGEST)
    rest, last = await list_backfills(scheduler.database, ADMIN, DIGEST, token=token)
    assert (len(first), len(rest), last) == (10, 2, "")


async def test_the_same_request_id_gets_the_same_answer(scheduler: Scheduler) -> None:
    def encode(backfill: Backfill) -> bytes:
        return str(backfill.name).encode()

    async def ask(request: BackfillRequest) -> bytes:
        return await backfill_job(scheduler.database, scheduler.wakeups, ADMIN, request, encode)

    request = hours(-3, 0, request_id="r-1", digest=b"one")
    answers = await asyncio.gather(*(ask(request) for _ in range(3)))
    scheduler.admin.execute("update carillon.jobs set archived_at = now()")
    assert {*answers, await ask(request)} == {answers[0]}
    with pytest.raises(AlreadyExists):
        await ask(replace(request, digest=b"two"))
    assert len(made_runs(scheduler.admin)) == 3


async def test_only_admins_fill_see_and_cancel(scheduler: Scheduler) -> None:
    name = name_of(await fill(scheduler, hours(-1, 0)))
    wakeups = Wakeups()
    callers: list[tuple[Principal, type[Refusal]]] = [
        (builders.service("email-service"), Forbidden),
        (builders.user("acme"), Forbidden),
        (ANONYMOUS, Unauthenticated),
    ]
    for principal, refusal in callers:
        with pytest.raises(refusal):
            await fill(scheduler, hours(-2, 0), principal)
        with pytest.raises(refusal):
            await get_backfill(scheduler.database, principal, name)
        with pytest.raises(refusal):
            await list_backfills(scheduler.database, principal, DIGEST)
        with pytest.raises(refusal):
            await cancel_backfill(scheduler.database, wakeups, principal, name)
    with pytest.raises(NotFound):
        await get_backfill(scheduler.database, ADMIN, replace(name, job=JobName("email-service", "other")))
    with pytest.raises(NotFound):
        await cancel_backfill(scheduler.database, wakeups, ADMIN, replace(name, backfill_id=new_run_id(START)))
    assert len(made_runs(scheduler.admin)) == 1
    assert (await scheduler.get(own())).revision == 1
