"""Pending runs are handed to sessions: in order, once, and only while the session has its lease."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from secrets import token_hex
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from scheduler_service.engine import dispatch as dispatch_module
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.sessions import Sessions
from scheduler_service.store.claim import MOST_BYTES, claim, seconds_to_next
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob, make_live_run, make_session
from tests.store.engine_case import SECOND, START, Connection, job_of, rows, session_of

Admin = psycopg.Connection[Any]


@pytest.fixture
def job(admin: Admin) -> MadeJob:
    return job_of(admin)


def pending(admin: Admin, job: MadeJob, after: int = 0, **columns: Any) -> UUID:
    return make_live_run(admin, job, at=START, run_after=START + after * SECOND, **columns)


async def test_the_longest_due_are_claimed_first_and_those_not_due_not_at_all(
    admin: Admin, hot: Connection, job: MadeJob
) -> None:
    late, early, future = pending(admin, job, 2), pending(admin, job, 1), pending(admin, job, 30)
    pending(admin, job, route="handler/x/y")
    pending(admin, job, schedule_id=1, revision=1, exclusive=True, blocked=True)
    session = make_session(admin)
    first = await claim(hot, session, ["http"], 1, START + 5 * SECOND)
    second = await claim(hot, session, ["http"], 9, START + 5 * SECOND)
    assert first is not None
    assert second is not None
    assert [run.run_id for run in (*first.runs, *second.runs)] == [early, late]
    assert (first.emptied, second.emptied, first.claim_id < second.claim_id) == (False, True, True)
    assert await seconds_to_next(hot, ["http"], START + 5 * SECOND) == 25
    assert rows(admin, "select session_id from carillon.live_runs where run_id = %s", future) == [(None,)]
    assert rows(admin, "select distinct deadline from carillon.live_runs where claim_id is not null") == [
        (START + 5 * SECOND + timedelta(hours=1),)
    ]


async def test_what_is_due_now_goes_before_what_is_caught_up_on_every_route(
    admin: Admin, hot: Connection, job: MadeJob
) -> None:
    caught_up, due = pending(admin, job, 1, priority=1), pending(admin, job, 2)
    pending(admin, job, 30)
    pending(admin, job, 20, priority=1)
    elsewhere = pending(admin, job, 3, route="grpc")
    session = make_session(admin)
    now = START + 5 * SECOND
    claims = [await claim(hot, session, ["http", "grpc"], limit, now) for limit in (1, 2, 9)]
    assert [[run.run_id for run in each.runs] for each in claims if each] == [[due], [elsewhere, caught_up], []]
    assert await seconds_to_next(hot, ["http", "grpc"], now) == 15


async def test_two_claimers_never_get_the_same_run(
    admin: Admin, hot: Connection, other: Connection, job: MadeJob
) -> None:
    made = {pending(admin, job) for _ in range(60)}
    sessions = [make_session(admin), make_session(admin)]
    taken: list[UUID] = []
    for _ in range(6):
        claims = await asyncio.gather(
            *(
                claim(connection, session, ["http"], 7, START)
                for connection, session in zip((hot, other), sessions, strict=True)
            )
        )
        taken += [run.run_id for each in claims if each is not None for run in each.runs]
    assert len(taken) == 60
    assert set(taken) == made


async def test_what_another_claimer_has_locked_is_passed_over(
    admin: Admin, hot: Connection, other: Connection, job: MadeJob
) -> None:
    locked, free = pending(admin, job), pending(admin, job, 1)
    async with other.transaction():
        await other.execute("select from carillon.live_runs where run_id = %s for update", [locked])
        claimed = await claim(hot, make_session(admin), ["http"], 9, START + SECOND)
    assert claimed is not None
    assert [run.run_id for run in claimed.runs] == [free]


async def test_a_session_without_a_lease_gets_nothing(admin: Admin, hot: Connection, job: MadeJob) -> None:
    pending(admin, job)
    session = make_session(admin)
    admin.execute("delete from carillon.sessions")
    assert await claim(hot, session, ["http"], 9, START) is None
    assert rows(admin, "select claim_id from carillon.live_runs") == [(None,)]


@pytest.mark.parametrize("compressible", [True, False])
async def test_a_claim_ends_where_its_payloads_become_too_large(
    admin: Admin, hot: Connection, job: MadeJob, compressible: bool
) -> None:
    for _ in range(60):
        text = "x" * 255_000 if compressible else token_hex(127_500)
        pending(admin, job, payload=Jsonb({"text": text}))
    session = make_session(admin)
    sizes = []
    while (claimed := await claim(hot, session, ["http"], 500, START)) is not None and claimed.runs:
        sizes.append((sum(len(run.payload) for run in claimed.runs), claimed.emptied))
    # A payload that is the same letter throughout is stored in a ninetieth of its size, and is taken for a third.
    assert max(size for size, _ in sizes) < MOST_BYTES * (4 if compressible else 1) + 256 * 1024
    assert min(size for size, _ in sizes[:-1]) > MOST_BYTES * 3 // 4
    assert [emptied for _, emptied in sizes] == [False] * (len(sizes) - 1) + [True]
    assert rows(admin, "select count(*) from carillon.live_runs where claim_id is null") == [(0,)]


async def test_one_payload_is_claimed_however_large(admin: Admin, hot: Connection, job: MadeJob) -> None:
    # More than a client may send: an old release's, or one that another program wrote.
    pending(admin, job, payload=Jsonb({"text": token_hex(3 * 1024 * 1024)}))
    claimed = await claim(hot, make_session(admin), ["http"], 9, START)
    assert claimed is not None
    assert len(claimed.runs) == 1


async def test_every_route_of_a_session_gets_its_turn(admin: Admin, hot: Connection, job: MadeJob) -> None:
    for route in ("http", "handler/a/b"):
        for _ in range(30):
            pending(admin, job, route=route)
    sessions = Sessions(on_credit=lambda: None)
    session, received = session_of(admin, sessions, credit=10, routes=("http", "handler/a/b"))
    dispatcher = Dispatcher(sessions, Wakeups())
    for _ in range(2):
        assert await dispatcher.dispatch(hot, now=START) == 10
        session.credit = 10
    routes = rows(admin, "select distinct route from carillon.live_runs where claim_id is not null order by 1")
    assert routes == [("handler/a/b",), ("http",)]
    assert len(received.claims) == 2


async def test_sessions_share_what_is_there(admin: Admin, hot: Connection, job: MadeJob) -> None:
    for _ in range(dispatch_module.TURN + 4):
        pending(admin, job)
    sessions = Sessions(on_credit=lambda: None)
    one, first = session_of(admin, sessions, credit=100)
    two, second = session_of(admin, sessions, credit=90)
    dispatcher = Dispatcher(sessions, Wakeups(), clock=lambda: 0.0)
    assert await dispatcher.dispatch(hot, now=START) == dispatch_module.TURN + 4
    assert (len(first.runs), len(second.runs)) == (dispatch_module.TURN, 4)
    assert (one.credit, two.credit) == (100 - dispatch_module.TURN, 86)
    assert not dispatcher.has_work()


async def test_no_session_gets_more_than_its_credit(admin: Admin, hot: Connection, job: MadeJob) -> None:
    for _ in range(5):
        pending(admin, job)
    sessions = Sessions(on_credit=lambda: None)
    _, received = session_of(admin, sessions, credit=3)
    dispatcher = Dispatcher(sessions, Wakeups())
    while dispatcher.has_work():
        await dispatcher.dispatch(hot, now=START)
    assert len(received.runs) == 3


async def test_a_drained_route_is_asked_for_again_once_told(admin: Admin, hot: Connection, job: MadeJob) -> None:
    sessions = Sessions(on_credit=lambda: None)
    session_of(admin, sessions, credit=3)
    dispatcher = Dispatcher(sessions, Wakeups(), clock=lambda: 0.0)
    assert await dispatcher.dispatch(hot, now=START) == 0
    pending(admin, job)
    assert not dispatcher.has_work()
    dispatcher.look_again()
    assert await dispatcher.dispatch(hot, now=START) == 1


async def test_runs_are_made_claimed_only_where_nothing_waits(admin: Admin, hot: Connection, job: MadeJob) -> None:
    for _ in range(4):
        pending(admin, job)
    sessions = Sessions(on_credit=lambda: None)
    session_of(admin, sessions, credit=2)
    session, _ = session_of(admin, sessions, credit=1)
    dispatcher = Dispatcher(sessions, Wakeups())
    await dispatcher.dispatch(hot, now=START)
    session.credit = 5
    assert dispatcher.seats().seat("http") is None
    await dispatcher.dispatch(hot, now=START)
    assert dispatcher.seats().seat("http") == session.session_id
