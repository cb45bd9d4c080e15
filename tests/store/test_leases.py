"""Leases and reports while the database comes and goes: what waits to be written is not lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scheduler_service.domain.access import ANY_SERVICE, Kind, Principal, Scope
from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.errors import Refusal
from scheduler_service.engine.leases import Hello, Leases
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import claim, make_job, make_live_run, make_session

WORKER = Principal(Kind.WORKER, name="worker", service=ANY_SERVICE, scopes=frozenset({Scope.WORK}))


class Stream:
    """The port of a worker's stream, which remembers what it was told."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.ended: list[Refusal] = []

    def assign(self, claim_id: int, runs: object, asked_at: float) -> None: ...

    def acknowledge(self, verdicts: object) -> None: ...

    def cancel(self, attempts: Iterable[AttemptRef]) -> None: ...

    def acknowledge_heartbeat(self, sequence: int) -> None:
        self.acknowledged.append(sequence)

    def withdraw_late(self) -> list[AttemptRef]:
        return []

    def end(self, refusal: Refusal) -> None:
        self.ended.append(refusal)


async def test_heartbeats_wait_for_the_database_to_come_back(database: Database) -> None:
    leases = Leases(database, Sessions(lambda: None), Wakeups(), replica="replica-1")
    stream = Stream()
    session = await leases.open(WORKER, Hello(uuid4(), "worker-1", "test", frozenset({"http"})), stream)
    leases.beat(session, 1, [])
    lost = await database.hot_connection()
    await lost.close()
    with pytest.raises(psycopg.OperationalError):
        await leases.step(lost)
    assert stream.acknowledged == []
    async with await database.hot_connection() as connection:
        assert await leases.step(connection)
        assert not await leases.step(connection)
    assert (stream.acknowledged, stream.ended) == ([1], [])


async def test_reports_wait_for_the_database_to_come_back(database: Database, admin: psycopg.Connection[Any]) -> None:
    run_id = make_live_run(admin, make_job(admin))
    session_id = make_session(admin)
    claim(admin, run_id, session_id)
    admin.execute("update carillon.live_runs set started_at = null")
    [claim_id] = admin.execute("select claim_id from carillon.live_runs").fetchone() or [0]
    reports = Reports(Wakeups())
    attempt = AttemptRef(run_id, 1, claim_id)
    session = ConnectedSession(session_id, "worker-1", frozenset({"http"}), 1, Stream())
    reports.started(session, [(attempt, 0.0)])
    lost = await database.hot_connection()
    await lost.close()
    with pytest.raises(psycopg.OperationalError):
        await reports.step(lost)
    async with await database.hot_connection() as connection:
        assert await reports.step(connection)
        reports.progressed(session, [(attempt, (3, 10, ""))])
        with pytest.raises(psycopg.OperationalError):
            await reports.step(lost)
        assert await reports.step(connection)
    assert admin.execute("select started_at is not null, progress -> 'done' from carillon.live_runs").fetchone() == (
        True,
        3,
    )
