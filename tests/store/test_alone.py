"""Runs that are to be alone: handed to a session that holds nothing else, which gets nothing else meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.solitude import LONGEST_WAIT
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store.claim import claim, claim_alone
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob, make_live_run, make_schedule, make_session
from tests.store.engine_case import SECOND, START, Connection, Received, job_of, rows, session_of

Admin = psycopg.Connection[Any]
HTTP = ["http"]
NOW = START + 9 * SECOND


@pytest.fixture
def job(admin: Admin) -> MadeJob:
    return job_of(admin)


def pending(admin: Admin, job: MadeJob, after: int = 0, **columns: Any) -> UUID:
    return make_live_run(admin, job, at=START, run_after=START + after * SECOND, **columns)


def end(admin: Admin, *run_ids: UUID) -> None:
    admin.execute("delete from carillon.live_runs where run_id = any(%s)", [list(run_ids)])


@dataclass
class Replica:
    """A replica's dispatcher, whose clock is stepped."""

    hot: Connection
    now: float = 0.0

    def __post_init__(self) -> None:
        self.sessions = Sessions(on_credit=lambda: None)
        self.dispatcher = Dispatcher(self.sessions, Wakeups(), clock=lambda: self.now)

    async def settle_down(self, seconds: float = 0.0) -> None:
        """Hands out all it can, `seconds` later, after somebody said that runs wait."""
        self.now += seconds
        self.dispatcher.look_again()
        for _ in range(5):
            for _ in range(20):
                if self.dispatcher.has_work():
                    await self.dispatcher.dispatch(self.hot, now=NOW)
            assert not self.dispatcher.has_work()
            self.now += 0.1

    async def reconnect(self, session: ConnectedSession) -> Received:
        """Another stream of a session whose older one is another replica's."""
        await self.hot.execute(
            "update carillon.sessions set stream = stream + 1 where session_id = %s", [session.session_id]
        )
        received = Received()
        newer = ConnectedSession(session.session_id, session.worker, session.routes, session.stream + 1, received, 10)
        self.sessions.connect(newer)
        return received


@pytest.fixture
def replica(hot: Connection) -> Replica:
    return Replica(hot)


async def until_somebody_waits(admin: Admin) -> None:
    """For a lock of this database."""
    waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    async with asyncio.timeout(60):
        while not rows(admin, waits):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)


def company(admin: Admin) -> list[tuple[int, int]]:
    """Of each session that holds anything: how many runs that are to be alone, and how many in all."""
    return rows(
        admin,
        """select count(*) filter (where alone), count(*) from carillon.live_runs where session_id is not null
        group by session_id order by 1 desc, 2""",
    )


async def test_it_is_handed_to_a_session_that_holds_nothing(admin: Admin, hot: Connection, job: MadeJob) -> None:
    pending(admin, job, 2, alone=True)
    first, session = pending(admin, job, 1, alone=True), make_session(admin)
    other = pending(admin, job)
    assert (await claim(hot, session, HTTP, 1, NOW)) is not None
    refused = await claim_alone(hot, session, 1, HTTP, now=NOW)
    assert refused is not None
    assert not refused.runs
    end(admin, other)
    taken = await claim_alone(hot, session, 1, HTTP, now=NOW)
    assert taken is not None
    assert [run.run_id for run in taken.runs] == [first]
    assert rows(admin, "select session_id, claim_id from carillon.live_runs where claim_id is not null") == [
        (session, taken.claim_id)
    ]


async def test_nobody_seats_a_run_in_the_session_while_it_is_asked_for(
    admin: Admin, other: Connection, replica: Replica, job: MadeJob
) -> None:
    session, received = session_of(admin, replica.sessions, credit=5)
    await replica.settle_down()
    pending(admin, job, alone=True)
    replica.now += 1
    async with other.transaction():
        await other.execute("select from carillon.sessions where session_id = %s for update", [session.session_id])
        handing_out = asyncio.ensure_future(replica.dispatcher.dispatch(replica.hot, now=NOW))
        await until_somebody_waits(admin)
        assert replica.dispatcher.seats().seat("http") is None
    await handing_out
    assert len(received.runs) == 1


async def test_no_session_has_two_of_them(admin: Admin, hot: Connection, job: MadeJob) -> None:
    for _ in range(2):
        pending(admin, job, alone=True)
    session = make_session(admin)
    claims = [await claim_alone(hot, session, 1, HTTP, beside=beside, now=NOW) for beside in (False, False, True)]
    assert [len(each.runs) for each in claims if each] == [1, 0, 0]
    assert company(admin) == [(1, 1)]


async def test_an_ordinary_claim_leaves_them_out(admin: Admin, hot: Connection, job: MadeJob) -> None:
    first, _, last = pending(admin, job), pending(admin, job, 1, alone=True), pending(admin, job, 2)
    for limit in (1, 100):
        claimed = await claim(hot, make_session(admin), HTTP, limit, NOW)
        assert claimed is not None
        assert [run.run_id for run in claimed.runs] == [first if limit == 1 else last]


async def test_a_session_that_went_to_another_stream_gets_none(admin: Admin, hot: Connection, job: MadeJob) -> None:
    pending(admin, job, alone=True)
    session = make_session(admin)
    assert await claim_alone(hot, session, 2, HTTP, now=NOW) is None
    admin.execute("delete from carillon.sessions")
    assert await claim_alone(hot, session, 1, HTTP, now=NOW) is None


async def test_a_claim_under_way_elsewhere_is_waited_for(
    admin: Admin, hot: Connection, other: Connection, job: MadeJob
) -> None:
    pending(admin, job)
    pending(admin, job, alone=True)
    session = make_session(admin)
    async with other.transaction():
        assert (await claim(other, session, HTTP, 1, NOW)) is not None
        alone = asyncio.create_task(claim_alone(hot, session, 1, HTTP, now=NOW))
        await until_somebody_waits(admin)
    refused = await alone
    assert refused is not None
    assert not refused.runs


async def test_an_idle_session_takes_one_after_the_other(admin: Admin, replica: Replica, job: MadeJob) -> None:
    _, received = session_of(admin, replica.sessions, credit=9)
    for number in range(5):
        pending(admin, job, number, alone=True)
    for number in range(1, 6):
        await replica.settle_down(1)
        assert len(received.runs) == number
        end(admin, received.runs[-1].run_id)
        session = next(iter(replica.sessions))
        replica.sessions.grant(session, 1)
    assert rows(admin, "select count(*) from carillon.live_runs") == [(0,)]


async def test_idle_sessions_take_one_each_at_once(admin: Admin, replica: Replica, job: MadeJob) -> None:
    for _ in range(3):
        session_of(admin, replica.sessions, credit=9)
    for _ in range(5):
        pending(admin, job, alone=True)
    await replica.settle_down()
    await replica.settle_down(1)
    assert company(admin) == [(1, 1)] * 3


async def test_under_a_constant_load_a_session_is_kept_back_until_it_is_empty(
    admin: Admin, replica: Replica, job: MadeJob
) -> None:
    session, received = session_of(admin, replica.sessions, credit=4)
    held = [pending(admin, job, number) for number in range(4)]
    await replica.settle_down()
    suspect, waiting = pending(admin, job, alone=True), [pending(admin, job, 5) for _ in range(8)]
    end(admin, held[0])
    replica.sessions.grant(session, 1)
    await replica.settle_down()  # it takes one more, and is told of the suspect with it
    for run_id in held[1:]:
        end(admin, run_id)
        replica.sessions.grant(session, 1)
        await replica.settle_down(1)
    assert suspect not in {run.run_id for run in received.runs}
    assert len(received.runs) == 5
    end(admin, received.runs[-1].run_id)
    replica.sessions.grant(session, 1)
    await replica.settle_down(1)
    assert received.runs[-1].run_id == suspect
    assert company(admin) == [(1, 1)]
    await replica.settle_down(60)
    assert company(admin) == [(1, 1)]
    end(admin, suspect)
    replica.sessions.grant(session, 1)
    await replica.settle_down(1)
    assert company(admin) == [(0, 4)]
    assert {run.run_id for run in received.runs[-4:]} < set(waiting)


async def test_no_session_is_kept_back_for_one_whose_turn_has_not_come(
    admin: Admin, replica: Replica, job: MadeJob
) -> None:
    schedule = make_schedule(admin, job)
    waiting: dict[str, Any] = {"schedule_id": schedule, "revision": 1, "exclusive": True, "trigger": "MANUAL"}
    pending(admin, job, alone=True, blocked=True, **waiting)
    session, received = session_of(admin, replica.sessions, credit=1)
    neighbour = pending(admin, job)
    await replica.settle_down()
    another = pending(admin, job)
    replica.sessions.grant(session, 1)
    await replica.settle_down()
    assert not session.kept_back
    assert {run.run_id for run in received.runs} == {neighbour, another}


async def test_a_session_that_does_not_become_empty_gets_it_beside_the_fewest(
    admin: Admin, replica: Replica, job: MadeJob
) -> None:
    for credit in (2, 3):
        session_of(admin, replica.sessions, credit=credit)
    for number in range(5):
        pending(admin, job, number)
    await replica.settle_down()
    assert company(admin) == [(0, 2), (0, 3)]
    for _ in range(2):
        pending(admin, job, alone=True)
    more = [pending(admin, job, 6) for _ in range(9)]
    for session in replica.sessions:
        replica.sessions.grant(session, 2)
    await replica.settle_down()
    assert company(admin) == [(0, 4), (0, 5)]
    for session in replica.sessions:
        replica.sessions.grant(session, 3)
    await replica.settle_down(LONGEST_WAIT - 1)
    assert company(admin) == [(0, 4), (0, 8)]
    await replica.settle_down(2)
    assert company(admin) == [(1, 5), (0, 8)]
    assert len(more) == 9
    await replica.settle_down(60)
    assert company(admin)[0] == (1, 5)


async def test_half_of_the_sessions_go_on_with_what_else_waits(admin: Admin, replica: Replica, job: MadeJob) -> None:
    for _ in range(4):
        session_of(admin, replica.sessions, credit=10)
    for _ in range(9):
        pending(admin, job, alone=True)
    for _ in range(200):
        pending(admin, job, 1)
    await replica.settle_down()
    assert company(admin) == [(1, 1), (1, 1), (0, 10), (0, 10)]
    for session in replica.sessions:
        replica.sessions.grant(session, 10)
    await replica.settle_down(60)
    assert company(admin) == [(1, 1), (1, 1), (0, 20), (0, 20)]


async def test_after_it_others_go_first_for_as_long(admin: Admin, replica: Replica, job: MadeJob) -> None:
    session, received = session_of(admin, replica.sessions, credit=1)
    suspects = [pending(admin, job, number, alone=True) for number in range(2)]
    await replica.settle_down()
    await replica.settle_down()
    assert [run.run_id for run in received.runs] == suspects[:1]
    for _ in range(50):
        pending(admin, job, 3)
    replica.now += 100
    handed = []
    for _ in range(12):
        end(admin, received.runs[-1].run_id)
        replica.sessions.grant(session, 1)
        await replica.settle_down(10)
        handed.append(received.runs[-1].run_id)
    assert handed.index(suspects[1]) in (10, 11)


async def test_a_session_that_comes_to_another_replica_gets_nothing_else_there(
    admin: Admin, replica: Replica, other: Connection, job: MadeJob
) -> None:
    session, received = session_of(admin, replica.sessions, credit=9)
    suspect = pending(admin, job, alone=True)
    await replica.settle_down()
    assert [run.run_id for run in received.runs] == [suspect]
    elsewhere = Replica(other)
    again = await elsewhere.reconnect(session)
    pending(admin, job)
    await elsewhere.settle_down()
    await elsewhere.settle_down(60)
    assert not again.runs
    end(admin, suspect)
    await elsewhere.settle_down(60)
    assert len(again.runs) == 1


async def test_a_session_is_let_go_when_another_replica_has_handed_the_run_out(
    admin: Admin, replica: Replica, other: Connection, job: MadeJob
) -> None:
    session, received = session_of(admin, replica.sessions, credit=2)
    pending(admin, job)
    await replica.settle_down()
    suspect = pending(admin, job, alone=True)
    await replica.settle_down()
    assert not replica.sessions.with_credit("http")
    elsewhere = Replica(other)
    session_of(admin, elsewhere.sessions, credit=2)
    await elsewhere.settle_down()
    assert rows(admin, "select claim_id is not null from carillon.live_runs where run_id = %s", suspect) == [(True,)]
    later = pending(admin, job)
    await replica.settle_down(1)
    await replica.settle_down()
    assert not session.kept_back
    assert received.runs[-1].run_id == later


async def test_a_run_in_the_making_counts_as_held(admin: Admin, replica: Replica, job: MadeJob) -> None:
    session, received = session_of(admin, replica.sessions, credit=9)
    await replica.settle_down()
    seats = replica.dispatcher.seats()
    assert seats.seat("http") == session.session_id
    pending(admin, job, alone=True)
    await replica.settle_down()
    await replica.settle_down(60)
    assert not received.runs
    replica.dispatcher.hand_over(seats, {})
    await replica.settle_down(1)
    assert len(received.runs) == 1
    assert replica.dispatcher.seats().seat("http") is None
    assert session.credit == 8


async def test_what_ended_otherwise_frees_the_session_too(admin: Admin, replica: Replica, job: MadeJob) -> None:
    session, received = session_of(admin, replica.sessions, credit=9)
    suspect = pending(admin, job, alone=True)
    await replica.settle_down()
    [(claim_id, _)] = received.claims
    assert received.refs == [AttemptRef(suspect, 1, claim_id)]
    admin.execute(
        """update carillon.live_runs set session_id = null, claim_id = null, claimed_at = null, deadline = null,
        alone = false, run_after = %s""",
        [START],
    )
    await replica.settle_down(1)
    assert len(received.runs) == 2
    assert not session.kept_back


@pytest.mark.parametrize("why", ["it takes nothing", "it is not heard", "it leaves"])
async def test_no_session_is_kept_back_that_cannot_take_it_in_the_end(
    admin: Admin, replica: Replica, job: MadeJob, why: str
) -> None:
    useless, _ = session_of(admin, replica.sessions, credit=0 if why == "it takes nothing" else 9)
    useless.quiet = why == "it is not heard"
    useless.leaving = why == "it leaves"
    session, received = session_of(admin, replica.sessions, credit=3)
    held = [pending(admin, job, number) for number in range(2)]
    await replica.settle_down()
    suspect = pending(admin, job, 3, alone=True)
    pending(admin, job, 4)
    await replica.settle_down(1)
    assert (useless.kept_back, session.kept_back) == (False, True)
    end(admin, *held, received.runs[-1].run_id)
    await replica.settle_down(1)
    assert received.runs[-1].run_id == suspect
