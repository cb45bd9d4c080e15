"""One run of a schedule at a time: who waits, who is next, and that nobody is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler_service.domain.attempt import Result, Verdict
from scheduler_service.engine.reap import Reaped
from scheduler_service.store import jobs as job_store
from scheduler_service.store.database import Database
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.runs import get_run
from scheduler_service.usecases.settling import settle_now
from scheduler_service.usecases.wakeups import Topic
from tests.builders import ADMIN, user
from tests.store.engine_case import Connection, every, job_of, rows
from tests.store.turns_case import CANCELLED, COMPLETED, NEXT, SKIPPED, SUPERSEDED, Admin, Begin, Case, reaper_of


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
