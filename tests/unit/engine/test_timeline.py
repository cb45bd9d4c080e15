"""What was in force for a schedule at any time, against a reading of the same rows one instant at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.schedule import InForce
from scheduler_service.domain.timeline import JobChange, RevisionInForce, Stretch, timeline
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LAST_MINUTE = 12


def at(minute: int) -> datetime:
    return START + minute * MINUTE


def says(cron: str = "* * * * *", *, enabled: bool = True) -> InForce:
    return InForce(enabled, cron, "UTC", GapPolicy.SHIFT, RepeatPolicy.FIRST, timedelta(), timedelta())


def revision(number: int, minute: int, *, enabled: bool = True) -> RevisionInForce:
    return RevisionInForce(number, says(f"{number} * * * *", enabled=enabled), at(minute))


def owing_between(stretches: Sequence[Stretch]) -> list[tuple[int, datetime, datetime]]:
    return [(each.revision, each.after, each.until) for each in stretches if each.owing]


OWING = [JobChange(at(0), halted=False)]
minutes = st.integers(0, LAST_MINUTE)


@given(
    rows=st.lists(st.tuples(minutes, st.booleans()), max_size=6),
    changes=st.lists(st.tuples(minutes, st.booleans()), max_size=6),
    until=minutes,
)
def test_every_instant_is_in_the_stretch_that_the_rows_say(
    rows: list[tuple[int, bool]], changes: list[tuple[int, bool]], until: int
) -> None:
    revisions = [revision(number, minute, enabled=enabled) for number, (minute, enabled) in enumerate(rows, start=1)]
    halts = [JobChange(at(minute), halted=halted) for minute, halted in changes]
    stretches = timeline(revisions, halts, at(until))
    # Between whole minutes and on them: an instant on a change still belongs to what was before it.
    for half_minutes in range(2 * LAST_MINUTE + 3):
        instant = START + half_minutes * MINUTE / 2
        begun = [row for row in revisions if row.in_force_from < instant]
        halted = [change.halted for change in halts if change.in_force_from < instant]
        expected = []
        if begun and instant <= at(until):
            row = begun[-1]
            expected = [(row.revision, row.in_force, row.in_force.enabled and halted[-1:] == [False])]
        found = [each for each in stretches if each.after < instant <= each.until]
        assert [(each.revision, each.in_force, each.owing) for each in found] == expected


@given(
    rows=st.lists(st.tuples(minutes, st.booleans()), max_size=6),
    changes=st.lists(st.tuples(minutes, st.booleans()), max_size=6),
)
def test_stretches_are_in_order_and_neighbours_differ(
    rows: list[tuple[int, bool]], changes: list[tuple[int, bool]]
) -> None:
    revisions = [revision(number, minute, enabled=enabled) for number, (minute, enabled) in enumerate(rows, start=1)]
    stretches = timeline(revisions, [JobChange(at(m), halted=halted) for m, halted in changes], at(LAST_MINUTE))
    assert all(each.after < each.until for each in stretches)
    for before, after in pairwise(stretches):
        assert before.until == after.after
        assert (before.revision, before.owing) != (after.revision, after.owing)


def test_an_edit_ends_the_revision_before_it() -> None:
    stretches = timeline([revision(1, 1), revision(2, 5)], OWING, at(9))
    assert owing_between(stretches) == [(1, at(1), at(5)), (2, at(5), at(9))]


def test_a_pause_owes_nothing_and_a_resumed_schedule_counts_from_then_on() -> None:
    rows = [revision(1, 1), revision(2, 3, enabled=False), revision(3, 6)]
    assert owing_between(timeline(rows, OWING, at(9))) == [(1, at(1), at(3)), (3, at(6), at(9))]


def test_resuming_with_catch_up_owes_what_the_pause_had_left_out() -> None:
    rows = [revision(1, 1), revision(2, 3, enabled=False), revision(3, 3)]
    assert owing_between(timeline(rows, OWING, at(9))) == [(1, at(1), at(3)), (3, at(3), at(9))]


def test_a_resumed_job_that_catches_up_takes_back_its_halt() -> None:
    changes = [*OWING, JobChange(at(3), halted=True), JobChange(at(5), halted=False)]
    assert owing_between(timeline([revision(1, 1)], changes, at(9))) == [(1, at(1), at(3)), (1, at(5), at(9))]
    caught_up = [*changes[:2], JobChange(at(3), halted=False)]
    assert owing_between(timeline([revision(1, 1)], caught_up, at(9))) == [(1, at(1), at(9))]


def test_nothing_is_owed_before_the_jobs_first_change() -> None:
    assert owing_between(timeline([revision(1, 1)], [], at(9))) == []
    assert owing_between(timeline([revision(1, 1)], [JobChange(at(4), halted=False)], at(9))) == [(1, at(4), at(9))]
