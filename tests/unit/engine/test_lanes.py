"""Who is next, and who has to wait, among sessions that report more than can be written."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID, uuid4

from scheduler_service.engine.lanes import Entry, Lanes, Room
from scheduler_service.engine.sessions import ConnectedSession
from tests.store.engine_case import Received


def a_session(principal: str = "worker:*", session_id: UUID | None = None) -> ConnectedSession:
    return ConnectedSession(session_id or uuid4(), "w", frozenset({"http"}), 1, Received(), principal=principal)


def put(lanes: Lanes[int], session: ConnectedSession, count: int, weight: int = 1) -> None:
    lanes.put(session, [Entry(number, session, weight) for number in range(count)])


def taken(lanes: Lanes[int], most: int) -> Counter[ConnectedSession]:
    return Counter(entry.session for entry in lanes.take(most))


def test_one_session_alone_gets_all_of_a_group_in_its_order() -> None:
    lanes: Lanes[int] = Lanes()
    session = a_session()
    put(lanes, session, 7)
    assert [entry.report for entry in lanes.take(5)] == [0, 1, 2, 3, 4]
    assert [entry.report for entry in lanes.take(5)] == [5, 6]
    assert (lanes.take(5), len(lanes)) == ([], 0)


def test_sessions_of_a_principal_share_a_group() -> None:
    lanes: Lanes[int] = Lanes()
    flood, small = a_session(), a_session()
    put(lanes, flood, 10_000)
    put(lanes, small, 30)
    assert taken(lanes, 100) == {flood: 70, small: 30}


def test_principals_share_a_group_however_many_sessions_they_have() -> None:
    lanes: Lanes[int] = Lanes()
    for _ in range(500):
        put(lanes, a_session("service:kpi"), 1_000)
    small = a_session()
    put(lanes, small, 500)
    assert taken(lanes, 1_000)[small] == 500


def test_with_more_sessions_than_fit_into_a_group_each_has_its_turn() -> None:
    lanes: Lanes[int] = Lanes()
    sessions = [a_session(principal) for principal in ("a", "b") for _ in range(20)]
    for session in sessions:
        put(lanes, session, 100)
    counts: Counter[ConnectedSession] = Counter()
    for _ in range(8):
        counts += taken(lanes, 10)
    assert set(counts.values()) == {2}
    assert len(counts) == 40


def test_heavy_entries_fill_a_group_sooner() -> None:
    lanes: Lanes[int] = Lanes()
    heavy, light = a_session(), a_session()
    put(lanes, heavy, 100, weight=10)
    put(lanes, light, 100)
    assert taken(lanes, 100) == {heavy: 5, light: 50}


def test_both_streams_of_a_session_share_its_lane() -> None:
    lanes: Lanes[int] = Lanes()
    older = a_session()
    newer = a_session(session_id=older.session_id)
    put(lanes, older, 2)
    put(lanes, newer, 2)
    assert [entry.session for entry in lanes.take(3)] == [older, older, newer]


def test_the_room_is_shared_among_those_that_use_it() -> None:
    room = Room(100, least=10)
    one, other = a_session(), a_session()
    room.use(one, 100)
    assert room.is_left_for(one)
    room.use(other, 1)
    assert not room.is_left_for(one)
    assert room.is_left_for(other)
    room.free({other.session_id: 1})
    assert room.is_left_for(one)


def test_a_little_room_is_left_however_many_share_it() -> None:
    room = Room(100, least=10)
    sessions = [a_session() for _ in range(50)]
    for session in sessions:
        room.use(session, 10)
    assert all(map(room.is_left_for, sessions))
    room.use(sessions[0], 1)
    assert [room.is_left_for(session) for session in sessions[:2]] == [False, True]


async def test_who_waits_goes_on_once_enough_is_written() -> None:
    room = Room(100, least=10)
    session = a_session()
    room.use(session, 300)
    waiting = [asyncio.ensure_future(room.wait(session)) for _ in range(2)]
    await asyncio.sleep(0)
    room.free({session.session_id: 100})
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    room.free({session.session_id: 100})
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
