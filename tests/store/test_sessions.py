"""Sessions' rows: the lease, the newest stream, and who may go on with a session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.store.sessions import (
    SessionRow,
    close_session,
    end_expired_sessions,
    extend_leases,
    open_session,
    resume_session,
)

START = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = 30.0


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def a_session() -> SessionRow:
    return SessionRow(
        session_id=uuid4(),
        worker="worker-1",
        client="test",
        principal="service:*",
        routes=frozenset({"http"}),
        replica="replica-1",
    )


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with await database.hot_connection() as connection:
        yield connection


async def test_each_hello_begins_the_next_stream(connection: Connection) -> None:
    session = a_session()
    assert await open_session(connection, session, lease=LEASE, now=START) == 1
    assert await open_session(connection, session, lease=LEASE, now=START) == 2
    assert await resume_session(connection, session, lease=LEASE, now=START) == 3


async def test_a_session_that_is_gone_cannot_be_resumed(connection: Connection) -> None:
    assert await resume_session(connection, a_session(), lease=LEASE, now=START) is None


async def test_another_principal_or_worker_cannot_go_on_with_a_session(connection: Connection) -> None:
    session = a_session()
    await open_session(connection, session, lease=LEASE, now=START)
    for thief in (replace(session, principal="service:email-service"), replace(session, worker="worker-2")):
        assert await open_session(connection, thief, lease=LEASE, now=START) is None
        assert await resume_session(connection, thief, lease=LEASE, now=START) is None


async def test_a_heartbeat_of_the_newest_stream_extends_the_lease(connection: Connection) -> None:
    session = a_session()
    await open_session(connection, session, lease=LEASE, now=START)
    assert await extend_leases(connection, {session.session_id: 1}, lease=LEASE, now=after(20)) == {
        session.session_id: 1
    }
    assert await end_expired_sessions(connection, now=after(49)) == {}
    assert await end_expired_sessions(connection, now=after(50)) == {session.session_id: "worker-1"}


async def test_a_heartbeat_of_an_older_stream_does_not(connection: Connection) -> None:
    session = a_session()
    await open_session(connection, session, lease=LEASE, now=START)
    await open_session(connection, session, lease=LEASE, now=START)
    newest = await extend_leases(connection, {session.session_id: 1}, lease=LEASE, now=after(20))
    assert newest == {session.session_id: 2}
    assert await end_expired_sessions(connection, now=after(30)) == {session.session_id: "worker-1"}


async def test_a_heartbeat_of_a_session_that_is_gone_finds_nothing(connection: Connection) -> None:
    there, gone = a_session(), a_session()
    await open_session(connection, there, lease=LEASE, now=START)
    newest = await extend_leases(connection, {there.session_id: 1, gone.session_id: 1}, lease=LEASE, now=after(1))
    assert newest == {there.session_id: 1}


async def test_only_the_newest_stream_can_say_goodbye(connection: Connection) -> None:
    session = a_session()
    await open_session(connection, session, lease=LEASE, now=START)
    await open_session(connection, session, lease=LEASE, now=START)
    assert await close_session(connection, session.session_id, 1) is None
    assert await close_session(connection, session.session_id, 2) == "worker-1"


async def test_a_session_that_somebody_works_with_is_not_ended(connection: Connection, database: Database) -> None:
    session = a_session()
    await open_session(connection, session, lease=LEASE, now=START)
    async with await database.hot_connection() as claiming:
        async with claiming.transaction():
            await claiming.execute(
                "select from carillon.sessions where session_id = %s for key share", (session.session_id,)
            )
            assert await end_expired_sessions(connection, now=after(60)) == {}
            assert await extend_leases(connection, {session.session_id: 1}, lease=LEASE, now=after(61)) == {
                session.session_id: 1
            }
        assert await end_expired_sessions(connection, now=after(60)) == {}
    assert await end_expired_sessions(connection, now=after(91)) == {session.session_id: "worker-1"}
