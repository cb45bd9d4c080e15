"""The delay that is a schedule's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.timing import Occurrence, Timing, jitter_offset, next_occurrence

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MINUTELY = Timing.of("* * * * *")


def occurrence_after(instant: datetime) -> Occurrence:
    found = next_occurrence(MINUTELY, instant)
    assert found is not None
    return found


FIRST = occurrence_after(NOON)
SECOND = occurrence_after(FIRST.instant)


@given(st.text(max_size=40), st.timedeltas(timedelta(), timedelta(days=2)))
def test_the_offset_is_within_the_jitter_and_before_the_following_occurrence(key: str, jitter: timedelta) -> None:
    offset = jitter_offset(key, jitter, FIRST, SECOND)
    assert timedelta() <= offset <= jitter
    assert FIRST.instant + offset < SECOND.instant
    assert timedelta() <= jitter_offset(key, jitter, FIRST, None) <= jitter


def test_the_offset_is_the_same_on_every_machine_and_differs_between_schedules() -> None:
    offsets = [jitter_offset(f"schedule-{n}", timedelta(seconds=30), FIRST, SECOND) for n in range(200)]
    assert offsets[0] == timedelta(microseconds=22977339)
    assert len(set(offsets)) == 200
    assert min(offsets) < timedelta(seconds=3)
    assert max(offsets) > timedelta(seconds=27)


def test_no_jitter_is_no_delay() -> None:
    assert jitter_offset("any", timedelta(), FIRST, SECOND) == timedelta()
