"""One run of a schedule at a time: who waits, who is next, and that nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.attempt import AttemptRef, Result, Verdict
from scheduler_service.domain.run import scheduled_run_id
from scheduler_service.store import jobs as job_store
from scheduler_service.store import turns
from scheduler_service.store.claim import claim
from scheduler_service.store.database import Database
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.complete import Completer
from scheduler_service.usecases.leases import Leases
from scheduler_service.usecases.reap import Reaped, Reaper
from scheduler_service.usecases.runs import get_run
from scheduler_service.usecases.sessions import ConnectedSession, Sessions
from scheduler_service.usecases.tick import NobodySeated, Ticked, settle_now, tick
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests.builders import ADMIN, MadeJob, make_live_run, user
from tests.store.engine_case import SECOND, START, Connection, Received, every, job_of, rows, session_of

Admin = psycopg.Connection[Any]
SUPERSEDED = "a later occurrence of its schedule came due"


class Case:
    """A schedule that owes a run each 10 s from START on, and a worker that takes them. Instants are counted in
    periods."""

    def __init__(self, admin: Admin, hot: Connection, overlap: str, **columns: Any) -> None:
        self.admin = admin
        self.hot = hot
        self.job: MadeJob = job_of(admin, overlap=overlap, **columns)
        self.schedule = every(admin, self.job)
        self.sessions = Sessions(on_credit=lambda: None)
        self.session: ConnectedSession
        self.received: Received
        self.session, self.received = session_of(admin, self.sessions, credit=100)
        self.wakeups = Wakeups()
        self.completer = Completer(self.wakeups)

    def at(self, period: float) -> datetime:
        return START + period * 10 * SECOND

    def occurrence(self, period: float) -> UUID:
        return scheduled_run_id(self.schedule, self.at(period))

    async def tick(self, period: float, connection: Connection | None = None) -> Ticked:
        return await tick(connection or self.hot, NobodySeated(), now=self.at(period))

    def extra(self, period: float, trigger: str = "MANUAL", *, schedule: int | None = None, **columns: Any) -> UUID:
        """A run that no schedule owes just now, as those leave it who arrange the turns next."""
        row = {"schedule_id": schedule or self.schedule, "revision": 1, "exclusive": True, "blocked": True}
        at = self.at(period)
        return make_live_run(self.admin, self.job, at=at, **(row | {"trigger": trigger} | columns))

    async def arrange(self, *schedules: int) -> int:
        async with self.hot.transaction():
            await self.hot.execute("select from carillon.schedules where schedule_id = %s for update", [self.schedule])
            return await arrange(self.hot, schedules or [self.schedule])

    async def claim(self, period: float = 999, connection: Connection | None = None) -> list[AttemptRef]:
        made = await claim(connection or self.hot, self.session.session_id, ["http"], 500, self.at(period))
        assert made is not None
        return [AttemptRef(run.run_id, run.attempt, made.claim_id) for run in made.runs]

    async def claim_one(self) -> AttemptRef:
        (ref,) = await self.claim()
        return ref

    async def report(
        self, ref: AttemptRef, outcome: Any = "COMPLETED", period: float = 999, connection: Connection | None = None
    ) -> Verdict:
        self.received.verdicts.clear()
        self.completer.submit([Result(ref, self.session.session_id, outcome, 0.5)], self.session)
        assert await self.completer.step(connection or self.hot, now=self.at(period))
        (verdict,) = self.received.answers
        return verdict

    async def carry_out(self) -> float:
        """Claims the one run that may be claimed, and completes it. Answers its period."""
        ref = await self.claim_one()
        ((at,),) = rows(self.admin, "select scheduled_for from carillon.live_runs where run_id = %s", ref.run_id)
        assert await self.report(ref) is Verdict.ACCEPTED
        period: float = (at - START) / (10 * SECOND)
        return period

    async def carry_out_all(self) -> list[float]:
        done = []
        while rows(self.admin, "select from carillon.live_runs"):
            done.append(await self.carry_out())
        return done

    def live(self, *, schedule: int | None = None) -> list[tuple[float, str]]:
        """Periods of live runs, each with where it stands; the one with the turn first."""
        found = rows(
            self.admin,
            "select scheduled_for, case when blocked then 'waits' when claim_id is null then 'pending' else 'held' end"
            " || case when followed then ', followed' else '' end from carillon.live_runs where schedule_id = %s"
            " order by blocked, scheduled_for",
            schedule or self.schedule,
        )
        return [((at - START) / (10 * SECOND), stands) for at, stands in found]

    def ended(self) -> dict[float, tuple[str, str | None]]:
        found = rows(self.admin, "select scheduled_for, state::text, error ->> 'code' from carillon.runs")
        return {(at - START) / (10 * SECOND): (state, code) for at, state, code in found}


Begin = Callable[..., Case]


@pytest.fixture
def begin(admin: Admin, hot: Connection) -> Begin:
    def begin(overlap: str, **columns: Any) -> Case:
        return Case(admin, hot, overlap, **columns)

    return begin


COMPLETED, SKIPPED, CANCELLED = ("COMPLETED", None), ("SKIPPED", "OVERLAP"), ("CANCELLED", "OVERLAP")


class TestPolicies:
    async def test_skip_leaves_the_live_one_alone(self, begin: Begin) -> None:
        case = begin("SKIP")
        for period in (1, 2, 3):
            await case.tick(period)
        assert case.live() == [(1, "pending")]
        assert case.ended() == {2: SKIPPED, 3: SKIPPED}

    async def test_an_occurrence_is_not_skipped_for_a_run_that_is_none_and_goes_ahead_of_them(
        self, begin: Begin
    ) -> None:
        case = begin("SKIP")
        case.extra(0.5)
        case.extra(0.6)
        assert await case.arrange() == 1
        ticked = await case.tick(1)
        assert (ticked.made.live, ticked.made.kept_out.buffered, ticked.made.skipped) == (1, 1, 0)
        await case.tick(2)
        assert case.live() == [(0.5, "pending, followed"), (0.6, "waits"), (1, "waits")]
        assert case.ended() == {2: SKIPPED}
        assert await case.carry_out_all() == [0.5, 1, 0.6]

    async def test_buffer_one_lets_one_wait(self, begin: Begin) -> None:
        case = begin("BUFFER_ONE")
        for period in (1, 2, 3):
            await case.tick(period)
        assert case.live() == [(1, "pending, followed"), (2, "waits")]
        assert case.ended() == {3: SKIPPED}
        assert await case.carry_out() == 1
        await case.tick(4)
        assert await case.carry_out_all() == [2, 4]

    async def test_buffer_all_lets_each_wait_its_turn(self, begin: Begin) -> None:
        case = begin("BUFFER_ALL")
        for period in (1, 2, 3, 4):
            await case.tick(period)
        assert case.live() == [(1, "pending, followed"), (2, "waits"), (3, "waits"), (4, "waits")]
        assert await case.carry_out_all() == [1, 2, 3, 4]
        assert case.ended() == dict.fromkeys((1, 2, 3, 4), COMPLETED)

    async def test_cancel_other_ends_a_pending_one_at_once(self, begin: Begin) -> None:
        case = begin("CANCEL_OTHER")
        await case.tick(1)
        ticked = await case.tick(2)
        assert (ticked.made.kept_out.cancelled, ticked.made.kept_out.stopped, ticked.pending) == (1, 0, 1)
        assert case.live() == [(2, "pending")]
        assert case.ended() == {1: CANCELLED}

    async def test_cancel_other_asks_a_claimed_one_to_stop_and_only_the_newest_waits(
        self, begin: Begin, admin: Admin
    ) -> None:
        case = begin("CANCEL_OTHER")
        await case.tick(1)
        ref = await case.claim_one()
        ticked = await case.tick(2)
        assert (ticked.made.kept_out.cancelled, ticked.made.kept_out.stopped) == (0, 1)
        asked = rows(
            admin, "select cancel_requested_at, cancel_reason, cancelled_by from carillon.live_runs where not blocked"
        )
        assert asked == [(case.at(2), SUPERSEDED, "overlap")]
        ticked = await case.tick(3)
        assert (ticked.made.kept_out.cancelled, ticked.made.kept_out.stopped) == (1, 0)
        assert case.live() == [(1, "held, followed"), (3, "waits")]
        assert await case.report(ref, "CANCELLED") is Verdict.ACCEPTED
        assert rows(admin, "select error ->> 'message' from carillon.runs where run_id = %s", ref.run_id) == [
            (SUPERSEDED,)
        ]
        assert await case.carry_out_all() == [3]
        assert {period: state for period, (state, _) in case.ended().items()} == {
            1: "CANCELLED",
            2: "CANCELLED",
            3: "COMPLETED",
        }

    async def test_cancel_other_leaves_runs_that_are_no_occurrences_alone(self, begin: Begin) -> None:
        case = begin("CANCEL_OTHER")
        case.extra(0.5)
        case.extra(0.6)
        await case.arrange()
        for period in (1, 2):
            await case.tick(period)
        assert case.live() == [(0.5, "pending, followed"), (0.6, "waits"), (2, "waits")]
        assert case.ended() == {1: CANCELLED}
        assert await case.carry_out_all() == [0.5, 2, 0.6]

    async def test_what_is_caught_up_waits_in_order_and_what_is_due_on_time_goes_ahead(
        self, begin: Begin, admin: Admin
    ) -> None:
        case = begin("SKIP", catch_up="ALL")
        await case.tick(9)  # 80 s late at most: the first three are catch-up
        assert rows(admin, "select distinct trigger::text, priority from carillon.live_runs order by 2") == [
            ("SCHEDULE", 0),
            ("CATCH_UP", 1),
        ]
        assert await case.carry_out_all() == [1, 4, 2, 3]
        assert {period for period, end in case.ended().items() if end == SKIPPED} == {5, 6, 7, 8, 9}

    async def test_several_due_at_once_are_decided_in_order(self, begin: Begin) -> None:
        case = begin("CANCEL_OTHER")
        ticked = await case.tick(3)
        assert ticked.made.kept_out.cancelled == 2
        assert case.live() == [(3, "pending")]
        assert case.ended() == {1: CANCELLED, 2: CANCELLED}

    async def test_many_schedules_of_every_policy_in_one_tick(self, begin: Begin, admin: Admin) -> None:
        case = begin("SKIP")
        schedules = {}
        for overlap in ("SKIP", "BUFFER_ONE", "BUFFER_ALL", "CANCEL_OTHER", "ALLOW_ALL"):
            job = job_of(admin, f"job-{overlap.lower().replace('_', '-')}", overlap=overlap)
            schedules[overlap] = [every(admin, job, schedule=f"s{number}") for number in range(30)]
        for period in (1, 2, 3):
            ticked = await case.tick(period)
        assert (ticked.made.live, ticked.made.skipped) == (90, 61)
        for overlap, expected in {
            "SKIP": [(1, "pending")],
            "BUFFER_ONE": [(1, "pending, followed"), (2, "waits")],
            "BUFFER_ALL": [(1, "pending, followed"), (2, "waits"), (3, "waits")],
            "CANCEL_OTHER": [(3, "pending")],
            "ALLOW_ALL": [(1, "pending"), (2, "pending"), (3, "pending")],
        }.items():
            assert {tuple(case.live(schedule=each)) for each in schedules[overlap]} == {tuple(expected)}

    async def test_an_edit_settles_by_the_same_rules_in_the_callers_role(
        self, begin: Begin, database: Database
    ) -> None:
        case = begin("BUFFER_ONE")
        await case.tick(1)
        async with database.acting_for(ADMIN) as tx:
            assert await settle_now(await tx.driver_connection(), [case.schedule], case.at(3)) == 2
        assert case.live() == [(1, "pending, followed"), (2, "waits")]
        assert case.ended() == {3: SKIPPED}

    async def test_a_job_changed_since_it_was_read_is_decided_again(
        self, begin: Begin, admin: Admin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from scheduler_service.store import due as store

        case = begin("CANCEL_OTHER")
        await case.tick(1)
        take_due = store.take_due

        async def change_after_reading(*arguments: Any) -> Any:
            due = await take_due(*arguments)
            admin.execute("update carillon.jobs set overlap = 'BUFFER_ALL'")
            return due

        with monkeypatch.context() as patched:
            patched.setattr(store, "take_due", change_after_reading)
            ticked = await case.tick(2)
        assert (ticked.made.live, case.live(), case.ended()) == (0, [(1, "pending")], {})
        await case.tick(2)
        assert case.live() == [(1, "pending, followed"), (2, "waits")]


class TestTurns:
    async def test_the_order_is_by_trigger_then_instant(self, begin: Begin) -> None:
        case = begin("SKIP")
        triggers = ("REPAIR", "BACKFILL", "MANUAL", "CATCH_UP", "SCHEDULE")
        for place, trigger in enumerate(triggers):
            case.extra(place + 0.2, trigger)
            case.extra(place + 0.1, trigger)
        assert await case.arrange() == 1
        order = [place + part for place in (4, 3, 2, 1, 0) for part in (0.1, 0.2)]
        assert await case.carry_out_all() == pytest.approx(order)

    async def test_many_schedules_are_arranged_by_a_few_statements(
        self, begin: Begin, admin: Admin, hot: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = begin("SKIP")
        free = list(range(1_000, 1_200))
        held = list(range(2_000, 2_200))
        for schedule in (*free, *held):
            case.extra(1, schedule=schedule)
            case.extra(2, schedule=schedule)
        for schedule in held:
            case.extra(0, schedule=schedule, blocked=False)
        statements = 0
        execute = hot.execute

        async def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal statements
            statements += 1
            return await execute(*arguments, **options)

        monkeypatch.setattr(hot, "execute", counted)
        assert await arrange(hot, [*free, *held, 3_000]) == 200
        assert statements == 2
        assert {tuple(case.live(schedule=each)) for each in free} == {((1, "pending, followed"), (2, "waits"))}
        assert {tuple(case.live(schedule=each)) for each in held} == {
            ((0, "pending, followed"), (1, "waits"), (2, "waits"))
        }

    async def test_a_run_for_which_nobody_waits_is_not_followed(self, begin: Begin) -> None:
        case = begin("SKIP")
        case.extra(1)
        await case.arrange()
        assert case.live() == [(1, "pending")]
        assert await case.arrange() == 0
        assert case.live() == [(1, "pending")]

    async def test_a_tenants_user_arranges_its_own(self, begin: Begin, database: Database, admin: Admin) -> None:
        case = begin("SKIP")
        own = every(admin, case.job, schedule="own", tenant="tenant-a")
        for period in (1, 2):
            case.extra(period, schedule=own, tenant="tenant-a")
        case.extra(1)
        async with database.acting_for(user("tenant-a")) as tx:
            assert await arrange(await tx.driver_connection(), [own, case.schedule]) == 1
        assert case.live(schedule=own) == [(1, "pending, followed"), (2, "waits")]
        assert case.live() == [(1, "waits")]

    async def test_readers_see_who_waits(self, begin: Begin, database: Database) -> None:
        case = begin("BUFFER_ALL")
        for period in (1, 2):
            await case.tick(period)
        waiting = [(await get_run(database, ADMIN, case.occurrence(period))).blocked for period in (1, 2)]
        assert waiting == [False, True]
        await case.carry_out()
        assert not (await get_run(database, ADMIN, case.occurrence(2))).blocked
        assert not (await get_run(database, ADMIN, case.occurrence(1))).blocked


NEXT = [(2, "pending, followed"), (3, "waits")]


class TestEnds:
    """Whoever ends a run that others wait for leaves its turn to the next."""

    @pytest.fixture
    async def case(self, begin: Begin) -> Case:
        case = begin("BUFFER_ALL", max_attempts=1)
        for period in (1, 2, 3):
            await case.tick(period)
        return case

    @pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED"])
    async def test_a_result(self, case: Case, outcome: str) -> None:
        told = case.wakeups.listen(Topic.PENDING)
        assert await case.report(await case.claim_one(), outcome) is Verdict.ACCEPTED
        assert case.live() == NEXT
        assert told.take()

    async def test_results_of_many_schedules_at_once_some_followed(self, case: Case, admin: Admin) -> None:
        others = [every(admin, case.job, schedule=f"s{number}") for number in range(20)]
        await case.tick(1)
        for schedule in others[::2]:
            case.extra(2, schedule=schedule)
        await case.arrange(*others)
        refs = await case.claim()
        case.completer.submit([Result(ref, case.session.session_id, "COMPLETED", 0.5) for ref in refs], case.session)
        assert await case.completer.step(case.hot, now=case.at(5))
        assert case.received.answers == [Verdict.ACCEPTED] * 21
        assert case.completer.ended == {"COMPLETED": 21}
        assert case.live() == NEXT
        assert [case.live(schedule=each) for each in others] == [[(2, "pending")], []] * 10

    async def test_a_result_that_cannot_be_recorded(self, case: Case) -> None:
        ref = await case.claim_one()
        case.completer.submit(
            [Result(ref, case.session.session_id, "COMPLETED", 0.5, metrics="{not json")], case.session
        )
        await case.completer.step(case.hot, now=case.at(5))
        assert case.ended() == {1: ("FAILED", "BAD_RESULT")}
        assert case.live() == NEXT

    async def test_a_run_with_a_record_already(self, case: Case, admin: Admin) -> None:
        ref = await case.claim_one()
        await case.report(ref)
        admin.execute("update carillon.live_runs set blocked = true")
        case.extra(1, "SCHEDULE", run_id=ref.run_id, blocked=False, followed=True)
        told = case.wakeups.listen(Topic.PENDING)
        assert await case.report(await case.claim_one()) is Verdict.RUN_ENDED
        assert case.live() == NEXT
        assert told.take()

    async def test_a_cancelled_one(self, case: Case, database: Database) -> None:
        told = case.wakeups.listen(Topic.PENDING)
        await cancel_run(database, case.wakeups, ADMIN, case.occurrence(1))
        assert case.live() == NEXT
        assert told.take()

    async def test_a_cancelled_one_that_waits_leaves_the_turn_where_it_is(self, case: Case, database: Database) -> None:
        await cancel_run(database, case.wakeups, ADMIN, case.occurrence(2))
        assert case.live() == [(1, "pending, followed"), (3, "waits")]
        await cancel_run(database, case.wakeups, ADMIN, case.occurrence(3))
        assert await case.carry_out_all() == [1]

    async def test_a_lost_worker(self, case: Case, admin: Admin, database: Database) -> None:
        await case.claim_one()
        admin.execute("update carillon.sessions set expires_at = %s", [case.at(4)])
        admin.execute("update carillon.live_runs set started_at = claimed_at where claim_id is not null")
        assert await reaper_of(case, database).step(case.hot, now=case.at(5)) == Reaped(sessions=1, failed=1)
        assert case.ended() == {1: ("FAILED", "WORKER_LOST")}
        assert case.live() == NEXT

    async def test_a_lost_worker_whose_run_is_tried_again_keeps_its_turn(
        self, case: Case, admin: Admin, database: Database
    ) -> None:
        await case.claim_one()
        admin.execute("update carillon.sessions set expires_at = %s", [case.at(4)])
        assert await reaper_of(case, database).step(case.hot, now=case.at(5)) == Reaped(sessions=1, freed=1)
        assert case.live() == [(1, "pending, followed"), (2, "waits"), (3, "waits")]

    async def test_an_archived_job(self, case: Case, database: Database) -> None:
        ref = await case.claim_one()
        async with database.acting_for(ADMIN) as tx:
            await job_store.archive(tx, [case.job.job_id])
        assert case.live() == [(1, "held, followed")]
        assert case.ended() == dict.fromkeys((2, 3), ("CANCELLED", "JOB_REMOVED"))
        assert await case.report(ref) is Verdict.ACCEPTED


def reaper_of(case: Case, database: Database) -> Reaper:
    leases = Leases(database, case.sessions, case.wakeups, replica="replica-1", lease=30.0)
    return Reaper(case.sessions, leases, case.wakeups, clock=lambda: 0.0)


@dataclass
class Interleaved:
    """Two connections, one of which holds a transaction open while the other waits for it."""

    admin: Admin
    first: Connection
    second: Connection

    async def run(self, before: Callable[[], Awaitable[Any]], after: Awaitable[Any]) -> Any:
        """Does `before` on the first connection, then begins `after`, which must come to wait for it; then commits."""
        async with asyncio.timeout(20), self.first.transaction():
            await before()
            task = asyncio.ensure_future(after)
            await self._waits(self.second, task)
        return await asyncio.wait_for(task, 20)

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
        async with asyncio.timeout(20), hot.transaction():
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

    async def test_a_reaper_that_ends_a_run_as_others_come_to_wait_for_it(
        self, begin: Begin, interleaved: Interleaved, admin: Admin, database: Database
    ) -> None:
        case = begin("BUFFER_ALL", max_attempts=1)
        await case.tick(1)
        await case.claim_one()
        admin.execute("update carillon.sessions set expires_at = %s", [case.at(1)])
        admin.execute("update carillon.live_runs set started_at = claimed_at")
        reaper = reaper_of(case, database)
        reaped = await interleaved.run(lambda: case.tick(2), reaper.step(interleaved.second, now=case.at(2)))
        assert reaped.failed == 1
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
        assert [each["schedules"] for each in logs if each["log_level"] == "warning"] == [[case.schedule]]
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
        columns = "job_id, tenant_id, route, trigger, scheduled_for, run_after, created_at, max_attempts, retry_delay,"
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
