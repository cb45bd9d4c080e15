"""Starts and progress beside a hand in the database that keeps a run locked: those of other runs go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.engine.report import PROGRESS_SECONDS, Reports
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.store.claim import claim
from scheduler_service.store.connection import Connection
from scheduler_service.store.patience import PATIENCE
from scheduler_service.store.progress import Progress, record_progress
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import make_job, make_live_run, make_session
from tests.store.engine_case import Received

PROMPT = 30.0
"""Seconds. Without us, PostgreSQL ends what waits for a lock after a minute."""


class Told(Received):
    """Also of what is to be stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[AttemptRef] = []

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        self.cancelled += attempts


class Beside:
    """A session with three claimed runs, and somebody who locks the one in the middle until `let_go`."""

    def __init__(self, admin: Any, hot: Connection, somebody: Any) -> None:
        self.admin = admin
        self.hot = hot
        self.somebody = somebody
        self.seconds = 100.0
        self.reports = Reports(Wakeups(), clock=lambda: self.seconds)
        self.received = Told()
        self.refs: list[AttemptRef] = []

    async def begin(self) -> None:
        job, session_id = make_job(self.admin), make_session(self.admin)
        for _ in range(3):
            make_live_run(self.admin, job)
        claimed = await claim(self.hot, session_id, ["http"], 3)
        assert claimed is not None
        self.refs = [AttemptRef(run.run_id, 1, claimed.claim_id) for run in claimed.runs]
        self.session = ConnectedSession(session_id, "worker-1", frozenset({"http"}), 1, self.received)
        self.somebody.execute("select from carillon.live_runs where run_id = %s for update", [self.refs[1].run_id])

    def listen(self) -> list[str]:
        """From now on: how each statement deals with what is locked."""
        heard: list[str] = []
        execute = self.hot.execute

        async def listening(query: Any, params: Any = None, **options: Any) -> Any:
            if "update carillon.live_runs" in query:
                heard.append("passes over" if "skip locked" in query else "waits")
            return await execute(query, params, **options)

        self.hot.execute = listening  # type: ignore[method-assign]  # it goes on to the real one
        return heard

    def let_go(self) -> None:
        self.somebody.rollback()

    async def step(self) -> bool:
        async with asyncio.timeout(PROMPT):
            return await self.reports.step(self.hot)

    async def settle(self) -> None:
        """Steps until nothing is to be done now."""
        while self.reports.seconds_to_next == 0.0:
            await self.step()

    def told(self, column: str) -> set[UUID]:
        """The runs that have something there."""
        query = f"select run_id from carillon.live_runs where {column} is not null"
        return {row[0] for row in self.admin.execute(query).fetchall()}


@pytest.fixture
async def beside(admin: Any, hot: Connection, somebody: Any) -> Beside:
    beside = Beside(admin, hot, somebody)
    await beside.begin()
    return beside


async def test_the_start_of_a_locked_run_is_noted_once_it_is_free_and_no_other_waits_for_it(beside: Beside) -> None:
    first, locked, last = (ref.run_id for ref in beside.refs)
    beside.reports.started(beside.session, [(ref, 0.0) for ref in beside.refs[:2]])
    await beside.settle()
    assert beside.told("started_at") == {first}
    assert beside.reports.seconds_to_next == pytest.approx(PATIENCE)
    beside.reports.started(beside.session, [(beside.refs[2], 0.0)])
    await beside.settle()
    assert beside.told("started_at") == {first, last}
    for _ in range(3):  # locked still
        beside.seconds += PATIENCE
        await beside.settle()
        assert beside.told("started_at") == {first, last}
    beside.let_go()
    beside.seconds += PATIENCE
    await beside.settle()
    assert beside.told("started_at") == {first, locked, last}
    assert beside.reports.seconds_to_next is None
    assert not beside.received.cancelled


async def test_while_something_is_locked_nobody_waits_for_it_again(beside: Beside) -> None:
    heard = beside.listen()
    beside.reports.started(beside.session, [(beside.refs[1], 0.0)])
    await beside.settle()
    assert heard == ["waits", "passes over"]
    beside.reports.started(beside.session, [(beside.refs[0], 0.0)])
    beside.reports.progressed(beside.session, [(beside.refs[2], (1, 10, ""))])
    await beside.settle()
    assert heard == ["waits"] + ["passes over"] * 3
    beside.seconds += 60
    beside.reports.progressed(beside.session, [(beside.refs[1], (1, 10, ""))])
    await beside.settle()
    assert heard[4:] == ["passes over", "waits", "passes over"], "its start, and progress, for which it is tried anew"


async def test_a_start_that_was_held_up_has_its_turn_however_many_others_are_after_it(beside: Beside) -> None:
    first, locked, _ = (ref.run_id for ref in beside.refs)
    beside.reports.started(beside.session, [(beside.refs[1], 0.0)])
    await beside.settle()
    beside.let_go()
    beside.somebody.execute("select from carillon.live_runs where run_id = %s for update", [first])
    for _ in range(3):
        beside.seconds += 0.4 * PATIENCE
        beside.reports.started(beside.session, [(beside.refs[0], 0.0)])
        await beside.settle()
    assert beside.told("started_at") == {locked}


async def test_starts_that_are_held_up_take_no_room_of_their_worker(beside: Beside) -> None:
    """Its heartbeats come by the same stream."""
    beside.somebody.execute("select from carillon.live_runs for update")
    for _ in range(2):  # a new stream tells them all again
        beside.reports.started(beside.session, [(ref, 0.0) for ref in beside.refs])
        await beside.settle()
    assert beside.reports.room.used_by(beside.session) == 0
    beside.let_go()
    beside.seconds += PATIENCE
    await beside.settle()
    assert len(beside.told("started_at")) == len(beside.refs)
    assert (beside.reports.room.used_by(beside.session), beside.reports.seconds_to_next) == (0, None)


async def test_who_sends_items_of_a_run_holds_up_nothing_of_it(beside: Beside) -> None:
    beside.let_go()
    beside.somebody.execute("select from carillon.live_runs for key share")
    progress = [Progress(ref.run_id, 1, ref.claim_id, beside.session.session_id, 1, 2, "") for ref in beside.refs]
    assert len(await record_progress(beside.hot, progress, pass_over_locked=True)) == len(beside.refs)


async def test_a_start_that_waited_for_a_lock_is_cancelled_if_the_run_was_taken_back_meanwhile(beside: Beside) -> None:
    beside.reports.started(beside.session, [(beside.refs[1], 0.0)])
    await beside.settle()
    beside.somebody.execute(
        "update carillon.live_runs set session_id = null, claim_id = null, claimed_at = null,"
        " deadline = null where run_id = %s",
        [beside.refs[1].run_id],
    )
    beside.somebody.commit()
    beside.seconds += PATIENCE
    await beside.settle()
    assert beside.received.cancelled == [beside.refs[1]]
    assert beside.told("started_at") == set()
    assert beside.reports.seconds_to_next is None


async def test_progress_of_a_locked_run_is_dropped_and_that_of_others_written(beside: Beside) -> None:
    first, locked, last = (ref.run_id for ref in beside.refs)
    beside.reports.progressed(beside.session, [(ref, (1, 10, "")) for ref in beside.refs])
    await beside.settle()
    assert beside.told("progress") == {first, last}
    assert beside.reports.seconds_to_next is None
    beside.let_go()
    beside.reports.progressed(beside.session, [(beside.refs[1], (2, 10, ""))])
    beside.seconds += PROGRESS_SECONDS
    await beside.settle()
    assert beside.told("progress") == {first, locked, last}
