"""Looking ahead: what people read of the next occurrences, and the marks of clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from scheduler_service.domain.preview import PreviewedOccurrence, Transition, offset_text, previewed
from scheduler_service.domain.schedule import InForce
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy

HOUR = timedelta(hours=1)
NONE = Transition.NONE


def says(cron: str, time_zone: str = "America/New_York", repeat: RepeatPolicy = RepeatPolicy.FIRST) -> InForce:
    return InForce(True, cron, time_zone, GapPolicy.SHIFT, repeat, timedelta(), timedelta())


def read(found: list[PreviewedOccurrence]) -> list[tuple[str, str, Transition]]:
    return [(each.occurrence.local.isoformat(), offset_text(each.utc_offset), each.transition) for each in found]


def test_a_time_that_the_clock_leaves_out_is_shifted_and_the_next_has_another_offset() -> None:
    found = previewed(says("30 2 * * *"), datetime(2026, 3, 6, 12, tzinfo=UTC), None, 4)
    assert read(found) == [
        ("2026-03-07T02:30:00", "-05:00", NONE),
        ("2026-03-08T02:30:00", "-04:00", Transition.SHIFTED),
        ("2026-03-09T02:30:00", "-04:00", NONE),
        ("2026-03-10T02:30:00", "-04:00", NONE),
    ]
    assert found[1].occurrence.instant == datetime(2026, 3, 8, 7, tzinfo=UTC)


def test_a_time_that_comes_twice_says_which_of_the_two_it_is() -> None:
    since = datetime(2026, 11, 1, 4, tzinfo=UTC)
    assert read(previewed(says("30 1 * * *"), since, None, 2)) == [
        ("2026-11-01T01:30:00", "-04:00", Transition.FIRST_OF_TWO),
        ("2026-11-02T01:30:00", "-05:00", Transition.OFFSET_CHANGED),
    ]
    assert read(previewed(says("30 1 * * *", repeat=RepeatPolicy.BOTH), since, None, 3)) == [
        ("2026-11-01T01:30:00", "-04:00", Transition.FIRST_OF_TWO),
        ("2026-11-01T01:30:00", "-05:00", Transition.SECOND_OF_TWO),
        ("2026-11-02T01:30:00", "-05:00", NONE),
    ]


def test_an_interval_knows_the_clock_as_well() -> None:
    found = previewed(says("@every 30m"), datetime(2026, 11, 1, 4, 31, tzinfo=UTC), None, 7)
    marks = [(local[11:16], mark) for local, _, mark in read(found)]
    first, second = Transition.FIRST_OF_TWO, Transition.SECOND_OF_TWO
    assert marks == [
        *(("01:00", first), ("01:30", first), ("01:00", second), ("01:30", second)),
        *(("02:00", NONE), ("02:30", NONE), ("03:00", NONE)),
    ]


@pytest.mark.parametrize(
    ("cron", "first_after_the_change"),
    [
        ("0 9 * * *", "2026-03-08"),
        ("0 9 * * 1", "2026-03-09"),
        ("0 9 20 * *", "2026-03-20"),
        ("0 9 1 6 *", "2026-06-01"),
    ],
)
def test_the_first_one_is_compared_with_the_one_before_it(cron: str, first_after_the_change: str) -> None:
    # The clocks went forward on the 8th at 07:00 UTC.
    first, second = read(previewed(says(cron), datetime(2026, 3, 8, 8, tzinfo=UTC), None, 2))
    marked = Transition.OFFSET_CHANGED if cron != "0 9 1 6 *" else NONE  # last June was summer time, too
    assert first == (f"{first_after_the_change}T09:00:00", "-04:00", marked)
    assert second[2] is NONE


def test_a_yearly_one_is_compared_with_last_years() -> None:
    # Last year's was a day before the clocks went forward, this year's is hours after.
    (first,) = read(previewed(says("0 9 8 3 *"), datetime(2026, 3, 8, 8, tzinfo=UTC), None, 1))
    assert first == ("2026-03-08T09:00:00", "-04:00", Transition.OFFSET_CHANGED)


def test_a_zone_whose_clock_stands_still_has_no_marks() -> None:
    found = previewed(says("0 * * * *", "Asia/Kathmandu"), datetime(2026, 3, 1, tzinfo=UTC), None, 1000)
    assert {each.transition for each in found} == {NONE}
    assert {offset_text(each.utc_offset) for each in found} == {"+05:45"}


def test_it_ends_at_its_count_and_at_until() -> None:
    since = datetime(2026, 3, 1, tzinfo=UTC)
    assert len(previewed(says("0 * * * *", "UTC"), since, since + 3 * HOUR, 10)) == 3
    assert len(previewed(says("0 * * * *", "UTC"), since, since + 3 * HOUR, 2)) == 2
    assert previewed(says("0 * * * *", "UTC"), since, since - HOUR, 2) == []


def test_nothing_is_owed_before_1970() -> None:
    found = previewed(says("0 * * * *", "UTC"), datetime(1, 1, 1, tzinfo=UTC), None, 1)
    assert [each.occurrence.instant for each in found] == [datetime(1970, 1, 1, 1, tzinfo=UTC)]


def test_jitter_is_the_schedules_own_and_keeps_the_order() -> None:
    in_force = InForce(
        True, "*/10 * * * *", "UTC", GapPolicy.SHIFT, RepeatPolicy.FIRST, timedelta(), timedelta(minutes=30)
    )
    since = datetime(2026, 3, 1, tzinfo=UTC)
    proposed = previewed(in_force, since, None, 3)
    assert [each.start_at - each.occurrence.instant for each in proposed] == [timedelta()] * 3
    offsets = {
        schedule_id: {
            each.start_at - each.occurrence.instant
            for each in previewed(in_force, since, None, 3, schedule_id=schedule_id)
        }
        for schedule_id in range(1, 20)
    }
    assert all(len(each) == 1 and timedelta() <= min(each) < timedelta(minutes=10) for each in offsets.values())
    assert len({min(each) for each in offsets.values()}) > 10


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (timedelta(), "+00:00"),
        (timedelta(hours=-4), "-04:00"),
        (timedelta(hours=-9, minutes=-30), "-09:30"),
        (timedelta(hours=14), "+14:00"),
        (timedelta(minutes=-44, seconds=-30), "-00:44:30"),
    ],
)
def test_an_offset_is_written_with_its_sign(offset: timedelta, text: str) -> None:
    assert offset_text(offset) == text


def test_monrovias_old_local_time_has_seconds() -> None:
    (first,) = previewed(says("0 12 * * *", "Africa/Monrovia"), datetime(1971, 6, 1, tzinfo=UTC), None, 1)
    assert offset_text(first.utc_offset) == "-00:44:30"
