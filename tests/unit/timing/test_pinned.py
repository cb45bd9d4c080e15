"""The cases in which schedulers have gone wrong, one by one."""

# ruff: noqa: DTZ001 - local times are naive here

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from scheduler_service.domain.timing import (
    GapPolicy,
    Occurrence,
    RepeatPolicy,
    Timing,
    count,
    latest_occurrence,
    occurrences,
)

NEW_YORK = "America/New_York"
LORD_HOWE = "Australia/Lord_Howe"
ST_JOHNS = "America/St_Johns"
APIA = "Pacific/Apia"
CASABLANCA = "Africa/Casablanca"
KATHMANDU = "Asia/Kathmandu"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def between(timing: Timing, after: str, until: str) -> list[Occurrence]:
    return list(occurrences(timing, at(after), at(until)))


PINNED = [
    # expression, zone, after, until, instants
    pytest.param(
        "30 1 * * *",
        NEW_YORK,
        "2026-11-01T00:00-04:00",
        "2026-11-02T00:00-05:00",
        ["2026-11-01T01:30-04:00"],
        id="new-york-autumn-once",
    ),
    pytest.param(
        "30 2 * * *",
        NEW_YORK,
        "2026-03-07T12:00-05:00",
        "2026-03-09T12:00-04:00",
        ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"],
        id="new-york-spring-after-the-gap",
    ),
    pytest.param(
        "0,30 2,3 * * *",
        NEW_YORK,
        "2026-03-08T00:00-05:00",
        "2026-03-08T12:00-04:00",
        ["2026-03-08T03:00-04:00", "2026-03-08T03:30-04:00"],
        id="two-local-times-at-one-instant-are-one",
    ),
    pytest.param(
        "30 * * * *",
        NEW_YORK,
        "2026-11-01T00:45-04:00",
        "2026-11-01T02:45-05:00",
        ["2026-11-01T01:30-04:00", "2026-11-01T01:30-05:00", "2026-11-01T02:30-05:00"],
        id="every-hour-follows-the-clock-in-autumn",
    ),
    pytest.param(
        "*/30 2 * * *",
        NEW_YORK,
        "2026-03-08T00:00-05:00",
        "2026-03-09T00:00-04:00",
        [],
        id="a-star-minute-follows-the-clock-past-the-gap",
    ),
    pytest.param(
        "*/20 * * * *",
        LORD_HOWE,
        "2026-04-05T01:20+11:00",
        "2026-04-05T02:00+10:30",
        [
            "2026-04-05T01:40+11:00",
            "2026-04-05T01:40+10:30",
            "2026-04-05T02:00+10:30",
        ],
        id="lord-howe-keeps-the-second-01:40",
    ),
    pytest.param(
        "30 * * * *",
        LORD_HOWE,
        "2026-10-04T01:00+10:30",
        "2026-10-04T04:00+11:00",
        ["2026-10-04T01:30+10:30", "2026-10-04T02:30+11:00", "2026-10-04T03:30+11:00"],
        id="lord-howe-keeps-02:30",
    ),
    pytest.param(
        "5,26 */3 * * *",
        ST_JOHNS,
        "2006-10-28T20:08-02:30",
        "2006-10-29T03:10-03:30",
        [
            "2006-10-28T21:05-02:30",
            "2006-10-28T21:26-02:30",
            "2006-10-29T00:05-03:30",
            "2006-10-29T00:26-03:30",
            "2006-10-29T03:05-03:30",
        ],
        id="st-johns-goes-back-at-00:01-and-ends",
    ),
    pytest.param(
        "30 23 * * *",
        ST_JOHNS,
        "2006-10-28T12:00-02:30",
        "2006-10-29T12:00-03:30",
        ["2006-10-28T23:30-02:30"],
        id="st-johns-repeats-the-evening-before-once",
    ),
    pytest.param(
        "30 0 * * *",
        ST_JOHNS,
        "2006-04-01T12:00-03:30",
        "2006-04-02T12:00-02:30",
        ["2006-04-02T01:01-02:30"],
        id="st-johns-gap-of-00:01-ends-at-01:01",
    ),
    pytest.param(
        "0 9 * * *",
        APIA,
        "2011-12-29T00:00-10:00",
        "2011-12-31T23:00+14:00",
        ["2011-12-29T09:00-10:00", "2011-12-31T00:00+14:00", "2011-12-31T09:00+14:00"],
        id="apia-skipped-day-fires-after-it",
    ),
    pytest.param(
        "0 */6 * * *",
        APIA,
        "2011-12-29T12:00-10:00",
        "2011-12-31T06:00+14:00",
        ["2011-12-29T18:00-10:00", "2011-12-31T00:00+14:00", "2011-12-31T06:00+14:00"],
        id="apia-skipped-day-is-not-on-the-clock",
    ),
    pytest.param(
        "30 2 * * *",
        CASABLANCA,
        "2026-02-14T12:00+01:00",
        "2026-02-16T12:00+00:00",
        ["2026-02-15T02:30+01:00", "2026-02-16T02:30+00:00"],
        id="casablanca-back-for-ramadan-once",
    ),
    pytest.param(
        "30 2 * * *",
        CASABLANCA,
        "2026-03-21T12:00+00:00",
        "2026-03-23T12:00+01:00",
        ["2026-03-22T03:00+01:00", "2026-03-23T02:30+01:00"],
        id="casablanca-forward-after-ramadan",
    ),
    pytest.param(
        "0 9 * * *",
        KATHMANDU,
        "2026-01-01T00:00+05:45",
        "2026-01-03T00:00+05:45",
        ["2026-01-01T03:15+00:00", "2026-01-02T03:15+00:00"],
        id="kathmandu-quarter-hours",
    ),
    pytest.param(
        "10 0 * * *",
        KATHMANDU,
        "1985-12-31T12:00+05:30",
        "1986-01-02T00:00+05:45",
        ["1986-01-01T00:15+05:45"],
        id="kathmandu-gap-of-15-minutes",
    ),
]


@pytest.mark.parametrize(("expression", "time_zone", "after", "until", "instants"), PINNED)
def test_pinned_transition(expression: str, time_zone: str, after: str, until: str, instants: list[str]) -> None:
    timing = Timing.of(expression, time_zone)
    found = [each.instant for each in between(timing, after, until)]
    assert found == [at(instant) for instant in instants]
    assert count(timing, at(after), at(until)) == len(instants)
    latest = latest_occurrence(timing, at(after), at(until))
    assert (latest.instant if latest else None) == (found[-1] if found else None)


@pytest.mark.parametrize(
    ("expression", "locals_"),
    [
        ("0 0 31 * *", ["2026-01-31", "2026-03-31", "2026-05-31", "2026-07-31"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29"]),
        ("0 12 L * *", ["2026-01-31T12:00", "2026-02-28T12:00", "2026-03-31T12:00"]),
        ("0 12 15,L 2 *", ["2026-02-15T12:00", "2026-02-28T12:00", "2027-02-15T12:00"]),
        ("0 9 * * 1#2", ["2026-01-12T09:00", "2026-02-09T09:00", "2026-03-09T09:00"]),
        ("0 9 * * 5L", ["2026-01-30T09:00", "2026-02-27T09:00"]),
        ("0 9 * * 1,5#2", ["2026-01-05T09:00", "2026-01-09T09:00", "2026-01-12T09:00"]),
        ("0 9 15 * 1#2", ["2026-01-12T09:00", "2026-01-15T09:00", "2026-02-09T09:00"]),
        ("0 0 13 * 5", ["2026-01-02", "2026-01-09", "2026-01-13", "2026-01-16"]),
        ("0 0 */2 * 1", ["2026-01-05", "2026-01-19", "2026-02-09", "2026-02-23"]),
        ("0 0 1-7 * */7", ["2026-01-04", "2026-02-01", "2026-03-01"]),
        ("0 9-9 * * *", ["2026-01-01T09:00", "2026-01-02T09:00"]),
        ("0 0/12 * * *", ["2026-01-01T12:00", "2026-01-02T00:00", "2026-01-02T12:00"]),
        ("45 23-23/24 * * *", ["2026-01-01T23:45", "2026-01-02T23:45"]),
        ("7 */40 * * *", ["2026-01-01T00:07", "2026-01-02T00:07"]),
        ("@weekly", ["2026-01-04", "2026-01-11"]),
    ],
)
def test_pinned_expression(expression: str, locals_: list[str]) -> None:
    timing = Timing.of(expression)
    start = at("2026-01-01T00:00+00:00")
    found = [each.local for each, _ in zip(occurrences(timing, start), locals_, strict=False)]
    assert found == [datetime.fromisoformat(text) for text in locals_]
    assert count(timing, start, found[-1].replace(tzinfo=UTC)) == len(locals_)


def test_a_shifted_occurrence_names_the_time_that_the_clock_left_out() -> None:
    (found,) = between(Timing.of("30 2 * * *", NEW_YORK), "2026-03-08T00:00-05:00", "2026-03-09T00:00-04:00")
    assert found == Occurrence(at("2026-03-08T07:00+00:00"), datetime(2026, 3, 8, 2, 30), 0, shifted=True)


def test_the_clocks_second_showing_has_fold_one() -> None:
    found = between(Timing.of("30 * * * *", NEW_YORK), "2026-11-01T01:00-04:00", "2026-11-01T02:00-05:00")
    assert [(each.local.hour, each.fold) for each in found] == [(1, 0), (1, 1)]


def test_a_gap_can_be_skipped() -> None:
    timing = Timing.of("30 2 * * *", NEW_YORK, gap=GapPolicy.SKIP)
    found = between(timing, "2026-03-08T00:00-05:00", "2026-03-09T12:00-04:00")
    assert [each.instant for each in found] == [at("2026-03-09T02:30-04:00")]


def test_a_repeated_time_can_fire_at_both() -> None:
    timing = Timing.of("30 1 * * *", NEW_YORK, repeat=RepeatPolicy.BOTH)
    found = between(timing, "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00")
    assert [(each.instant, each.fold) for each in found] == [
        (at("2026-11-01T01:30-04:00"), 0),
        (at("2026-11-01T01:30-05:00"), 1),
    ]


def test_a_stretch_that_ends_before_the_gap_owes_nothing_of_it() -> None:
    timing = Timing.of("30 2 * * *", NEW_YORK)
    after, until = "2026-03-07T12:00-05:00", "2026-03-08T01:59-05:00"
    assert between(timing, after, until) == []
    assert count(timing, at(after), at(until)) == 0
    assert latest_occurrence(timing, at(after), at(until)) is None


def test_starting_within_a_gap_or_a_repeat_changes_nothing() -> None:
    spring = Timing.of("30 2 * * *", NEW_YORK)
    assert between(spring, "2026-03-08T03:00-04:00", "2026-03-08T12:00-04:00") == []
    autumn = Timing.of("30 1 * * *", NEW_YORK)
    assert between(autumn, "2026-11-01T01:30-04:00", "2026-11-01T12:00-05:00") == []
    assert between(autumn, "2026-11-01T01:10-05:00", "2026-11-01T12:00-05:00") == []
