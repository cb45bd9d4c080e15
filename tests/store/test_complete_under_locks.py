"""Completion beside others who lock the same runs: it gives way, tries again, and nothing is lost or done by halves.

Deadlocks here are real ones, of two connections. The completer's looks for them after 10 ms, the other's after an hour,
so that it is always the completer who is ended; and between its two locks stands a gate, so that the circle closes with
its last wait, whatever the machine does meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psycopg
import pytest

from scheduler_service.domain.attempt import AttemptRef, Result, Verdict
from scheduler_service.domain.record import ItemCounts
from scheduler_service.engine.complete import Completer
from scheduler_service.store.database import Database
from tests.conftest import DatabaseUrls
from tests.store.complete_case import NOW, Admin, Case
from tests.store.engine_case import Connection, rows

PATIENCE = 60


class Crossing:
    """A completer's connection, and two others': `gate` holds the middle one of three runs, `other` the last, and asks
    for the first once the completer holds that and stands at the gate."""

    def __init__(self, admin: Admin, completing: Connection, gate: Connection, other: Connection) -> None:
        self.admin = admin
        self.case = Case(admin, completing)
        self.case.completer = Completer(self.case.wakeups, patience=PATIENCE)
        self.gate = gate
        self.other = other
        self.refs: list[AttemptRef] = []

    async def begin(self) -> None:
        """Three runs in the order of their ids, and the last of them in the other's hands."""
        self.refs = sorted(await self.case.claimed(3), key=lambda ref: ref.run_id.int)
        await self._lock(self.other, self.refs[2])
        await self.other.execute("savepoint crossing")

    async def shut_the_gate(self) -> None:
        await self._lock(self.gate, self.refs[1])

    async def meet(self) -> None:
        """The circle, up to the other's getting the first run, which it does only when the completer is ended. That one
        is kept from trying again meanwhile, or it might be the first to lock the first run anew."""
        await self.waits(self.case.hot, on=self.gate)
        keeping = asyncio.create_task(self.case.hot.lock.acquire())
        crossing = asyncio.create_task(self._lock(self.other, self.refs[0]))
        await self.waits(self.other, on=self.case.hot)
        await self.gate.commit()
        async with asyncio.timeout(PATIENCE):
            await crossing
            await keeping

    async def begin_again(self) -> None:
        """As before the two met."""
        await self.shut_the_gate()
        await self.other.execute("rollback to savepoint crossing")

    def let_go_on(self) -> None:
        self.case.hot.lock.release()

    async def _lock(self, connection: Connection, ref: AttemptRef) -> None:
        await connection.execute("select from carillon.live_runs where run_id = %s for update", [ref.run_id])

    async def reported_in_vain(self, *results: Result) -> None:
        """The statement is ended that waits for the other, as PostgreSQL does after a minute."""
        reporting = asyncio.create_task(self.case.report(*results))
        await self.waits(self.case.hot, on=self.other)
        self.admin.execute("select pg_cancel_backend(%s)", [self.case.hot.info.backend_pid])
        with pytest.raises(psycopg.errors.QueryCanceled):
            await reporting

    async def waits(self, waiting: Connection, *, on: Connection) -> None:
        query = "select %s = any(pg_blocking_pids(%s))"
        async with asyncio.timeout(PATIENCE):
            while rows(self.admin, query, on.info.backend_pid, waiting.info.backend_pid) != [(True,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def results(self, *, failing: bool) -> list[Result]:
        first, *rest = self.refs
        return [self.case.failure(first) if failing else self.case.result(first), *map(self.case.result, rest)]

    def is_done(self, *, failing: bool) -> bool:
        """Whether each result is recorded, once."""
        ended = {ref.run_id: "COMPLETED" for ref in (self.refs[1:] if failing else self.refs)}
        retried = [(self.refs[0].run_id, 2)] if failing else []
        attempts = rows(self.admin, "select run_id, attempt + 1 from carillon.attempts")
        return (self.case.states(), rows(self.admin, "select run_id, attempt from carillon.live_runs"), attempts) == (
            ended,
            retried,
            retried,
        )


@pytest.fixture
async def crossing(database: Database, database_urls: DatabaseUrls, admin: Admin) -> AsyncIterator[Crossing]:
    async with AsyncExitStack() as stack:

        async def connected(timeout: str) -> Connection:
            settings = f"-c deadlock_timeout={timeout}"
            return await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(database_urls.admin, options=settings)
            )

        admin.execute(
            "do $$ begin execute format("
            "'alter role carillon_engine in database %I set deadlock_timeout = %L', current_database(), '10ms');"
            " end $$"
        )
        completing = await stack.enter_async_context(await database.hot_connection())
        yield Crossing(admin, completing, await connected("1h"), await connected("1h"))


@pytest.mark.parametrize("failing", [False, True], ids=["only-completed", "with-a-failure"])
async def test_a_group_that_a_deadlock_ended_is_written_once_the_other_is_done(
    crossing: Crossing, failing: bool
) -> None:
    await crossing.begin()
    await crossing.shut_the_gate()
    reporting = asyncio.create_task(crossing.case.report(*crossing.results(failing=failing)))
    await crossing.meet()
    crossing.let_go_on()
    assert crossing.case.received.answers == []
    await crossing.other.commit()
    assert await reporting == [Verdict.ACCEPTED] * 3
    assert crossing.is_done(failing=failing)
    assert crossing.case.completer.ended == {"COMPLETED": 2 if failing else 3}


async def test_a_group_that_meets_a_deadlock_each_time_is_kept_for_the_next_step(crossing: Crossing) -> None:
    await crossing.begin()
    await crossing.shut_the_gate()
    results = crossing.results(failing=True)
    reporting = asyncio.create_task(crossing.case.report(*results))
    for tries_left in (2, 1, 0):
        await crossing.meet()
        if tries_left:
            await crossing.begin_again()
        crossing.let_go_on()
    with pytest.raises(psycopg.errors.DeadlockDetected):
        await reporting
    assert (crossing.case.received.answers, len(crossing.case.completer)) == ([], 3)
    assert not crossing.case.states()
    await crossing.other.commit()
    assert await crossing.case.completer.step(crossing.case.hot, now=NOW)
    assert crossing.case.received.answers == [Verdict.ACCEPTED] * 3
    assert crossing.is_done(failing=True)


@pytest.mark.parametrize("failing", [False, True], ids=["only-completed", "with-a-failure"])
async def test_a_serialization_failure_is_got_over_at_once(crossing: Crossing, failing: bool) -> None:
    """Where somebody gave the engine's role a stricter isolation than PostgreSQL's default."""
    case, other = crossing.case, crossing.other
    await crossing.begin()
    await case.hot.execute("set default_transaction_isolation = 'repeatable read'")
    await other.execute(
        "update carillon.live_runs set priority = priority where run_id = %s", [crossing.refs[2].run_id]
    )
    reporting = asyncio.create_task(case.report(*crossing.results(failing=failing)))
    await crossing.waits(case.hot, on=other)
    await other.commit()
    assert await reporting == [Verdict.ACCEPTED] * 3
    assert crossing.is_done(failing=failing)


@pytest.mark.parametrize("failing", [False, True], ids=["only-completed", "with-a-failure"])
async def test_a_group_that_waited_too_long_is_kept_whole(crossing: Crossing, failing: bool) -> None:
    """Not for a lock, for which it does not wait so long: tests/store/test_complete_beside_locks.py."""
    case = crossing.case
    await crossing.begin()
    await crossing.reported_in_vain(*crossing.results(failing=failing))
    assert (case.received.answers, case.states(), len(case.completer)) == ([], {}, 3)
    await crossing.other.commit()
    assert await case.completer.step(case.hot, now=NOW)
    assert case.received.answers == [Verdict.ACCEPTED] * 3
    assert crossing.is_done(failing=failing)
    assert case.completer.ended == {"COMPLETED": 2 if failing else 3}


async def test_what_was_committed_before_the_group_failed_is_known_again(crossing: Crossing) -> None:
    """A bad value halves the group; the first half is committed when the second has to wait too long."""
    case = crossing.case
    await crossing.begin()
    first, middle, last = crossing.results(failing=False)
    first.items = ItemCounts(2**70, 0, 0)
    await crossing.reported_in_vain(first, middle, last)
    assert case.states() == {first.ref.run_id: "FAILED"}
    assert case.received.answers == []
    await crossing.other.commit()
    assert await case.completer.step(case.hot, now=NOW)
    assert case.received.answers == [Verdict.ACCEPTED] * 3
    assert case.states() == {first.ref.run_id: "FAILED", middle.ref.run_id: "COMPLETED", last.ref.run_id: "COMPLETED"}
    assert case.completer.ended == {"FAILED": 1, "COMPLETED": 2}
