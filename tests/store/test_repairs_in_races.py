"""Others act between what a reaper finds and what it mends, or beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scheduler_service.domain.returns import after_loss
from scheduler_service.engine.reap import Reaped
from scheduler_service.store import reap, stuck
from scheduler_service.store.database import Database
from tests.builders import finish, make_session
from tests.conftest import DatabaseUrls
from tests.store.engine_case import Connection, rows
from tests.store.repairs_case import NOW, Admin, House

HOUR = timedelta(hours=1)


@pytest.fixture
async def house(database: Database, admin: Admin, hot: Connection) -> House:
    return House(database, admin, hot)


class Paused(psycopg.AsyncConnection[Any]):
    """A reaper's connection that lets others act between what it found and the locks on that."""

    def let(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        if "r.run_id = any(" in str(query) and (act := getattr(self, "_act", None)) is not None:
            self._act = None
            act()
        return await super().execute(query, *args, **options)


@pytest.fixture
async def paused(database_urls: DatabaseUrls) -> AsyncIterator[Paused]:
    async with await Paused.connect(database_urls.engine, autocommit=True) as connection:
        yield connection


class TestWhatWasFoundAWhileAgo:
    """An old look, which others overtake before it has its locks, undoes nothing."""

    async def test_a_run_that_was_given_to_another_worker_stays_with_it(self, house: House, paused: Paused) -> None:
        run_id, worker = house.held(uuid4()), make_session(house.admin)
        given = "update carillon.live_runs set session_id = %s, claim_id = nextval('carillon.claim_ids')"
        paused.let(lambda: house.admin.execute(given, [worker]))
        house.connection = paused
        assert await house.step() == Reaped()
        assert house.holders() == [worker]
        assert house.live() == {run_id}

    async def test_a_run_that_was_completed_stays_completed(self, house: House, paused: Paused) -> None:
        run_id = house.held()
        house.admin.execute("update carillon.live_runs set deadline = %s", [NOW - HOUR])
        paused.let(lambda: finish(house.admin, run_id))
        house.connection = paused
        assert await house.step() == Reaped()
        assert house.outcome(run_id) == ("COMPLETED", None)
        assert house.live() == set()

    async def test_an_attempt_that_began_anew_has_its_own_time(self, house: House, paused: Paused) -> None:
        house.held()
        house.admin.execute("update carillon.live_runs set deadline = %s", [NOW - HOUR])
        later = "update carillon.live_runs set attempt = 2, deadline = %s"
        paused.let(lambda: house.admin.execute(later, [NOW + HOUR]))
        house.connection = paused
        assert await house.step() == Reaped()
        assert rows(house.admin, "select attempt from carillon.live_runs") == [(2,)]


class TestTwoReapers:
    async def test_a_run_that_a_completion_is_ending_is_left_to_it(self, house: House, other: Connection) -> None:
        """Paused in between: the completion has deleted the live row and is not committed."""
        session_id = make_session(house.admin)
        run_id = house.held(session_id)
        house.lose(session_id)
        async with other.transaction():
            await other.execute("select from carillon.sessions where session_id = %s for key share", [session_id])
            await other.execute("delete from carillon.live_runs where run_id = %s", [run_id])
            assert await house.step() == Reaped(), "its session is spared while somebody takes its results"
        assert await house.step(at=1) == Reaped(sessions=1)
        assert rows(house.admin, "select from carillon.attempts") == []

    async def test_one_of_two_charges(self, house: House, other: Connection) -> None:
        """Paused in between: the first has locked and not committed."""
        run_id = house.held(uuid4())
        async with other.transaction():
            locked = await stuck.lock(other, stuck.SESSION_GONE, [run_id], NOW)
            assert await house.step() == Reaped(), "it is skipped"
            await reap.carry_out(other, [(run, after_loss(run, NOW)) for run in locked], NOW)
        assert await house.step(at=6) == Reaped()
        assert rows(house.admin, "select attempt from carillon.live_runs") == [(2,)]
        assert rows(house.admin, "select count(*) from carillon.attempts") == [(1,)]
