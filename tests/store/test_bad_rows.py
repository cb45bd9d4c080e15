"""Rows that a hand in the database has spoilt: the database refuses them, and should it not, each is a matter of its
own."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Verdict
from scheduler_service.domain.repairs import Repair
from scheduler_service.domain.returns import HeldRun, Return, after_loss
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.mending import Look, Mender, Reaped
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.engine.set_aside import FIRST_PAUSE
from scheduler_service.store import stuck
from tests.builders import MadeJob, make_job, make_live_run
from tests.store.complete_case import NOW, Case
from tests.store.engine_case import START, Connection, job_of, rows

Admin = psycopg.Connection[Any]

POLICIES = {
    "a code that is null": "never_retry = array[null]::text[]",
    "codes in two dimensions": "never_retry = '{{A},{B}}'",
    "more codes than anybody means": "never_retry = array_fill('A'::text, array[51])",
    "a delay without end": "retry_delay = 'infinity'",
    "a longest delay of ages": "retry_max_delay = '4000000 years'",
    "a delay before the beginning": "retry_delay = '-infinity'",
    "a multiplier that is no number": "retry_multiplier = 'nan'",
    "a multiplier beyond any": "retry_multiplier = 1e300",
    "a jitter that is no number": "retry_jitter = 'nan'",
}
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def spoil(admin: Admin, job: MadeJob, policy: str) -> None:
    if "infinity" in policy and admin.info.server_version < 170_000:
        pytest.skip("PostgreSQL 16 knows no infinite interval")
    admin.execute(f"update carillon.jobs set {policy} where job_id = %s".encode(), [job.job_id])


def spoil_in_spite_of_the_checks(admin: Admin, job: MadeJob, policy: str) -> None:
    checks = rows(
        admin, "select conname from pg_constraint where conrelid = 'carillon.jobs'::regclass and contype = 'c'"
    )
    for (name,) in checks:
        admin.execute(f"alter table carillon.jobs drop constraint {name}".encode())
    spoil(admin, job, policy)


@policies
def test_the_database_refuses_such_a_policy(admin: Admin, policy: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        spoil(admin, make_job(admin), policy)


@policies
async def test_no_policy_stops_completion(admin: Admin, hot: Connection, policy: str) -> None:
    case = Case(admin, hot)
    good = await case.claimed(2)
    bad = job_of(admin, "bad")
    make_live_run(admin, bad, at=START, attempt=2)
    spoilt = await case.claim()
    spoil_in_spite_of_the_checks(admin, bad, policy)
    assert await case.report(*map(case.failure, [*good, *spoilt])) == [Verdict.ACCEPTED] * 3
    assert case.completer.set_aside == 0
    ((waits,),) = rows(admin, "select run_after - %s from carillon.live_runs where job_id = %s", NOW, bad.job_id)
    assert timedelta() <= waits <= timedelta(days=7)


class Spoilt(Case):
    """Three claimed runs, of which the end of one cannot be written."""

    def __init__(self, admin: Admin, hot: Connection) -> None:
        super().__init__(admin, hot)
        self.seconds = 0.0
        self.completer = Completer(self.wakeups, clock=lambda: self.seconds)
        self.refs: list[AttemptRef] = []

    @property
    def bad(self) -> AttemptRef:
        return self.refs[1]

    async def begin(self) -> Spoilt:
        self.refs = await self.claimed(3)
        self.admin.execute(
            f"alter table carillon.runs add constraint spoilt check (run_id <> '{self.bad.run_id}') not valid".encode()
        )
        return self

    def mend(self) -> None:
        self.admin.execute("alter table carillon.runs drop constraint spoilt")

    async def step(self, at: float) -> bool:
        self.seconds = at
        return await self.completer.step(self.hot, now=NOW)


@pytest.fixture
async def spoilt(admin: Admin, hot: Connection) -> Spoilt:
    return await Spoilt(admin, hot).begin()


@pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED"])
async def test_a_result_that_cannot_be_recorded_waits_unanswered_and_stops_no_other(
    spoilt: Spoilt, outcome: str
) -> None:
    spoilt.admin.execute("update carillon.live_runs set max_attempts = 1")
    with capture_logs() as logs:
        said = await spoilt.report(*(spoilt.result(ref, outcome=outcome) for ref in spoilt.refs))
    assert said == [Verdict.ACCEPTED] * 2
    assert (set(spoilt.states()), spoilt.completer.set_aside) == (
        {r.run_id for r in spoilt.refs} - {spoilt.bad.run_id},
        1,
    )
    assert len(spoilt.completer) == 0
    (line,) = (line for line in logs if line["log_level"] == "error")
    assert (line["count"], line["names"]) == (1, [f"runs/{spoilt.bad.run_id}"])


async def test_it_is_tried_again_after_pauses_that_grow_and_answered_once_it_is_recorded(spoilt: Spoilt) -> None:
    await spoilt.report(*map(spoilt.result, spoilt.refs))
    spoilt.received.verdicts.clear()
    with capture_logs() as logs:
        assert not await spoilt.step(FIRST_PAUSE + 0.1)
    assert logs == []
    spoilt.mend()
    assert not await spoilt.step(2 * FIRST_PAUSE)
    assert await spoilt.step(3 * FIRST_PAUSE + 0.2)
    assert spoilt.received.answers == [Verdict.ACCEPTED]
    assert (spoilt.states()[spoilt.bad.run_id], spoilt.completer.set_aside) == ("COMPLETED", 0)
    assert spoilt.completer.room.used_by(spoilt.session) == 0


async def test_what_its_worker_sends_again_meanwhile_takes_its_place_and_waits_as_long(spoilt: Spoilt) -> None:
    await spoilt.report(*map(spoilt.result, spoilt.refs))
    used = spoilt.completer.room.used_by(spoilt.session)
    spoilt.mend()
    again = [spoilt.result(spoilt.bad)] * 2
    assert await spoilt.report(*again, spoilt.result(spoilt.refs[0])) == [Verdict.ACCEPTED]
    assert (spoilt.completer.set_aside, spoilt.completer.room.used_by(spoilt.session)) == (1, used)
    spoilt.received.verdicts.clear()
    assert await spoilt.step(FIRST_PAUSE)
    assert spoilt.received.answers == [Verdict.ACCEPTED]
    assert spoilt.completer.room.used_by(spoilt.session) == 0


async def test_the_same_result_twice_in_one_group_waits_once(spoilt: Spoilt) -> None:
    assert await spoilt.report(*[spoilt.result(spoilt.bad)] * 2) == []
    spoilt.mend()
    assert await spoilt.step(FIRST_PAUSE)
    assert spoilt.received.answers == [Verdict.ACCEPTED]
    assert spoilt.completer.room.used_by(spoilt.session) == 0


async def test_a_result_whose_run_was_ended_meanwhile_is_answered_so(spoilt: Spoilt) -> None:
    await spoilt.report(spoilt.result(spoilt.bad))
    spoilt.admin.execute("delete from carillon.live_runs where run_id = %s", [spoilt.bad.run_id])
    assert await spoilt.step(FIRST_PAUSE)
    assert (spoilt.received.answers, spoilt.completer.set_aside) == ([Verdict.UNKNOWN], 0)


async def test_a_month_whose_partitions_are_missing_gets_them(admin: Admin, hot: Connection) -> None:
    case = Case(admin, hot)
    refs = await case.claimed(3)
    for table in ("items", "attempts", "runs"):
        admin.execute(f"drop table carillon.{table}_{START:%Y_%m}".encode())
    assert await case.report(*map(case.result, refs)) == [Verdict.ACCEPTED] * 3
    assert set(case.states().values()) == {"COMPLETED"}
    assert case.completer.repairs == {Repair.PARTITION_MISSING: 1}


async def test_items_whose_month_has_no_partition_get_one(admin: Admin, hot: Connection) -> None:
    case = Case(admin, hot)
    [ref] = await case.claimed()
    admin.execute(f"drop table carillon.items_{START:%Y_%m}".encode())
    case.completer.submit_items([ItemResult(ref, case.session.session_id, "a@example.com", True)], case.session)
    assert await case.report(case.result(ref)) == [Verdict.ACCEPTED]
    assert rows(admin, "select key from carillon.items") == [("a@example.com",)]


@pytest.mark.parametrize("error", [AttributeError, TypeError, ValueError])
async def test_what_cannot_be_decided_about_one_run_keeps_no_other_waiting(
    admin: Admin, hot: Connection, error: type[Exception]
) -> None:
    now = datetime.now(UTC)
    job = make_job(admin)
    over = now - timedelta(hours=1)
    runs = sorted(make_live_run(admin, job, run_deadline=over) for _ in range(3))

    def decide(run: HeldRun, at: datetime) -> Return:
        if run.run_id == runs[1]:
            raise error("this row is not what it should be")
        return after_loss(run, at)

    mender = Mender("replica-1", lambda: 0.0, lambda _: None)
    look = Look(stuck.RUN_OVERDUE, decide, lambda _: Repair.RUN_TIMEOUT)
    assert await mender.mend(hot, look, now, limit=10) == Reaped(failed=2, set_aside=1)
    assert rows(admin, "select run_id from carillon.live_runs") == [(runs[1],)]


async def test_a_worker_with_much_that_cannot_be_recorded_may_report_on(spoilt: Spoilt) -> None:
    """Beside so many others that its share of the room is the least there is."""
    case = spoilt
    for number in range(60):
        other = ConnectedSession(UUID(int=number), "other", frozenset(), 1, case.received)
        case.completer.room.use(other, 1)
    large = json.dumps({"text": "x" * 6 * 1024 * 1024})
    case.completer.submit([case.result(case.bad, metadata=large)], case.session)
    assert not case.completer.room.is_left_for(case.session)
    assert await case.step(0)
    assert (case.completer.set_aside, case.received.answers) == (1, [])
    assert case.completer.room.is_left_for(case.session)
    assert case.completer.room.used_by(case.session) == 0
    assert await case.report(case.result(case.refs[0])) == [Verdict.ACCEPTED]
    case.mend()
    case.received.verdicts.clear()
    assert await case.step(FIRST_PAUSE)
    assert (case.received.answers, case.completer.room.used_by(case.session)) == ([Verdict.ACCEPTED], 0)
