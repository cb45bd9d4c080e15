"""Turns where an ender meets somebody who buffers, and where somebody was forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.attempt import Verdict
from scheduler_service.engine.reap import Reaped
from scheduler_service.store import turns
from scheduler_service.store.database import Database
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.wakeups import Topic
from tests.builders import ADMIN
from tests.store.engine_case import Connection, rows
from tests.store.turns_case import CANCELLED, COMPLETED, Admin, Begin, reaper_of


@dataclass
class Interleaved:
    """Two connections, one of which holds a transaction open while the other waits for it."""

    admin: Admin
    first: Connection
    second: Connection

    async def run(self, before: Callable[[], Awaitable[Any]], after: Awaitable[Any]) -> Any:
        """Does `before` on the first connection, then begins `after`, which must come to wait for it; then commits."""
        async with asyncio.timeout(60), self.first.transaction():
            await before()
            task = asyncio.ensure_future(after)
            await self._waits(self.second, task)
        return await asyncio.wait_for(task, 60)

    async def _waits(self, connection: Connection, task: asyncio.Future[Any]) -> None:
        pid = connection.info.backend_pid
        query = "select wait_event_type from pg_stat_activity where pid = %s"
        while rows(self.admin, query, pid) != [("Lock",)]:
            assert not task.done(), "it did not have to wait"
            await asyncio.sleep(0.005)


class TestRaces:
    """An ender and somebody who buffers meet, in each order; and whoever waits gets the turn in the end."""

    @pytest.fixture
    def interleaved(self, admin: Admin, hot: Connection, other: Connection) -> Interleaved:
        return Interleaved(admin, hot, other)

    @pytest.mark.parametrize("followed", [False, True])
    @pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED"])
    async def test_a_tick_that_meets_a_run_as_it_ends(
        self, begin: Begin, interleaved: Interleaved, outcome: str, followed: bool
    ) -> None:
        case = begin("BUFFER_ALL", max_attempts=1)
        await case.tick(1)
        if followed:
            await case.tick(2)
        ref = await case.claim_one()
        ticked = await interleaved.run(
            lambda: case.report(ref, outcome), case.tick(3 if followed else 2, interleaved.second)
        )
        assert ticked.made.live == 1
        assert case.live() == ([(2, "pending, followed"), (3, "waits")] if followed else [(2, "pending")])

    @pytest.mark.parametrize("followed", [False, True])
    @pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED"])
    async def test_a_result_that_meets_a_tick_as_it_buffers(
        self, begin: Begin, interleaved: Interleaved, outcome: str, followed: bool
    ) -> None:
        case = begin("BUFFER_ALL", max_attempts=1)
        await case.tick(1)
        if followed:
            await case.tick(2)
        ref = await case.claim_one()
        verdict = await interleaved.run(
            lambda: case.tick(3 if followed else 2), case.report(ref, outcome, connection=interleaved.second)
        )
        assert verdict is Verdict.ACCEPTED
        assert case.live() == ([(2, "pending, followed"), (3, "waits")] if followed else [(2, "pending")])

    async def test_a_result_that_meets_a_tick_as_it_asks_the_run_to_stop(
        self, begin: Begin, interleaved: Interleaved
    ) -> None:
        case = begin("CANCEL_OTHER")
        await case.tick(1)
        ref = await case.claim_one()
        await interleaved.run(lambda: case.tick(2), case.report(ref, connection=interleaved.second))
        assert case.ended() == {1: COMPLETED}
        assert case.live() == [(2, "pending")]

    async def test_a_tick_that_would_stop_a_run_as_it_ends_stops_the_one_that_got_its_turn(
        self, begin: Begin, interleaved: Interleaved
    ) -> None:
        case = begin("CANCEL_OTHER")
        await case.tick(1)
        ref = await case.claim_one()
        await case.tick(2)
        await interleaved.run(lambda: case.report(ref), case.tick(3, interleaved.second))
        assert case.ended() == {1: COMPLETED, 2: CANCELLED}
        assert case.live() == [(3, "pending")]

    async def test_a_next_one_that_is_cancelled_as_it_would_get_its_turn(
        self, begin: Begin, interleaved: Interleaved
    ) -> None:
        case = begin("BUFFER_ALL")
        for period in (1, 2, 3):
            await case.tick(period)
        ref = await case.claim_one()

        async def cancel() -> None:
            await interleaved.first.execute("delete from carillon.live_runs where run_id = %s", [case.occurrence(2)])

        await interleaved.run(cancel, case.report(ref, connection=interleaved.second))
        assert case.live() == [(3, "pending")]

    async def test_a_waiting_one_that_is_cancelled_as_it_gets_its_turn(
        self, begin: Begin, admin: Admin, database: Database, hot: Connection
    ) -> None:
        case = begin("BUFFER_ALL")
        for period in (1, 2, 3):
            await case.tick(period)
        ref = await case.claim_one()
        async with asyncio.timeout(60), hot.transaction():
            await case.report(ref)
            cancelling = asyncio.create_task(cancel_run(database, case.wakeups, ADMIN, case.occurrence(2)))
            waiting = (
                "select count(*) from pg_stat_activity"
                " where usename = 'carillon_api' and wait_event_type = 'Lock' and datname = current_database()"
            )
            while rows(admin, waiting) != [(1,)]:
                assert not cancelling.done()
                await asyncio.sleep(0.005)
        await cancelling
        assert case.live() == [(3, "pending")]

    async def test_two_who_buffer_take_turns_by_the_schedules_lock(
        self, begin: Begin, interleaved: Interleaved, admin: Admin
    ) -> None:
        case = begin("BUFFER_ALL")
        await case.tick(1)

        async def run_by_hand() -> None:
            connection = interleaved.second
            async with connection.transaction():
                await connection.execute(
                    "select from carillon.schedules where schedule_id = %s for update", [case.schedule]
                )
                case.extra(1.5)
                await arrange(connection, [case.schedule])

        await interleaved.run(lambda: case.tick(2), run_by_hand())
        assert case.live() == [(1, "pending, followed"), (1.5, "waits"), (2, "waits")]
        assert await case.carry_out_all() == [1, 2, 1.5]

    async def test_a_reaper_leaves_a_run_that_others_come_to_wait_for_and_ends_it_after_them(
        self, begin: Begin, interleaved: Interleaved, admin: Admin, database: Database
    ) -> None:
        case = begin("BUFFER_ALL", max_attempts=1)
        await case.tick(1)
        await case.claim_one()
        admin.execute("update carillon.sessions set expires_at = %s", [case.at(1)])
        admin.execute("update carillon.live_runs set started_at = claimed_at")
        reaper = reaper_of(case, database)
        async with interleaved.first.transaction():
            await case.tick(2)
            assert await reaper.step(interleaved.second, now=case.at(2)) == Reaped(sessions=1)
        assert await reaper.step(interleaved.second, now=case.at(2)) == Reaped(failed=1)
        assert case.live() == [(2, "pending")]


class TestStranded:
    """What should not happen: blocked runs, and nobody who would leave them a turn."""

    async def test_the_reaper_gives_them_their_turn_and_says_so(self, begin: Begin, database: Database) -> None:
        case = begin("SKIP")
        case.extra(1)
        case.extra(2)
        told = case.wakeups.listen(Topic.PENDING)
        with capture_logs() as logs:
            assert await reaper_of(case, database).step(case.hot, now=case.at(3)) == Reaped(released=1)
        told_in_the_log = [
            (each["kind"], each["count"], each["runs"]) for each in logs if each["log_level"] == "warning"
        ]
        assert told_in_the_log == [("turn_free", 1, 1)]
        assert case.live() == [(1, "pending, followed"), (2, "waits")]
        assert told.take()

    async def test_a_locked_schedule_is_left_for_later(
        self, begin: Begin, database: Database, other: Connection
    ) -> None:
        case = begin("SKIP")
        case.extra(1)
        reaper = reaper_of(case, database)
        async with other.transaction():
            await other.execute("select from carillon.schedules for update")
            assert not await reaper.step(case.hot, now=case.at(3))
        assert await reaper.step(case.hot, now=case.at(3)) == Reaped(released=1)

    async def test_every_schedule_is_looked_at_in_turn(self, begin: Begin, hot: Connection) -> None:
        case = begin("SKIP")
        for schedule in range(100, 107):
            for period in (1, 2):
                case.extra(period, schedule=schedule)
        for schedule in (100, 101, 103, 104, 105):
            case.extra(0, schedule=schedule, blocked=False)
        looks, after = [], 0
        for _ in range(4):
            stranded, after = await turns.find_stranded(hot, after, 3)
            looks.append((stranded, after))
        assert looks == [([102], 102), ([], 105), ([106], 0), ([102], 102)]

    async def test_a_look_is_bounded_however_many_wait(self, begin: Begin, admin: Admin, hot: Connection) -> None:
        case = begin("SKIP")
        example = case.extra(1)
        columns = "job_id, tenant_id, route, trigger, scheduled_for, run_after, created_at, max_attempts,"
        columns += " attempt_timeout, run_timeout, cancel_grace, revision, exclusive"
        admin.execute(
            f"insert into carillon.live_runs (run_id, schedule_id, blocked, {columns})"
            f" select gen_random_uuid(), n / 4, n %% 4 > 0, {columns}"
            " from carillon.live_runs, generate_series(4000, 23999) n where run_id = %s".encode(),
            [example],
        )
        admin.execute("delete from carillon.live_runs where run_id = %s", [example])
        query = turns._LOOK.replace("%(after)s", "0").replace("%(limit)s", "500")
        plan = rows(admin, f"explain (analyze, buffers, timing off, format json) {query}")[0][0][0]["Plan"]
        assert plan["Actual Rows"] == 500
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 500 * 12
        assert (await turns.find_stranded(hot, 0, 500)) == ([], 1499)
