"""Completion beside a hand in the database that keeps rows locked: the rest goes on, and what is locked waits."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Verdict
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.set_aside import FIRST_PAUSE, LONGEST_PUT_OFF, PUT_OFF
from scheduler_service.engine.unrecorded import LONGEST_LOCK_PAUSE
from scheduler_service.store.patience import PATIENCE
from tests.builders import make_live_run, make_schedule
from tests.store.complete_case import NOW, Admin, Case
from tests.store.engine_case import START, Connection, rows, session_of

PROMPT = 30.0
"""Seconds. Without us, PostgreSQL ends what waits for a lock after a minute."""


class Beside(Case):
    """A session with claimed runs, and somebody who locks what the test says until `let_go`."""

    def __init__(self, admin: Admin, hot: Connection, somebody: Admin) -> None:
        super().__init__(admin, hot)
        self.somebody = somebody
        self.seconds = 0.0
        self.completer = Completer(self.wakeups, clock=lambda: self.seconds)

    def lock(self, *refs: AttemptRef, table: str = "live_runs", key: str = "run_id") -> None:
        query = f"select from carillon.{table} where {key} = any(%s) for update"
        assert self.somebody.execute(query.encode(), [[ref.run_id for ref in refs]]).rowcount == len(refs)

    def lock_session(self, session_id: UUID) -> None:
        self.somebody.execute("select from carillon.sessions where session_id = %s for update", [session_id])

    def let_go(self) -> None:
        self.somebody.rollback()

    async def step(self, at: float) -> bool:
        self.seconds = at
        async with asyncio.timeout(PROMPT):
            return await self.completer.step(self.hot, now=NOW)

    async def said(self, *results: Any) -> list[Verdict]:
        async with asyncio.timeout(PROMPT):
            return await self.report(*results)


@pytest.fixture
async def beside(admin: Admin, hot: Connection, somebody: Admin) -> Beside:
    return Beside(admin, hot, somebody)


@pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED", "RETURNED"])
async def test_the_rest_of_a_group_is_recorded_and_what_is_locked_once_it_is_free(beside: Beside, outcome: str) -> None:
    beside.admin.execute("update carillon.jobs set max_attempts = 1")
    refs = await beside.claimed(9)
    beside.lock(refs[2], refs[6])
    with capture_logs() as logs:
        said = await beside.said(*(beside.result(ref, outcome=outcome) for ref in refs))
    assert said == [Verdict.ACCEPTED] * 7
    held = "select run_id from carillon.live_runs where session_id is not null order by run_id"
    assert [row[0] for row in rows(beside.admin, held)] == sorted([refs[2].run_id, refs[6].run_id])
    (line,) = logs
    assert (line["log_level"], "somebody has locked" in line["event"]) == ("warning", True)
    assert (len(beside.completer), beside.completer.set_aside) == (0, 0)
    beside.received.verdicts.clear()
    assert not await beside.step(PUT_OFF / 2), "it has not rested"
    assert not await beside.step(PUT_OFF), "it is locked still"
    beside.let_go()
    assert not await beside.step(PUT_OFF * 1.5)
    assert await beside.step(PUT_OFF * 2)
    assert beside.received.answers == [Verdict.ACCEPTED] * 2
    assert rows(beside.admin, held) == []
    assert not await beside.step(PUT_OFF * 10)


async def test_while_somebody_has_something_locked_other_groups_do_not_wait_for_it(beside: Beside) -> None:
    """Each of their results comes while the one before is locked still."""
    refs = await beside.claimed(8)
    beside.lock(*refs[::2])
    patience = []
    execute = beside.hot.execute

    async def listening(query: Any, params: Any = None, **options: Any) -> Any:
        if isinstance(params, dict) and "patience" in params:
            patience.append(params["patience"])
        return await execute(query, params, **options)

    beside.hot.execute = listening  # type: ignore[method-assign]  # it goes on to the real one
    for locked, free in zip(refs[::2], refs[1::2], strict=True):
        assert await beside.said(beside.result(locked), beside.result(free)) == [Verdict.ACCEPTED]
    assert patience[0] == f"{PATIENCE * 1000:.0f}ms"
    assert set(patience[1:]) == {"50ms"}


async def test_results_of_a_session_whose_row_is_locked_wait_and_others_do_not(beside: Beside) -> None:
    mine = await beside.claimed(2)
    other, received = session_of(beside.admin, beside.sessions, credit=1)
    beside.lock_session(other.session_id)
    for _ in range(2):
        make_live_run(
            beside.admin, beside.job, at=START, session_id=other.session_id, claim_id=77, claimed_at=START, deadline=NOW
        )
    theirs = [
        AttemptRef(run_id, 1, 77)
        for (run_id,) in rows(beside.admin, "select run_id from carillon.live_runs where claim_id = 77")
    ]
    beside.completer.submit([beside.result(ref) for ref in mine], beside.session)
    results = [beside.result(ref) for ref in theirs]
    for result in results:
        result.session_id = other.session_id
    beside.completer.submit(results, other)
    assert await beside.step(0)
    assert (beside.received.answers, received.answers) == ([Verdict.ACCEPTED] * 2, [])
    beside.let_go()
    assert await beside.step(PUT_OFF)
    assert received.answers == [Verdict.ACCEPTED] * 2


async def test_who_keeps_the_next_run_of_a_schedule_from_its_turn_stops_that_schedule_only(beside: Beside) -> None:
    """The lock is on no row that was reported: the group is halved."""
    schedule = make_schedule(beside.admin, beside.job)
    exclusive: dict[str, Any] = {"schedule_id": schedule, "revision": 1, "exclusive": True}
    refs = [*await beside.claimed(1, **exclusive, followed=True), *await beside.claimed(6)]
    waits = make_live_run(beside.admin, beside.job, at=START, **exclusive, blocked=True)
    beside.lock(AttemptRef(waits, 1, 0))
    assert await beside.said(*map(beside.result, refs)) == [Verdict.ACCEPTED] * 6
    assert beside.states() == dict.fromkeys((ref.run_id for ref in refs[1:]), "COMPLETED")
    beside.let_go()
    beside.received.verdicts.clear()
    assert await beside.step(PUT_OFF)
    assert beside.received.answers == [Verdict.ACCEPTED]
    assert rows(beside.admin, "select run_id from carillon.live_runs where not blocked") == [(waits,)]


async def test_after_a_minute_it_counts_as_set_aside_and_is_tried_again_every_half_minute(beside: Beside) -> None:
    (ref,) = await beside.claimed()
    beside.lock(ref)
    with capture_logs() as logs:
        assert await beside.said(beside.result(ref)) == []
        at = 0.0
        while at < LONGEST_PUT_OFF:
            assert beside.completer.set_aside == 0
            at += PUT_OFF
            assert not await beside.step(at)
        for _ in range(5):
            assert not await beside.step(at)
            assert beside.completer.set_aside == 1
            at += LONGEST_LOCK_PAUSE + FIRST_PAUSE
    assert [line["log_level"] for line in logs] == ["warning", "error"]
    beside.let_go()
    assert await beside.step(at)
    assert (beside.received.answers, beside.completer.set_aside) == ([Verdict.ACCEPTED], 0)


async def test_items_of_a_locked_run_wait_with_its_result_and_come_before_it(beside: Beside) -> None:
    locked, free = await beside.claimed(2)
    beside.lock(locked)
    items = {
        ref: [ItemResult(ref, beside.session.session_id, key, succeeded=True) for key in "ab"] for ref in (locked, free)
    }
    beside.completer.submit_items([*items[locked], *items[free]], beside.session)
    assert await beside.step(0)
    written = "select run_id, key from carillon.items order by key"
    assert rows(beside.admin, written) == [(free.run_id, "a"), (free.run_id, "b")]
    again = ItemResult(locked, beside.session.session_id, "a", succeeded=False)
    last = ItemResult(locked, beside.session.session_id, "c", succeeded=True)
    beside.completer.submit_items([again, last], beside.session)
    assert await beside.said(beside.result(locked), beside.result(free)) == [Verdict.ACCEPTED]
    beside.let_go()
    beside.received.verdicts.clear()
    assert await beside.step(PUT_OFF)
    assert beside.received.answers == [Verdict.ACCEPTED]
    of_locked = "select key, succeeded from carillon.items where run_id = %s order by key"
    assert rows(beside.admin, of_locked, locked.run_id) == [("a", True), ("b", True), ("c", True)]
    assert beside.completer.room.used_by(beside.session) == 0


async def test_items_alone_are_written_once_their_run_is_free(beside: Beside) -> None:
    (ref,) = await beside.claimed()
    beside.lock(ref)
    beside.completer.submit_items([ItemResult(ref, beside.session.session_id, "a", succeeded=True)], beside.session)
    assert await beside.step(0)
    beside.let_go()
    await beside.step(PUT_OFF)
    assert rows(beside.admin, "select key from carillon.items") == [("a",)]
    assert await beside.said(beside.result(ref)) == [Verdict.ACCEPTED], "it waits for nothing any more"


async def test_a_locked_run_that_is_anothers_when_it_is_free_is_refused_by_name(beside: Beside) -> None:
    (ref,) = await beside.claimed()
    beside.lock(ref)
    assert await beside.said(beside.result(ref)) == []
    beside.somebody.execute("update carillon.live_runs set attempt = attempt + 1")
    beside.somebody.commit()
    assert await beside.step(PUT_OFF)
    assert beside.received.answers == [Verdict.STALE]


async def test_nothing_of_the_wait_stays_with_the_connection(beside: Beside) -> None:
    """Behind PgBouncer, the next transaction on it is somebody else's."""
    refs = await beside.claimed(3)
    assert await beside.said(beside.result(refs[0])) == [Verdict.ACCEPTED]
    assert await beside.said(beside.failure(refs[1])) == [Verdict.ACCEPTED]
    shown = await (await beside.hot.execute("show lock_timeout")).fetchone()
    assert shown == ("0",)
