"""Stuck states, planted as a fault or a hand in the database would leave them: each is found, mended, counted, logged
and told to the audit trail, and what cannot be mended keeps nothing else waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.audit import EventFilter
from scheduler_service.domain.repairs import SHOWN, Repair
from scheduler_service.domain.run import new_run_id
from scheduler_service.engine.reap import LIMIT, Reaped
from scheduler_service.engine.set_aside import FIRST_PAUSE, LONGEST_PAUSE, SetAside
from scheduler_service.store.database import Database
from scheduler_service.usecases.audit import list_audit_events, verify_audit_trail
from tests.builders import ADMIN, finish, make_schedule, make_session
from tests.conftest import DatabaseUrls
from tests.store.audit_case import seal_all
from tests.store.engine_case import Connection, rows
from tests.store.repairs_case import NOW, Admin, House

HOUR = timedelta(hours=1)


@pytest.fixture
async def house(database: Database, admin: Admin, hot: Connection) -> House:
    return House(database, admin, hot)


def id_without_partition() -> UUID:
    """Of a month whose partitions are not there, nor ever made by themselves."""
    return new_run_id(NOW - timedelta(days=3650))


class TestWhatIsFound:
    async def test_a_lost_session_is_told_as_one_event_and_its_runs_as_another(self, house: House) -> None:
        session_id = make_session(house.admin, "worker-7")
        run_ids = {house.held(session_id) for _ in range(SHOWN + 5)}
        house.lose(session_id)
        with capture_logs() as logs:
            assert await house.step() == Reaped(sessions=1, charged=SHOWN + 5)
        ended, taken = await house.told()
        assert (ended.principal, ended.action, ended.resource) == (
            "engine:replica-1",
            "EndLostSessions",
            f"sessions/{session_id}",
        )
        assert ended.after == {"kind": "session_lost", "count": 1, "workers": ["worker-7"]}
        assert (taken.action, taken.resource, taken.tenant) == ("TakeBackRunsOfLostSessions", "runs/-", "")
        assert taken.after is not None
        names = taken.after["names"]
        assert (taken.after["count"], taken.after["became"]) == (SHOWN + 5, {"charged": SHOWN + 5})
        assert len(names) == SHOWN
        assert set(names) < {f"runs/{run_id}" for run_id in run_ids}
        assert [(line["event"], line["kind"], line["count"]) for line in logs] == [
            ("repaired", "session_lost", 1),
            ("repaired", "worker_lost", SHOWN + 5),
        ]
        assert house.reaper.repairs == {Repair.SESSION_LOST: 1, Repair.WORKER_LOST: SHOWN + 5}

    async def test_runs_whose_session_row_is_gone_are_free_again(self, house: House) -> None:
        session_id = make_session(house.admin)
        lost, kept = house.held(session_id), house.held()
        house.admin.execute("delete from carillon.sessions where session_id = %s", [session_id])
        assert await house.step() == Reaped(charged=1)
        assert house.live() == {lost, kept}
        assert sum(holder is None for holder in house.holders()) == 1
        (event,) = await house.told()
        assert (event.action, event.resource) == ("TakeBackRunsWithoutSession", f"runs/{lost}")
        assert house.reaper.repairs == {Repair.SESSION_GONE: 1}

    async def test_an_attempt_long_over_its_time_ends_though_its_session_lives(self, house: House) -> None:
        run_id = house.held(max_attempts=1)
        house.admin.execute("update carillon.live_runs set deadline = %s", [NOW - HOUR])
        assert await house.step() == Reaped(failed=1)
        assert house.outcome(run_id) == ("FAILED", "ATTEMPT_TIMEOUT")
        (event,) = await house.told()
        assert event.action == "EndOverdueAttempts"
        assert event.after == {"kind": "attempt_overdue", "count": 1, "became": {"failed": 1}}

    async def test_a_live_row_of_a_run_that_had_ended_is_removed(self, house: House) -> None:
        run_id = house.pending()
        finish(house.admin, run_id)
        house.pending(run_id=run_id, tenant="acme")
        other = house.pending()
        assert await house.step() == Reaped(removed=1)
        assert house.live() == {other}
        assert house.outcome(run_id) == ("COMPLETED", None)
        (event,) = await house.told()
        assert (event.action, event.resource, event.tenant) == ("RemoveEndedRuns", f"runs/{run_id}", "acme")

    async def test_a_run_that_had_ended_and_is_ended_again_counts_as_removed(self, house: House) -> None:
        run_id = house.held(max_attempts=1)
        finish(house.admin, run_id)
        again = house.held(run_id=run_id, max_attempts=1)
        assert again == run_id
        house.admin.execute("update carillon.live_runs set deadline = %s", [NOW - HOUR])
        assert await house.step() == Reaped(removed=1)
        assert house.outcome(run_id) == ("COMPLETED", None)
        assert house.reaper.repairs == {Repair.RECORDED_ALREADY: 1}

    async def test_a_run_that_was_to_stop_and_that_nobody_holds_ends(self, house: House) -> None:
        run_id = house.pending()
        house.admin.execute("update carillon.live_runs set cancel_requested_at = %s", [NOW])
        assert await house.step() == Reaped(cancelled=1)
        assert house.outcome(run_id) == ("CANCELLED", "CANCELLED")
        assert [event.action for event in await house.told()] == ["EndForgottenRuns"]

    async def test_what_a_job_s_rules_end_is_counted_and_not_in_the_trail(self, house: House) -> None:
        graceful = house.held(cancel_grace=timedelta(seconds=5))
        house.admin.execute("update carillon.live_runs set cancel_requested_at = %s", [NOW - HOUR])
        waiting = house.pending(run_deadline=NOW)
        assert await house.step() == Reaped(cancelled=1, failed=1)
        assert house.outcome(graceful) == ("CANCELLED", "CANCELLED")
        assert house.outcome(waiting) == ("FAILED", "RUN_TIMEOUT")
        assert house.reaper.repairs == {Repair.CANCEL_GRACE: 1, Repair.RUN_TIMEOUT: 1}
        assert await house.told() == []

    async def test_a_blocked_run_whose_turn_nobody_has_gets_it(self, house: House) -> None:
        schedule = make_schedule(house.admin, house.job, tenant="acme")
        house.pending(schedule_id=schedule, revision=1, exclusive=True, blocked=True, tenant="acme")
        assert await house.step() == Reaped(released=1)
        assert rows(house.admin, "select blocked from carillon.live_runs") == [(False,)]
        (event,) = await house.told()
        assert (event.action, event.tenant) == ("ReleaseRuns", "acme")
        assert event.resource == f"{house.job.name}/tenants/acme/schedules/default"

    async def test_a_month_whose_partitions_are_missing_gets_them(self, house: House) -> None:
        run_id = house.pending(run_deadline=NOW)
        month = (NOW - HOUR).strftime("%Y_%m")
        for table in ("items", "attempts", "runs"):
            house.admin.execute(f"drop table carillon.{table}_{month}".encode())
        assert await house.step() == Reaped(failed=1)
        assert house.outcome(run_id) == ("FAILED", "RUN_TIMEOUT")
        assert house.reaper.repairs[Repair.PARTITION_MISSING] == 1
        (event,) = await house.told()
        assert (event.action, event.resource) == ("CreatePartitions", "partitions/-")


class TestTenants:
    async def test_a_tenant_s_events_name_no_other_tenant_s_runs(self, house: House) -> None:
        session_id = make_session(house.admin)
        for tenant in ("acme", "globex"):
            house.held(session_id, tenant=tenant)
        house.lose(session_id)
        await house.step()
        alone = make_session(house.admin)
        own = house.held(alone, tenant="acme")
        house.lose(alone)
        await house.step(at=1)
        for tenant, names in (("acme", [f"runs/{own}"]), ("globex", [])):
            found, _ = await list_audit_events(house.database, ADMIN, EventFilter(tenant=tenant))
            assert [event.resource for event in found] == names

    async def test_the_trail_verifies_with_them(self, house: House, hot: Connection) -> None:
        house.held(uuid4())
        house.pending(cancel_requested_at=NOW)
        assert await house.step() == Reaped(charged=1, cancelled=1)
        await seal_all(hot)
        verdict = await verify_audit_trail(house.database, ADMIN)
        assert (verdict.broken, verdict.verified.position, verdict.unsealed) == (None, 2, 0)


class TestHopelessRows:
    async def test_one_row_keeps_no_other_waiting(self, house: House) -> None:
        hopeless = house.pending(run_id=id_without_partition(), run_deadline=NOW)
        good = {house.pending(run_deadline=NOW) for _ in range(20)}
        with capture_logs() as logs:
            assert await house.step() == Reaped(failed=20, set_aside=1)
        assert house.live() == {hopeless}
        assert {house.outcome(run_id) for run_id in good} == {("FAILED", "RUN_TIMEOUT")}
        said = [line for line in logs if line["log_level"] == "error"]
        assert [(line["count"], line["names"]) for line in said] == [(1, [f"runs/{hopeless}"])]
        assert house.reaper.set_aside == 1

    async def test_a_full_batch_of_them_starves_nobody(self, house: House) -> None:
        for _ in range(LIMIT + 100):
            house.pending(run_id=id_without_partition(), run_deadline=NOW)
        good = house.pending(run_deadline=NOW)
        with capture_logs() as logs:
            for _ in range(3):
                await house.step()
        assert house.outcome(good) == ("FAILED", "RUN_TIMEOUT")
        assert house.reaper.set_aside == LIMIT + 100
        said = [line for line in logs if line["log_level"] == "error"]
        assert sum(line["count"] for line in said) == LIMIT + 100
        assert max(len(line["names"]) for line in said) == SHOWN
        assert await house.step() == Reaped(), "they rest"

    async def test_one_is_mended_once_its_cause_is_gone(self, house: House) -> None:
        hopeless = house.pending(run_deadline=NOW)
        with refusing(house.admin, "runs"):
            with capture_logs() as logs:
                assert await house.step() == Reaped(set_aside=1)
                assert await house.step(at=FIRST_PAUSE / 2) == Reaped()
                assert await house.step(at=FIRST_PAUSE) == Reaped(set_aside=1)
            assert [line["log_level"] for line in logs] == ["error"], "it is said once"
        assert await house.step(at=FIRST_PAUSE * 2) == Reaped(), "the second pause is longer"
        assert await house.step(at=FIRST_PAUSE * 3) == Reaped(failed=1)
        assert house.outcome(hopeless) == ("FAILED", "RUN_TIMEOUT")
        assert house.reaper.set_aside == 0

    async def test_one_that_somebody_removes_is_counted_no_more(self, house: House) -> None:
        house.pending(run_id=id_without_partition(), run_deadline=NOW)
        await house.step()
        assert house.reaper.set_aside == 1
        house.admin.execute("delete from carillon.live_runs")
        await house.step(at=30)
        assert house.reaper.set_aside == 0

    async def test_a_session_ends_although_one_of_its_runs_cannot_be_taken_back(self, house: House) -> None:
        session_id = make_session(house.admin, "worker-7")
        hopeless = house.held(session_id, run_id=id_without_partition(), max_attempts=1)
        good = {house.held(session_id) for _ in range(7)}
        house.lose(session_id)
        assert await house.step() == Reaped(sessions=1, charged=7, set_aside=1)
        assert rows(house.admin, "select from carillon.sessions") == []
        held = rows(house.admin, "select run_id from carillon.live_runs where session_id is not null")
        assert held == [(hopeless,)]
        attempts = rows(house.admin, "select distinct worker, error ->> 'code' from carillon.attempts")
        assert attempts == [("worker-7", "WORKER_LOST")]
        assert house.live() == good | {hopeless}
        assert house.reaper.repairs == {Repair.SESSION_LOST: 1, Repair.WORKER_LOST: 7}

    async def test_a_row_that_cannot_even_be_read_keeps_no_other_waiting(self, house: House) -> None:
        house.held()
        house.admin.execute("update carillon.live_runs set deadline = '-infinity', run_deadline = '-infinity'")
        good = house.held(max_attempts=1)
        house.admin.execute("update carillon.live_runs set deadline = %s where run_id = %s", [NOW - HOUR, good])
        assert await house.step() == Reaped(failed=1, set_aside=1)
        assert house.outcome(good) == ("FAILED", "ATTEMPT_TIMEOUT")

    async def test_a_grace_without_end_is_no_obstacle(self, house: House) -> None:
        house.held(cancel_grace=timedelta(days=999_999_999), cancel_requested_at=NOW - HOUR)
        good = house.held(cancel_grace=timedelta(), cancel_requested_at=NOW - HOUR)
        assert await house.step() == Reaped(cancelled=1)
        assert house.outcome(good) == ("CANCELLED", "CANCELLED")

    async def test_a_turn_that_cannot_be_given_keeps_no_other_from_its_own(self, house: House) -> None:
        schedules = [make_schedule(house.admin, house.job, f"s{number}") for number in range(4)]
        blocked = {"revision": 1, "exclusive": True, "blocked": True}
        run_ids = [house.pending(schedule_id=schedule, **blocked) for schedule in schedules]
        with refusing(house.admin, "live_runs", f"new.run_id = '{run_ids[1]}'"):
            assert await house.step() == Reaped(released=3, set_aside=1)
            assert await house.step(at=1) == Reaped()
            assert house.reaper.set_aside == 1
        assert await house.step(at=FIRST_PAUSE) == Reaped(released=1)
        assert house.reaper.set_aside == 0

    async def test_a_row_that_somebody_has_locked_is_waited_for_by_nobody(
        self, house: House, database_urls: DatabaseUrls
    ) -> None:
        session_id = make_session(house.admin)
        locked, free = house.held(session_id), house.held(session_id)
        house.lose(session_id)
        with psycopg.connect(database_urls.admin) as hand:
            hand.execute("select from carillon.live_runs where run_id = %s for update", [locked])
            assert await house.step() == Reaped(sessions=1, charged=1)
            assert sorted(house.holders(), key=str) == sorted([None, session_id], key=str)
        assert await house.step(at=6) == Reaped(charged=1)
        assert house.holders() == [None, None]
        assert house.live() == {locked, free}
        assert house.reaper.repairs[Repair.WORKER_LOST] == 2


def test_pauses_grow_to_ten_minutes() -> None:
    aside: SetAside[int] = SetAside()
    at = 0.0
    pauses: list[float] = []
    assert aside.add(1, at)
    while len(pauses) < 10:
        pause = next(
            seconds for seconds in (5, 10, 20, 40, 80, 160, 320, LONGEST_PAUSE) if not aside.resting(at + seconds)
        )
        pauses.append(pause)
        at += pause
        assert not aside.add(1, at)
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    aside.forget([1, 2])
    assert (len(aside), aside.all()) == (0, [])


@contextmanager
def refusing(admin: Admin, table: str, condition: str = "true") -> Iterator[None]:
    """The table refuses rows that are written."""
    admin.execute(
        (
            "create function carillon.refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$;"
            f" create trigger refuse before insert or update on carillon.{table} for each row when ({condition})"
            " execute function carillon.refuse()"
        ).encode()
    )
    yield
    admin.execute(f"drop trigger refuse on carillon.{table}; drop function carillon.refuse()".encode())
