"""The ledger's pages: bounded, together the whole, as of one moment, and for those who may read the schedule."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from scheduler_service.domain import ledger as ledger_domain
from scheduler_service.domain.errors import Forbidden, InvalidInput, NotFound
from scheduler_service.domain.job import JobOverrides, Policies
from scheduler_service.domain.ledger import TICK, Outcome
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.run import EPOCH
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp, Occurrence, occurrences
from scheduler_service.store import ledger as ledger_store
from scheduler_service.store.pages import Pages
from scheduler_service.usecases import ledger
from tests.builders import (
    ADMIN,
    NOBODY,
    service,
    user,
)
from tests.store.definitions_case import (
    EMAIL,
    HOUR,
    MINUTE,
    START,
    Scheduler,
    digest,
    every,
    for_tenant,
    own,
)
from tests.store.ledger_case import ALLOW_ALL, SECOND, age_all, end_all, lines, read


async def test_pages_together_are_the_whole_and_have_one_end(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 60 * MINUTE)
    await scheduler.tick_until(START + 4 * HOUR, step=HOUR)
    await scheduler.override(JobOverrides(timing=every("7m")), "timing")
    await scheduler.tick_until(START + 6 * HOUR, step=35 * MINUTE)
    whole = await read(scheduler)
    assert len(whole) > 15
    assert {each.outcome for each in whole} == {Outcome.MISSED, Outcome.PENDING}
    for size in (1, 2, 7, len(whole)):
        assert await read(scheduler, size=size) == whole
    page = await ledger.list_ledger(scheduler.database, ADMIN, own(), since=START, size=3)
    entries = list(page.entries)
    scheduler.database.now += 2 * HOUR  # what comes due meanwhile is not in this list
    while page.next_page_token:
        page = await ledger.list_ledger(
            scheduler.database, ADMIN, own(), since=START, size=3, token=page.next_page_token
        )
        entries += page.entries
    assert [each.owed.first for each in entries] == [each.owed.first for each in whole]


async def test_only_the_outcomes_that_are_asked_for(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 60 * MINUTE)
    await scheduler.tick_until(START + 4 * HOUR, step=HOUR)
    whole = await read(scheduler)
    for size in (1, 2, 1000):
        for outcomes in ({Outcome.MISSED}, {Outcome.PENDING}, {Outcome.MISSED, Outcome.FAILED}, {Outcome.FAILED}):
            expected = [each for each in whole if each.outcome in outcomes]
            assert await read(scheduler, size=size, outcomes=outcomes) == expected


async def test_a_page_looks_at_so_many_occurrences_and_then_stops(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LOOKED_AT", 4)
    none = Policies(overlap=Overlap.ALLOW_ALL, catch_up=CatchUp.NONE)
    await scheduler.register(digest(timing=every("10m"), policies=none))
    await scheduler.tick_until(START + 55 * MINUTE)
    await scheduler.tick_until(START + 9 * HOUR + MINUTE, step=HOUR)
    page = await ledger.list_ledger(scheduler.database, ADMIN, own(), since=START, outcomes={Outcome.FAILED})
    assert page.entries == []
    pages = Pages("ledger", ledger._choice(ADMIN, own(), START, None, {Outcome.FAILED}))
    assert pages.position(page.next_page_token, int, int) == [
        (each - EPOCH) // TICK for each in (START + 40 * MINUTE, scheduler.database.now - TICK)
    ]
    assert await read(scheduler, outcomes={Outcome.FAILED}) == []
    whole = await read(scheduler)
    assert [each for each in whole if each.outcome is Outcome.MISSED] == await read(
        scheduler, outcomes={Outcome.MISSED}
    )
    monkeypatch.undo()
    assert await read(scheduler) == whole


async def test_a_month_of_every_second_is_paged_by_a_look_at_each_page(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page begins where the one before ended: the last is as quick as the first."""
    looked_at = 0

    def counted(*timing_after_until: Any) -> Iterator[Occurrence]:
        nonlocal looked_at
        for occurrence in occurrences(*timing_after_until):
            looked_at += 1
            yield occurrence

    monkeypatch.setattr(ledger_domain, "occurrences", counted)
    await scheduler.register(digest(timing=every("1s"), policies=ALLOW_ALL))
    age_all(scheduler, START - timedelta(days=31))
    scheduler.database.now = START
    asked: dict[str, Any] = {"since": START - timedelta(days=30), "until": START, "size": 1000}
    first = await ledger.list_ledger(scheduler.database, ADMIN, own(), **asked)
    assert (len(first.entries), looked_at) == (1000, 1001)
    # A token near the end, as the caller who read all of it would have one.
    near = START - 1500 * SECOND
    pages = Pages("ledger", ledger._choice(ADMIN, own(), asked["since"], asked["until"], ()))
    token = pages.token([(each - EPOCH) // TICK for each in (near, START - TICK)])
    looked_at = 0
    page = await ledger.list_ledger(scheduler.database, ADMIN, own(), **asked, token=token)
    rest = await ledger.list_ledger(scheduler.database, ADMIN, own(), **asked, token=page.next_page_token)
    assert [len(page.entries), len(rest.entries), rest.next_page_token] == [1000, 499, ""]
    assert page.entries[0].owed.first == near + SECOND
    assert looked_at == 1001 + 499  # from the window's start it would be a thousand times as much


async def test_a_year_that_was_one_gap_is_one_entry(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1s"), policies=ALLOW_ALL))
    age_all(scheduler, START - timedelta(days=365))
    await scheduler.tick_until(START + SECOND / 2, step=SECOND / 2)
    outside, passed_over, *on_time = await read(scheduler, since=START - timedelta(days=365))
    assert (outside.outcome, outside.owed.count) == (Outcome.MISSED, 364 * 86_400)
    assert outside.owed.first == START - timedelta(days=365) + SECOND
    assert (passed_over.outcome, passed_over.owed.count) == (Outcome.MISSED, 86_400 - 60)
    assert [each.outcome for each in on_time] == [Outcome.PENDING] * 60
    (part,) = await read(scheduler, since=START - timedelta(days=100), until=START - timedelta(days=70))
    assert part.owed.count == 30 * 86_400


async def test_the_ledger_is_for_those_who_may_read_the_schedule(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True, timing=every("10m"), policies=ALLOW_ALL))
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(every("10m")))
    await scheduler.tick_until(START + 15 * MINUTE)
    for reader in (ADMIN, EMAIL, user("acme")):
        assert lines(await read(scheduler, name, by=reader)) == [(Outcome.PENDING, 10, 1)]
    for stranger, of in ((user("globex"), name), (user("acme"), own()), (NOBODY, name)):
        with pytest.raises(NotFound):
            await read(scheduler, of, by=stranger)
    with pytest.raises(Forbidden):
        await read(scheduler, name, by=service("other-service"))
    with pytest.raises(NotFound):
        await read(scheduler, for_tenant("acme", "no-such"))


async def test_a_token_is_good_for_the_same_question_only(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 35 * MINUTE)
    page = await ledger.list_ledger(scheduler.database, ADMIN, own(), since=START, size=1)
    for other in ({"since": START + SECOND}, {"since": START, "outcomes": {Outcome.PENDING}}, {}):
        with pytest.raises(InvalidInput, match="page_token"):
            await ledger.list_ledger(scheduler.database, ADMIN, own(), size=1, token=page.next_page_token, **other)


async def test_the_window_is_a_day_up_to_now_unless_it_is_said(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10h"), policies=ALLOW_ALL))
    age_all(scheduler, START - timedelta(days=10))
    for asked, hours in (
        ({}, 24),
        ({"since": START - timedelta(days=3)}, 72),
        ({"until": START + timedelta(days=9)}, 24),
    ):
        page = await ledger.list_ledger(scheduler.database, ADMIN, own(), **asked)  # type: ignore[arg-type]
        first = START - hours * HOUR
        assert page.entries
        assert all(first <= each.owed.first < START for each in page.entries)
        assert page.entries[0].owed.first - first < 10 * HOUR
    assert await read(scheduler, since=START + HOUR) == []
    assert await read(scheduler, since=datetime(1, 1, 1, tzinfo=UTC), until=datetime(1, 1, 2, tzinfo=UTC)) == []
    with pytest.raises(InvalidInput, match="is not after since"):
        await read(scheduler, since=START, until=START)


async def test_a_page_is_as_everything_was_at_one_moment(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 10 * MINUTE)
    count = text("select (select count(*) from carillon.live_runs), (select count(*) from carillon.runs)")
    async with scheduler.database.acting_for(ADMIN, one_snapshot=True) as tx:
        end_all(scheduler)
        assert tuple((await tx.connection.execute(count)).one()) == (1, 0)
    async with scheduler.database.acting_for(ADMIN) as tx:
        assert tuple((await tx.connection.execute(count)).one()) == (0, 1)
        await scheduler.tick_until(START + 20 * MINUTE)
        assert tuple((await tx.connection.execute(count)).one()) == (1, 1)


async def test_what_is_committed_while_a_page_is_read_is_not_half_in_it(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 15 * MINUTE)
    with scheduler.admin.transaction():
        # The page has read where the schedule stands, and waits for its gaps.
        scheduler.admin.execute("lock table carillon.gaps in access exclusive mode")
        reading = asyncio.create_task(read(scheduler))
        waiting = "select from pg_locks where not granted"
        while not reading.done() and not scheduler.admin.execute(waiting).fetchall():  # noqa: ASYNC110 - PostgreSQL's event
            await asyncio.sleep(0.01)
        end_all(scheduler)
    assert lines(await reading) == [(Outcome.PENDING, 10, 1)]
    assert lines(await read(scheduler)) == [(Outcome.COMPLETED, 10, 1)]


async def test_a_token_that_names_the_future_shows_nothing_of_it(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 15 * MINUTE)
    pages = Pages("ledger", ledger._choice(ADMIN, own(), START, None, ()))
    token = pages.token([(each - EPOCH) // TICK for each in (START, START + HOUR)])
    page = await ledger.list_ledger(scheduler.database, ADMIN, own(), since=START, token=token)
    assert lines(page.entries) == [(Outcome.PENDING, 10, 1)]


async def test_records_are_found_by_their_ids_in_their_own_partitions(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL))
    await scheduler.tick_until(START + 20 * MINUTE)
    end_all(scheduler)
    ids = [run_id for (run_id,) in scheduler.admin.execute("select run_id from carillon.runs").fetchall()]
    scheduler.admin.execute("analyze carillon.runs")
    async with scheduler.database.acting_for(ADMIN) as tx:
        explain = text(f"explain (analyze, costs off, timing off) {ledger_store._RUNS.text}")
        plan = [line for (line,) in await tx.connection.execute(explain, {"run_ids": ids})]
    scans = [line for line in plan if re.search(r"on runs_\d{4}_\d{2}", line)]
    assert len(scans) > 3
    assert sum("never executed" not in line for line in scans) == 1, "\n".join(plan)
