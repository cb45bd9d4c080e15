"""Lost sessions that held very many runs, taken back by small steps: none holds much at once, or the small ones up."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from scheduler_service.domain.repairs import Repair
from scheduler_service.engine import leaving, reap
from scheduler_service.engine.leaving import end_session
from scheduler_service.engine.reap import LOOK_THROUGH_SECONDS, Reaped
from scheduler_service.store import stuck
from scheduler_service.store.database import Database
from tests.builders import make_session
from tests.store.engine_case import Connection, rows
from tests.store.repairs_case import NOW, House

Admin = psycopg.Connection[Any]
LIMIT = 6


@pytest.fixture
def house(database: Database, admin: Admin, hot: Connection, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(reap, "LIMIT", LIMIT)
    monkeypatch.setattr(reap, "SESSIONS", 4)
    monkeypatch.setattr(leaving, "LIMIT", LIMIT)
    return House(database, admin, hot)


def holding(house: House, runs: int, worker: str = "w", *, lost: bool = True) -> UUID:
    session_id = make_session(house.admin, worker)
    for _ in range(runs):
        house.held(session_id)
    if lost:
        house.lose(session_id)
    return session_id


def held_by(house: House, *sessions: UUID) -> int:
    ((held,),) = rows(house.admin, "select count(*) from carillon.live_runs where session_id = any(%s)", list(sessions))
    return int(held)


async def steps(house: House) -> list[Reaped]:
    taken: list[Reaped] = []
    while reaped := await house.step():
        taken.append(reaped)
    return taken


async def test_many_sessions_end_by_steps_each_with_all_that_it_held(house: House) -> None:
    sessions = [holding(house, 4) for _ in range(7)]
    before = len(sessions)
    while reaped := await house.step():
        left = rows(house.admin, "select session_id from carillon.sessions")
        assert held_by(house, *sessions) == 4 * len(left), "no session ends without its runs"
        assert reaped.charged <= LIMIT
        assert before - len(left) == reaped.sessions
        before = len(left)
    assert (before, held_by(house, *sessions)) == (0, 0)
    assert house.reaper.repairs == {Repair.SESSION_LOST: 7, Repair.WORKER_LOST: 28}


async def test_one_that_held_very_many_ends_at_once_and_its_runs_come_back_by_steps(house: House) -> None:
    giant = holding(house, 40, "giant")
    first = await house.step()
    assert (first.sessions, rows(house.admin, "select from carillon.sessions")) == (1, [])
    assert 0 < first.charged <= 2 * LIMIT
    rest = await steps(house)
    assert max(each.charged for each in rest) <= LIMIT
    assert (first.charged + sum(each.charged for each in rest), held_by(house, giant)) == (40, 0)
    assert house.reaper.repairs == {Repair.SESSION_LOST: 1, Repair.WORKER_LOST: 40}, "and all are told of as its runs"
    assert rows(house.admin, "select distinct worker from carillon.attempts") == [("giant",)]


async def test_those_of_a_few_runs_do_not_wait_for_those_of_very_many(house: House) -> None:
    giants = [holding(house, 30) for _ in range(2)]
    small = [holding(house, 2) for _ in range(2)]
    await house.step()
    assert held_by(house, *small) == 0
    assert held_by(house, *giants) > 0


async def test_runs_of_sessions_that_are_gone_come_back_in_turn(house: House) -> None:
    """As another replica left them, which has ended the sessions and died."""
    sessions = sorted(holding(house, runs, lost=False) for runs in (20, 20, 20))
    house.admin.execute(
        "delete from carillon.live_runs where ctid in (select ctid from carillon.live_runs"
        " where session_id = %s limit 18)",
        [sessions[-1]],
    )
    house.admin.execute("delete from carillon.sessions")
    assert (await house.step()).charged == LIMIT
    assert held_by(house, sessions[-1]) == 0
    await steps(house)
    assert held_by(house, *sessions) == 0


async def test_a_session_that_somebody_has_locked_keeps_no_other_waiting(house: House, other: Connection) -> None:
    sessions = [holding(house, 1) for _ in range(6)]
    locked = sorted(sessions)[:5]
    async with other.transaction():
        await other.execute("select from carillon.sessions where session_id = any(%s) for key share", [locked])
        await steps(house)
        assert held_by(house, *sessions) == 5
    await steps(house)
    assert held_by(house, *sessions) == 0


async def test_all_claimed_runs_are_looked_at_for_overdue_ones_no_more_often_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    find = stuck.find

    async def counting(connection: Connection, kind: stuck.Stuck, *args: Any, **more: Any) -> list[UUID]:
        nonlocal looks
        looks += kind is stuck.OVERDUE
        return await find(connection, kind, *args, **more)

    monkeypatch.setattr(stuck, "find", counting)
    holding(house, 40)
    assert len(await steps(house)) > 5
    assert looks == 1
    await house.step(LOOK_THROUGH_SECONDS)
    assert looks == 2


class TestGoodbye:
    @pytest.mark.parametrize("runs", [0, 1, LIMIT, LIMIT + 1, 4 * LIMIT])
    async def test_a_worker_that_leaves_gives_up_all_that_it_holds_by_steps(self, house: House, runs: int) -> None:
        session_id = holding(house, runs, lost=False)
        left: list[int] = []
        await end_session(house.database, session_id, 1, lambda: left.append(held_by(house, session_id)), now=NOW)
        assert left == [each for each in range(runs - LIMIT, -LIMIT, -LIMIT) if each > 0] + [0] * (runs > 0)
        assert rows(house.admin, "select from carillon.sessions") == []
        assert set(rows(house.admin, "select error ->> 'code' from carillon.attempts")) <= {("WORKER_LEFT",)}
        assert len(house.live()) == runs

    async def test_nobody_takes_the_rest_for_lost_meanwhile(self, house: House) -> None:
        session_id = holding(house, 3 * LIMIT, lost=False)
        there: list[int] = []
        await end_session(
            house.database,
            session_id,
            1,
            lambda: there.append(len(rows(house.admin, "select from carillon.sessions"))),
            now=NOW,
        )
        assert there == [1, 1, 0], "its session stands until its last runs are free"

    async def test_of_a_session_that_went_on_with_another_stream_nothing_is_freed(self, house: House) -> None:
        session_id = holding(house, 2 * LIMIT, lost=False)
        house.admin.execute("update carillon.sessions set stream = 2")
        freed: list[None] = []
        await end_session(house.database, session_id, 1, lambda: freed.append(None), now=NOW)
        assert (freed, held_by(house, session_id)) == ([], 2 * LIMIT)
