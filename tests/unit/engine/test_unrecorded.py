"""Results that cannot be recorded now: what they take of their sessions' room, and what of memory."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Result
from scheduler_service.engine.lanes import Entry
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.engine.set_aside import FIRST_PAUSE, LONGEST_PUT_OFF, PUT_OFF
from scheduler_service.engine.unrecorded import Unrecorded

BAD = psycopg.errors.CheckViolation("no partition")
LOCKED = psycopg.errors.LockNotAvailable("somebody has it")


class Nowhere:
    """A stream that nothing is sent on."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} was asked for")


SESSION = ConnectedSession(uuid4(), "w", frozenset({"http"}), 1, Nowhere())  # type: ignore[arg-type]  # as it says


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_ref() -> AttemptRef:
    return AttemptRef(uuid4(), 1, 1)


def a_result(ref: AttemptRef, weight: int = 5, session_id: UUID = SESSION.session_id) -> Entry[Result]:
    return Entry(Result(ref, session_id, "COMPLETED"), SESSION, weight)


def an_item(ref: AttemptRef, key: str, weight: int = 1) -> Entry[ItemResult]:
    return Entry(ItemResult(ref, SESSION.session_id, key, succeeded=True), SESSION, weight)


def test_what_is_kept_takes_no_room_until_all_of_it_weighs_too_much() -> None:
    unrecorded = Unrecorded(Clock(), most=10)
    first, second, third = a_result(a_ref()), a_result(a_ref()), a_result(a_ref())
    assert unrecorded.add(first, BAD) == [first]
    assert unrecorded.add(second, LOCKED) == [second]
    assert unrecorded.add(third, BAD) == []
    assert unrecorded.forget(third.report.ref) == [third]
    assert unrecorded.add(third, BAD) == []
    assert unrecorded.forget(first.report.ref) == []
    fourth = a_result(a_ref())
    assert unrecorded.add(fourth, BAD) == [fourth], "the first one's place is free"


def test_one_that_fails_again_is_counted_once() -> None:
    unrecorded = Unrecorded(Clock(), most=5)
    entry = a_result(a_ref())
    assert unrecorded.add(entry, BAD) == [entry]
    assert unrecorded.add(entry, BAD) == []
    unrecorded.forget(entry.report.ref)
    other = a_result(a_ref())
    assert unrecorded.add(other, BAD) == [other]


def test_what_comes_again_takes_the_others_place_and_its_room() -> None:
    unrecorded = Unrecorded(Clock(), most=5)
    ref = a_ref()
    first, again, larger = a_result(ref), a_result(ref), a_result(ref, weight=6)
    assert unrecorded.add(first, BAD) == [first]
    assert unrecorded.replace(again) == [again]
    assert unrecorded.replace(larger) == [], "it keeps its room"
    assert unrecorded.replace(first) == [larger, first]
    assert unrecorded.forget(ref) == []


def test_of_an_item_the_first_result_stays() -> None:
    unrecorded = Unrecorded(Clock(), most=2)
    ref = a_ref()
    unrecorded.put_off(ref, LOCKED)
    first, again, second, third = (an_item(ref, key) for key in "aabc")
    assert unrecorded.add_item(first) == [first]
    assert unrecorded.add_item(again) == [again]
    assert unrecorded.add_item(second) == [second]
    assert unrecorded.add_item(third) == []
    assert unrecorded.forget(ref) == [third]


def test_what_is_locked_rests_for_a_second_and_what_cannot_be_recorded_for_five() -> None:
    clock = Clock()
    unrecorded = Unrecorded(clock, most=100)
    bad, locked = a_result(a_ref()), a_result(a_ref())
    item = an_item(locked.report.ref, "a")
    unrecorded.add(bad, BAD)
    unrecorded.add(locked, LOCKED)
    unrecorded.add_item(item)
    assert (unrecorded.due(), unrecorded.due_locked(10)) == ([], ([], []))
    clock.now = PUT_OFF
    assert (unrecorded.due(), unrecorded.due_locked(10)) == ([], ([item], [locked]))
    clock.now = FIRST_PAUSE
    assert unrecorded.due() == [bad]
    assert unrecorded.due_locked(0) == ([], [])


def test_it_says_whether_some_are_locked_and_counts_those_that_are_so_for_a_minute() -> None:
    clock = Clock()
    unrecorded = Unrecorded(clock, most=100)
    entry = a_result(a_ref())
    assert not unrecorded.some_locked
    unrecorded.add(entry, LOCKED)
    assert (unrecorded.some_locked, len(unrecorded), entry.report.ref in unrecorded) == (True, 0, True)
    while clock.now < LONGEST_PUT_OFF:
        clock.now += PUT_OFF
        unrecorded.put_off(entry.report.ref, LOCKED)
    assert len(unrecorded) == 1
    unrecorded.put_off(entry.report.ref, BAD)
    assert (unrecorded.some_locked, unrecorded.is_locked(entry.report.ref), len(unrecorded)) == (False, False, 1)
    unrecorded.forget(entry.report.ref)
    assert (len(unrecorded), entry.report.ref in unrecorded) == (0, False)
