"""What a due schedule owes: on time, late, missed, and how far that settles it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.timing import (
    CatchUp,
    Missed,
    Settlement,
    Timing,
    count,
    next_occurrence,
    occurrences,
    settle,
)

HOURLY = Timing.of("0 * * * *")
NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


def due_at(settlement: Settlement) -> list[tuple[datetime, bool]]:
    return [(each.occurrence.instant, each.late) for each in settlement.due]


@pytest.mark.parametrize("catch_up", list(CatchUp))
def test_an_occurrence_59_seconds_late_is_on_time_whatever_the_policy(catch_up: CatchUp) -> None:
    found = settle(HOURLY, NOON - HOUR, NOON + 59 * SECOND, catch_up=catch_up)
    assert due_at(found) == [(NOON, False)]
    assert found.missed == ()
    assert found.settled_to == NOON
    assert found.next == next_occurrence(HOURLY, NOON)


def test_an_occurrence_60_seconds_late_is_caught_up_or_missed() -> None:
    now = NOON + 60 * SECOND
    assert due_at(settle(HOURLY, NOON - HOUR, now, catch_up=CatchUp.LATEST)) == [(NOON, True)]
    assert due_at(settle(HOURLY, NOON - HOUR, now, catch_up=CatchUp.ALL)) == [(NOON, True)]
    none = settle(HOURLY, NOON - HOUR, now, catch_up=CatchUp.NONE)
    assert none.due == ()
    assert none.missed == (Missed(NOON, NOON, 1, "catch_up_none"),)
    assert none.settled_to == NOON


@pytest.mark.parametrize("catch_up", list(CatchUp))
def test_before_the_next_occurrence_nothing_is_owed_and_nothing_moves(catch_up: CatchUp) -> None:
    found = settle(HOURLY, NOON, NOON + HOUR - SECOND, catch_up=catch_up)
    assert found == Settlement((), (), NOON, next_occurrence(HOURLY, NOON))


@pytest.mark.parametrize("catch_up", list(CatchUp))
def test_a_clock_that_went_back_moves_nothing_back(catch_up: CatchUp) -> None:
    found = settle(HOURLY, NOON, NOON - 400 * HOUR, catch_up=catch_up)
    assert found == Settlement((), (), NOON, next_occurrence(HOURLY, NOON))


def test_none_misses_all_that_is_late_in_one_stretch_and_runs_what_is_on_time() -> None:
    found = settle(HOURLY, NOON - 100 * HOUR, NOON + SECOND, catch_up=CatchUp.NONE)
    assert due_at(found) == [(NOON, False)]
    assert found.missed == (Missed(NOON - 99 * HOUR, NOON - HOUR, 99, "catch_up_none"),)


def test_latest_runs_only_the_latest_late_one() -> None:
    found = settle(HOURLY, NOON - 5 * HOUR, NOON + 1800 * SECOND, catch_up=CatchUp.LATEST)
    assert due_at(found) == [(NOON, True)]
    assert found.missed == (Missed(NOON - 4 * HOUR, NOON - HOUR, 4, "catch_up_latest"),)
    assert found.settled_to == NOON


def test_latest_catches_nothing_up_beside_an_occurrence_on_time() -> None:
    found = settle(HOURLY, NOON - 5 * HOUR, NOON + SECOND, catch_up=CatchUp.LATEST)
    assert due_at(found) == [(NOON, False)]
    assert found.missed == (Missed(NOON - 4 * HOUR, NOON - HOUR, 4, "catch_up_latest"),)


def test_what_is_older_than_the_window_is_missed_for_that_reason() -> None:
    now = NOON + 1800 * SECOND
    found = settle(HOURLY, NOON - 50 * HOUR, now, catch_up=CatchUp.LATEST)
    assert due_at(found) == [(NOON, True)]
    assert found.missed == (
        Missed(NOON - 49 * HOUR, NOON - 24 * HOUR, 26, "outside_window"),
        Missed(NOON - 23 * HOUR, NOON - HOUR, 23, "catch_up_latest"),
    )


def test_exactly_the_window_late_is_within_it() -> None:
    found = settle(HOURLY, NOON - 3 * HOUR, NOON + 2 * HOUR, catch_up=CatchUp.ALL, window=2 * HOUR)
    assert due_at(found) == [(NOON, True), (NOON + HOUR, True), (NOON + 2 * HOUR, False)]
    assert found.missed == (Missed(NOON - 2 * HOUR, NOON - HOUR, 2, "outside_window"),)


def test_latest_outside_the_window_is_missed() -> None:
    daily = Timing.of("0 12 * * *")
    found = settle(daily, NOON - 24 * HOUR, NOON + 3 * HOUR, catch_up=CatchUp.LATEST, window=2 * HOUR)
    assert found.due == ()
    assert found.missed == (Missed(NOON, NOON, 1, "outside_window"),)
    assert found.settled_to == NOON


def test_a_window_shorter_than_a_minute_does_not_touch_what_is_on_time() -> None:
    found = settle(HOURLY, NOON - HOUR, NOON + 30 * SECOND, catch_up=CatchUp.ALL, window=timedelta())
    assert due_at(found) == [(NOON, False)]
    assert found.missed == ()


def test_the_limit_leaves_the_rest_for_the_next_settlement() -> None:
    now = NOON + SECOND
    first = settle(HOURLY, NOON - 10 * HOUR, now, catch_up=CatchUp.ALL, limit=4)
    assert due_at(first) == [(NOON - hours * HOUR, True) for hours in (9, 8, 7, 6)]
    assert first.settled_to == NOON - 6 * HOUR
    assert first.next is not None
    assert first.next.instant == NOON - 5 * HOUR
    second = settle(HOURLY, first.settled_to, now, catch_up=CatchUp.ALL, limit=100)
    assert due_at(second)[-1] == (NOON, False)
    assert len(second.due) == 6


def test_each_occurrence_on_time_is_due_even_when_many_are() -> None:
    every_second = Timing.of("@every 1s")
    found = settle(every_second, NOON - 30 * SECOND, NOON, catch_up=CatchUp.LATEST)
    assert due_at(found) == [(NOON - seconds * SECOND, False) for seconds in range(29, -1, -1)]


def test_latest_passes_over_what_is_late_but_never_what_is_on_time() -> None:
    every_second = Timing.of("@every 1s")
    found = settle(every_second, NOON - 100 * SECOND, NOON, catch_up=CatchUp.LATEST)
    assert due_at(found) == [(NOON - seconds * SECOND, False) for seconds in range(59, -1, -1)]
    assert found.missed == (Missed(NOON - 99 * SECOND, NOON - 60 * SECOND, 40, "catch_up_latest"),)


def test_a_year_of_outage_is_one_row_with_a_count() -> None:
    every_minute = Timing.of("* * * * *", "Europe/Berlin")
    start = NOON - timedelta(days=365)
    found = settle(every_minute, start, NOON + 30 * SECOND, catch_up=CatchUp.LATEST)
    assert due_at(found) == [(NOON, False)]
    assert sum(gap.count for gap in found.missed) == 365 * 1440 - 1
    assert [gap.reason for gap in found.missed] == ["outside_window", "catch_up_latest"]


@given(
    st.sampled_from(["*/7 * * * *", "0 * * * *", "30 2 * * *", "@every 50s", "0 0 * * 1#2,5"]),
    st.sampled_from(list(CatchUp)),
    st.timedeltas(timedelta(), timedelta(days=3)),
    st.timedeltas(timedelta(), timedelta(days=2)),
    st.integers(1, 50),
)
def test_every_occurrence_is_settled_exactly_once(
    expression: str, catch_up: CatchUp, outage: timedelta, window: timedelta, limit: int
) -> None:
    timing = Timing.of(expression, "America/New_York")
    start = datetime(2026, 10, 31, 3, 17, 5, tzinfo=UTC)
    now = start + outage
    settled_to, due, missed = start, [], 0
    while (following := next_occurrence(timing, settled_to)) and following.instant <= now:
        found = settle(timing, settled_to, now, catch_up=catch_up, window=window, limit=limit)
        assert found.settled_to > settled_to
        assert len(found.due) <= limit
        assert found.next == next_occurrence(timing, found.settled_to)
        assert all(
            gap.count == count(timing, settled_to, gap.last) - count(timing, settled_to, gap.first) + 1
            for gap in found.missed
        )
        settled_to = found.settled_to
        due += [each.occurrence for each in found.due]
        missed += sum(gap.count for gap in found.missed)
    owed = list(occurrences(timing, start, now))
    assert len(due) + missed == len(owed)
    assert set(due) <= set(owed)
    assert len(set(due)) == len(due)
    assert {each for each in owed if now - each.instant < timedelta(seconds=60)} <= set(due)
    late = [each for each in due if now - each.instant >= timedelta(seconds=60)]
    assert all(now - each.instant <= window for each in late)
    assert len(late) <= {CatchUp.NONE: 0, CatchUp.LATEST: 1, CatchUp.ALL: len(owed)}[catch_up]
