"""A scheduler that stands still between a claim's commit and its sending: what may be another's by then is not sent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from carillon.v1 import work_pb2, worker_service_pb2
from structlog.testing import capture_logs

from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.leases import Hello, Leases
from scheduler_service.engine.sessions import SENT_WITHIN, ConnectedSession, Sessions
from scheduler_service.engine.taking_back import IN_FLIGHT_SECONDS
from scheduler_service.engine.tick import tick
from scheduler_service.rpc.work_outbox import Outbox
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests.builders import MadeJob, make_live_run
from tests.rpc.work.rig import Clock, Replica, a_result, a_worker, one, ref, serving, until
from tests.store.engine_case import SECOND, START, every, job_of, rows
from tests.store.test_leases import WORKER

Admin = psycopg.Connection[Any]
Messages = AsyncIterator[worker_service_pb2.WorkResponse]

HELD = "select run_id from carillon.live_runs where session_id is not null"
CHARGED = "select run_id from carillon.live_runs where attempt > 1 or unstarted_returns > 0"


@dataclass
class Standing:
    """A replica without loops or network, whose clock the test steps: a session, and the stream's writer, which takes
    a message when the test says so."""

    admin: Admin
    database: Database
    connection: Connection
    job: MadeJob
    clock: Clock = field(default_factory=Clock)
    wakeups: Wakeups = field(default_factory=Wakeups)

    def __post_init__(self) -> None:
        self.sessions = Sessions(lambda: None)
        self.leases = Leases(self.database, self.sessions, self.wakeups, replica="replica-1", clock=self.clock)
        self.dispatcher = Dispatcher(self.sessions, self.wakeups, self.clock)
        self.late = 0

    async def stream(self, credit: int) -> tuple[ConnectedSession, Outbox, Messages]:
        """A worker's, as `WorkerService` opens it."""
        outbox = Outbox(clock=self.clock)
        hello = Hello(uuid4(), "w-1", "test", frozenset({"http"}))
        session = await self.leases.open(WORKER, hello, outbox)
        outbox.on_full = lambda full: self.sessions.fall_behind(session, full)
        outbox.on_end = lambda: self.leases.close(session)
        self.sessions.grant(session, credit)
        await self.step()
        return session, outbox, aiter(outbox.messages())

    async def claimed(self, runs: int, payload: dict[str, Any] | None = None) -> None:
        for _ in range(runs):
            make_live_run(self.admin, self.job, payload=payload or {})
        self.dispatcher.look_again()
        assert await self.dispatcher.dispatch(self.connection) == runs

    async def step(self) -> bool:
        return await self.leases.step(self.connection)

    def held(self) -> set[UUID]:
        return {row[0] for row in rows(self.admin, HELD)}


@pytest.fixture
async def standing(admin: Admin, database: Database, job: MadeJob) -> AsyncIterator[Standing]:
    async with await database.hot_connection() as connection:
        yield Standing(admin, database, connection, job)


async def sent(messages: Messages) -> set[UUID]:
    """The runs of the next message."""
    message = await anext(messages)
    return {UUID(bytes=each.run_id) for each in message.assignments.assignments}


def test_what_is_sent_has_time_to_arrive_before_it_may_be_taken_back() -> None:
    assert SENT_WITHIN + 2 <= IN_FLIGHT_SECONDS


async def test_over_a_real_stream_what_was_late_is_sent_with_a_new_claim_only(
    database: Database, admin: Admin, job: MadeJob
) -> None:
    ahead = SENT_WITHIN + 0.1
    replica = Replica(database, new_outbox=lambda: Outbox(clock=lambda: time.monotonic() + ahead))
    run_id = make_live_run(admin, job)
    async with serving(replica), a_worker(replica) as worker:
        await worker.welcomed(credit=1)
        await until(lambda: one(admin, "select last_value from carillon.claim_ids") >= 3)
        ahead = 0.0
        assignments = await worker.expect("assignments")
        assert assignments.claim_id >= 3, "what was claimed before was not sent"
        [assignment] = assignments.assignments
        assert (assignment.run_id, assignment.attempt) == (run_id.bytes, 1)
        assert rows(admin, CHARGED) == []
        result = a_result(ref(assignment.run_id, assignments.claim_id))
        assert await worker.verdict(result) == work_pb2.RESULT_VERDICT_ACCEPTED


async def test_a_claim_counts_from_before_it_was_asked_for(standing: Standing) -> None:
    """It stands still while the database answers, that is: at worst just after it has committed."""
    session, _, messages = await standing.stream(credit=2)
    free = standing.wakeups.listen(Topic.PENDING)
    execute = standing.connection.execute

    async def slowly(*args: Any, **options: Any) -> Any:
        answer = await execute(*args, **options)
        standing.clock.now += SENT_WITHIN + 0.1
        return answer

    standing.connection.execute = slowly  # type: ignore[method-assign]  # it goes on to the real one
    await standing.claimed(1)
    standing.connection.execute = execute  # type: ignore[method-assign]
    await standing.claimed(1)
    (young,) = await sent(messages)
    assert len(standing.held()) == 2
    free.take()
    with capture_logs() as logs:
        assert await standing.step()
    assert standing.held() == {young}
    assert (session.credit, free.take(), rows(standing.admin, CHARGED)) == (1, True, [])
    (line,) = logs
    assert (line["log_level"], line["count"], line["free"]) == ("warning", 1, 1)


async def test_runs_that_a_tick_made_in_a_sessions_hands_count_from_before_the_tick(standing: Standing) -> None:
    session, outbox, messages = await standing.stream(credit=1)
    assert await standing.dispatcher.dispatch(standing.connection) == 0  # the route is drained
    every(standing.admin, job_of(standing.admin, "due"))
    due = START + 10 * SECOND
    seats = standing.dispatcher.seats()
    ticked = await tick(standing.connection, seats, now=due)
    standing.clock.now += SENT_WITHIN + 0.1
    standing.dispatcher.hand_over(seats, ticked.made.claimed)
    assert len(standing.held()) == 1
    outbox.acknowledge_heartbeat(1)
    assert (await anext(messages)).HasField("heartbeat_ack")
    await standing.step()
    assert (standing.held(), session.credit) == (set(), 1)
    standing.dispatcher.look_again()
    assert await standing.dispatcher.dispatch(standing.connection, now=due) == 1
    assert await sent(messages) == standing.held()


async def test_what_waits_behind_a_slow_stream_is_given_back_and_no_more_claimed_until_it_moves(
    standing: Standing,
) -> None:
    session, outbox, messages = await standing.stream(credit=10)
    await standing.claimed(6, payload={"text": "x" * 200 * 1024})
    first = await sent(messages)
    assert 0 < len(first) < 6
    standing.clock.now += SENT_WITHIN
    assert not await standing.step(), "it is in time still"
    standing.clock.now += 0.1
    assert await standing.step()
    assert standing.held() == first
    assert (outbox.unsent_claims, session.credit, rows(standing.admin, CHARGED)) == (set(), 10 - len(first), [])
    standing.dispatcher.look_again()
    assert await standing.dispatcher.dispatch(standing.connection) == 0
    outbox.acknowledge_heartbeat(1)
    assert (await anext(messages)).HasField("heartbeat_ack")
    assert await standing.dispatcher.dispatch(standing.connection) == 6 - len(first)


async def test_what_was_asked_to_stop_or_is_somebody_elses_by_then_is_not_freed(standing: Standing) -> None:
    await standing.stream(credit=3)
    await standing.claimed(3)
    stopping, ended, another = sorted(standing.held())
    admin = standing.admin
    admin.execute("update carillon.live_runs set cancel_requested_at = now() where run_id = %s", [stopping])
    admin.execute("delete from carillon.live_runs where run_id = %s", [ended])
    admin.execute("update carillon.live_runs set claim_id = claim_id + 100 where run_id = %s", [another])
    standing.clock.now += SENT_WITHIN + 0.1
    assert not await standing.step()
    assert standing.held() == {stopping, another}


async def test_a_stream_that_ends_has_its_late_ones_given_back_too(standing: Standing) -> None:
    _, outbox, messages = await standing.stream(credit=1)
    await standing.claimed(1)
    standing.clock.now += SENT_WITHIN + 0.1
    outbox.acknowledge_heartbeat(1)
    await anext(messages)
    outbox.finish()
    assert await standing.step()
    assert standing.held() == set()


async def test_what_cannot_be_given_back_while_the_database_is_away_is_tried_again(standing: Standing) -> None:
    await standing.stream(credit=1)
    await standing.claimed(1)
    standing.clock.now += SENT_WITHIN + 0.1
    async with await standing.database.hot_connection() as lost:
        await lost.close()
        with pytest.raises(psycopg.OperationalError):
            await standing.leases.step(lost)
    assert len(standing.held()) == 1
    assert await standing.step()
    assert standing.held() == set()
