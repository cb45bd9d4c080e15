"""What lost workers leave behind: what a run says of them, who it may be near afterwards, and how it is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.repairs import SHOWN, Repair
from scheduler_service.domain.returns import MOST_SENT_IN_VAIN
from scheduler_service.engine.leases import Hello, Leases
from scheduler_service.engine.reap import Reaped
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.engine.taking_back import IN_FLIGHT_SECONDS
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import make_attempt, make_session
from tests.conftest import DatabaseUrls
from tests.store.audit_case import events
from tests.store.complete_case import Case
from tests.store.definitions_case import Scheduler
from tests.store.engine_case import Connection, rows
from tests.store.repairs_case import NOW, House
from tests.store.retry_case import begin, ended, retry
from tests.store.test_leases import WORKER, Stream

Admin = psycopg.Connection[Any]
LOST: dict[str, Any] = {"error": {"code": "WORKER_LOST", "message": "worker w-1 was lost", "detail": ""}}
SECOND = timedelta(seconds=1)


@pytest.fixture
async def house(database: Database, admin: Admin, hot: Connection) -> House:
    return House(database, admin, hot)


async def test_each_loss_says_which_it_was_and_whom_it_speaks_against(house: House) -> None:
    run_id = house.pending()
    said = []
    for at, name in enumerate(("w-1", "w-2", "w-3")):
        session_id = make_session(house.admin, name)
        house.admin.execute(
            "update carillon.live_runs set session_id = %s, claim_id = 1, claimed_at = %s, started_at = %s, deadline"
            " = %s",
            [session_id, NOW, NOW, NOW + timedelta(hours=1)],
        )
        house.lose(session_id)
        await house.step(at=float(at))
        said += rows(house.admin, "select last_error ->> 'message' from carillon.live_runs")
        said += rows(house.admin, "select error ->> 'message' from carillon.runs where run_id = %s", run_id)
    apart = "; it may itself be the cause, and is kept apart from other runs as far as can be"
    assert [message for (message,) in said] == [
        "worker w-1 was lost while it held attempt 1 of 3",
        "worker w-2 was lost while it held attempt 2 of 3; the run was lost 2 times in all",
        f"worker w-3 was lost while it held attempt 3 of 3; the run was lost 3 times in all{apart}",
    ]
    assert house.outcome(run_id) == ("FAILED", "WORKER_LOST")


async def test_a_worker_is_named_although_its_session_was_ended_a_while_ago(
    house: House, database_urls: DatabaseUrls
) -> None:
    session_id = make_session(house.admin, "w-7")
    run_id = house.held(session_id)
    house.lose(session_id)
    with psycopg.connect(database_urls.admin) as somebody:
        somebody.execute("select from carillon.live_runs where run_id = %s for update", [run_id])
        assert await house.step() == Reaped(sessions=1)
    assert await house.step(at=6) == Reaped(charged=1)
    said = rows(house.admin, "select last_error ->> 'message' from carillon.live_runs")
    assert said == [("worker w-7 was lost while it held attempt 1 of 3",)]


# How many earlier attempts were lost with a worker, how many are left after this one, whether the run is alone in this
# one, and in the next.
@pytest.mark.parametrize(
    ("losses", "left", "alone", "next_alone"),
    [
        (0, 2, True, False),
        (0, 1, True, False),
        (0, 1, False, False),
        (1, 2, True, False),
        (1, 2, False, False),
        (1, 1, True, True),
        (1, 1, False, True),
        (2, 2, True, True),
        (2, 1, True, True),
    ],
)
async def test_what_an_ordinary_failure_makes_of_a_run_that_was_lost_before(
    admin: Admin, hot: Connection, losses: int, left: int, alone: bool, next_alone: bool
) -> None:
    case = Case(admin, hot)
    (ref,) = await case.claimed(attempt=losses + 2, max_attempts=losses + 2 + left)
    make_attempt(admin, ref.run_id, case.job, 1)
    for attempt in range(2, losses + 2):
        make_attempt(admin, ref.run_id, case.job, attempt, **LOST)
    admin.execute("update carillon.live_runs set alone = %s", [alone])
    await case.report(case.failure(ref))
    assert rows(admin, "select attempt, alone from carillon.live_runs") == [(losses + 3, next_alone)]


async def test_a_run_that_was_never_alone_does_not_become_so_by_a_failure(admin: Admin, hot: Connection) -> None:
    case = Case(admin, hot)
    refs = await case.claimed(3)
    await case.report(*map(case.failure, refs))
    assert rows(admin, "select distinct attempt, alone from carillon.live_runs") == [(2, False)]


@pytest.mark.parametrize(("error", "alone"), [(LOST, True), ({}, False)], ids=["its worker was lost", "it failed"])
async def test_trying_again_what_ended_with_its_worker_begins_alone(
    scheduler: Scheduler, error: dict[str, Any], alone: bool
) -> None:
    await begin(scheduler)
    run = await retry(scheduler, ended(scheduler, **error))
    assert rows(scheduler.admin, "select run_id, alone from carillon.live_runs") == [(run.run_id, alone)]


class Workplace:
    """A worker's session on one replica, which says what it holds."""

    def __init__(self, house: House, leases: Leases, session: ConnectedSession) -> None:
        self.house = house
        self.leases = leases
        self.session = session

    async def beat(self) -> None:
        """It holds nothing."""
        self.leases.beat(self.session, 1, [])
        await self.leases.step(self.house.connection, now=NOW)

    def sent(self, **columns: Any) -> UUID:
        run_id = self.house.pending(**columns)
        self.house.admin.execute(
            "update carillon.live_runs set session_id = %s, claim_id = nextval('carillon.claim_ids'), claimed_at = %s,"
            " deadline = %s where run_id = %s",
            [self.session.session_id, NOW - timedelta(seconds=IN_FLIGHT_SECONDS + 1), NOW + timedelta(hours=1), run_id],
        )
        return run_id


@pytest.fixture
async def workplace(house: House) -> Workplace:
    leases = Leases(house.database, Sessions(lambda: None), Wakeups(), replica="replica-1")
    hello = Hello(uuid4(), "w-7", "test", frozenset({"http"}))
    return Workplace(house, leases, await leases.open(WORKER, hello, Stream(), now=NOW - SECOND))


async def test_what_never_arrived_is_taken_back_counted_told_and_in_the_trail(workplace: Workplace) -> None:
    house = workplace.house
    run_ids = {workplace.sent() for _ in range(SHOWN + 5)}
    with capture_logs() as logs:
        await workplace.beat()
    assert house.holders() == [None] * len(run_ids)
    (line,) = logs
    assert (line["event"], line["kind"], line["count"]) == ("repaired", "never_arrived", SHOWN + 5)
    assert len(line["names"]) == SHOWN
    assert line["became"] == {"freed": SHOWN + 5}
    (event,) = await house.told()
    assert (event.principal, event.action) == ("engine:replica-1", "TakeBackRunsThatNeverArrived")
    assert event.after is not None
    assert set(event.after["names"]) < {f"runs/{run_id}" for run_id in run_ids}
    assert workplace.leases.repairs == {Repair.NEVER_ARRIVED: SHOWN + 5}
    await workplace.beat()
    assert len(await events(house.database)) == 1, "nothing more to tell"


async def test_what_never_arrives_is_charged_in_the_end_and_says_why(workplace: Workplace) -> None:
    workplace.sent(unstarted_returns=MOST_SENT_IN_VAIN, max_attempts=1)
    await workplace.beat()
    found = rows(workplace.house.admin, "select state::text, worker, error ->> 'message' from carillon.runs")
    assert found == [("FAILED", "w-7", "attempt 1 of 1 was sent to workers 6 times, and reached none of them")]


async def test_what_is_not_told_is_not_taken_back(workplace: Workplace) -> None:
    """Audit and repair share a transaction."""
    workplace.sent()
    workplace.house.admin.execute("alter table carillon.audit_events rename to hidden_events")
    try:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await workplace.beat()
        assert workplace.house.holders() == [workplace.session.session_id]
        assert workplace.leases.repairs == {}
    finally:
        workplace.house.admin.execute("alter table carillon.hidden_events rename to audit_events")
