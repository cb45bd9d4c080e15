"""The engine against a brute-force oracle, and its three ways (step, count, latest) against each other."""

# ruff: noqa: DTZ001 - local times are naive here

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scheduler_service.domain.timing import (
    HORIZON,
    GapPolicy,
    RepeatPolicy,
    Timing,
    TimingError,
    count,
    latest_occurrence,
    next_occurrence,
    occurrences,
)
from tests.time_oracle.grammar import read
from tests.time_oracle.oracle import Window, owed
from tests.unit.timing.work import calls

DAY = timedelta(days=1)

TRANSITIONS = [
    # zone, an instant within hours of a transition: forward, back, half an hour, a day, at midnight
    ("America/New_York", "2026-03-08T07:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("Europe/Dublin", "2026-03-29T01:00"),
    ("Europe/Dublin", "2026-10-25T01:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("America/St_Johns", "2006-10-29T02:31"),
    ("America/St_Johns", "2006-04-02T03:31"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Pacific/Kwajalein", "1993-08-21T12:00"),
    ("Africa/Casablanca", "2026-02-15T02:00"),
    ("Africa/Casablanca", "2026-03-22T02:00"),
    ("Asia/Kathmandu", "1985-12-31T18:30"),
    ("America/Havana", "2026-03-08T05:00"),
    ("America/Havana", "2026-11-01T05:00"),
    ("America/Sao_Paulo", "2018-11-04T03:00"),
    ("America/Sao_Paulo", "2018-02-18T02:00"),
    ("Asia/Pyongyang", "2015-08-14T15:00"),
    ("Asia/Pyongyang", "2018-05-04T15:00"),
    ("America/Caracas", "2007-12-09T07:00"),
    ("Antarctica/Troll", "2026-03-29T01:00"),
    ("Antarctica/Troll", "2026-10-25T01:00"),
    ("Africa/Cairo", "2026-04-23T22:00"),
    ("Asia/Kolkata", "2026-03-08T07:00"),
]

EXPRESSIONS = [
    "* * * * *",
    "*/20 * * * *",
    "30 * * * *",
    "5,26 */3 * * *",
    "*/7 0-3,22-23 * * *",
    "30 2 * * *",
    "0,30 0-4 * * *",
    "15 0-23 * * *",
    "0-59 23,0,1 * * *",
    "45 23-23/24 * * *",
    "1 0 * * *",
    "0 0/12 * * 0,6",
    "10 1 30,31 12 *",
]


@pytest.mark.parametrize(("time_zone", "around"), TRANSITIONS)
def test_every_minute_around_a_transition_agrees_with_the_wall_clock(time_zone: str, around: str) -> None:
    middle = datetime.fromisoformat(around).replace(tzinfo=UTC)
    after, until = middle - timedelta(hours=20), middle + timedelta(hours=30)
    window = Window(time_zone, after, until)
    for expression in EXPRESSIONS:
        for gap, repeat in [
            (GapPolicy.SHIFT, RepeatPolicy.FIRST),
            (GapPolicy.SKIP, RepeatPolicy.BOTH),
        ]:
            timing = Timing.of(expression, time_zone, gap, repeat)
            wanted = owed(read(expression), window, skip_gaps=gap is GapPolicy.SKIP, both=repeat is RepeatPolicy.BOTH)
            found = [(each.instant, each.local, each.fold, each.shifted) for each in occurrences(timing, after, until)]
            assert found == wanted, f"{expression} {gap} {repeat}"


FIELD = {
    "minute": st.sampled_from(["*", "*/7", "0", "30", "1,31", "10-50/20", "59", "0-59"]),
    "hour": st.sampled_from(["*", "*/3", "0", "1", "2", "3", "23", "0-4", "22-23,0-2", "9-17"]),
    "day": st.sampled_from(["*", "*", "*/2", "L", "13", "1-7", "29-31", "15,L", "1"]),
    "month": st.sampled_from(["*", "*", "*", "2", "3,11", "1-12/2", "4,10,12"]),
    "weekday": st.sampled_from(["*", "*", "0", "1-5", "*/2", "5L", "0#1", "1,5#2", "6L,2#4"]),
}
CRON = st.tuples(*FIELD.values()).map(" ".join)
ZONES = st.sampled_from(sorted({name for name, _ in TRANSITIONS} | {"UTC"}))
POLICIES = st.tuples(st.sampled_from(GapPolicy), st.sampled_from(RepeatPolicy))


@st.composite
def timings(draw: st.DrawFn) -> Timing:
    gap, repeat = draw(POLICIES)
    try:
        return Timing.of(draw(CRON), draw(ZONES), gap, repeat)
    except TimingError:
        assume(False)
        raise


@st.composite
def starts(draw: st.DrawFn) -> tuple[Timing, datetime]:
    """Timings, each with an instant: most of them within two days of a transition of its zone, and not on whole
    minutes."""
    timing = draw(timings())
    of_zone = [at for name, at in TRANSITIONS if name == timing.time_zone] or [at for _, at in TRANSITIONS]
    around = st.sampled_from(of_zone).map(lambda at: datetime.fromisoformat(at).replace(tzinfo=UTC))
    anywhere = st.datetimes(datetime(1970, 1, 2), datetime(2199, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
    near = st.timedeltas(-2 * DAY, 2 * DAY)
    at = draw(st.one_of(st.tuples(around, near).map(lambda pair: pair[0] + pair[1]), around, anywhere))
    return timing, at


@settings(max_examples=250)
@given(starts(), st.timedeltas(timedelta(), 3 * DAY))
def test_counting_and_looking_back_agree_with_stepping(start: tuple[Timing, datetime], length: timedelta) -> None:
    timing, after = start
    until = after + length
    stepped = list(occurrences(timing, after, until))
    instants = [each.instant for each in stepped]
    assert instants == sorted(set(instants))
    assert all(after < instant <= until for instant in instants)
    assert count(timing, after, until) == len(stepped)
    assert latest_occurrence(timing, after, until) == (stepped[-1] if stepped else None)
    following = next_occurrence(timing, after)
    if stepped:
        assert following == stepped[0]
    else:
        assert following is None or following.instant > until


@settings(max_examples=50)
@given(starts(), st.integers(1, 400))
def test_they_agree_over_months_where_days_are_seldom(start: tuple[Timing, datetime], days: int) -> None:
    timing, after = start
    assume(count(timing, after, after + days * DAY) <= 400)
    stepped = list(occurrences(timing, after, after + days * DAY))
    assert count(timing, after, after + days * DAY) == len(stepped)
    assert latest_occurrence(timing, after, after + days * DAY) == (stepped[-1] if stepped else None)


@given(starts(), st.timedeltas(timedelta(), 2 * DAY), st.timedeltas(timedelta(), 2 * DAY))
def test_a_restart_anywhere_changes_nothing(
    start: tuple[Timing, datetime], first: timedelta, second: timedelta
) -> None:
    timing, after = start
    middle, until = after + first, after + first + second
    whole = count(timing, after, until)
    assert whole == count(timing, after, middle) + count(timing, middle, until)
    resumed = [*occurrences(timing, after, middle), *occurrences(timing, middle, until)]
    assert [each.instant for each in resumed] == [each.instant for each in occurrences(timing, after, until)]


@given(
    st.integers(1, 100_000),
    st.integers(0, 99_999),
    st.datetimes(datetime(1970, 1, 2), datetime(2199, 1, 1)),
    st.integers(0, 50),
)
def test_intervals_count_from_the_epoch_plus_the_phase(period: int, phase: int, start: datetime, periods: int) -> None:
    after = start.replace(tzinfo=UTC)
    until = after + timedelta(seconds=period * periods)
    timing = Timing.of(f"@every {period}s", "Europe/Berlin", phase=timedelta(seconds=phase % period))
    stepped = list(occurrences(timing, after, until))
    assert len(stepped) == periods == count(timing, after, until)
    assert all(int(each.instant.timestamp()) % period == phase % period for each in stepped)
    assert latest_occurrence(timing, after, until) == (stepped[-1] if stepped else None)


def test_an_interval_runs_through_a_repeated_hour_at_its_own_pace() -> None:
    timing = Timing.of("@every 30m", "America/New_York")
    start = datetime(2026, 11, 1, 5, 0, tzinfo=UTC)
    found = list(occurrences(timing, start, start + timedelta(hours=2)))
    assert [(each.local.strftime("%H:%M"), each.fold) for each in found] == [
        ("01:30", 0),
        ("01:00", 1),
        ("01:30", 1),
        ("02:00", 0),
    ]


def test_the_last_instants_are_in_2199() -> None:
    late = datetime(2199, 12, 31, 12, 0, tzinfo=UTC)
    for expression in ("0 0 29 2 *", "30 2 * * *", "@every 30d"):
        timing = Timing.of(expression, "America/New_York")
        found = list(occurrences(timing, late))
        assert all(each.instant <= HORIZON for each in found)
        assert next_occurrence(timing, HORIZON) is None
        assert latest_occurrence(timing, HORIZON, HORIZON + DAY) is None
        assert count(timing, HORIZON, HORIZON + DAY) == 0
    assert next_occurrence(Timing.of("0 0 29 2 *"), late) is None


def test_nothing_is_owed_in_an_empty_or_backward_stretch() -> None:
    timing = Timing.of("* * * * *")
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for until in (noon, noon - DAY):
        assert list(occurrences(timing, noon, until)) == []
        assert latest_occurrence(timing, noon, until) is None
        assert count(timing, noon, until) == 0


def test_counting_a_year_of_minutes_does_not_step_through_them() -> None:
    timing = Timing.of("* * * * *", "Europe/Berlin")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + 365 * DAY
    total, latest = count(timing, start, end), latest_occurrence(timing, start, end)
    steps = calls(lambda: (count(timing, start, end), latest_occurrence(timing, start, end)))
    assert total == 365 * 1440
    assert latest is not None
    assert latest.instant == end
    assert steps < 20_000


def test_the_next_occurrence_is_remembered_for_an_equal_timing() -> None:
    base = datetime(2031, 5, 5, 5, 5, tzinfo=UTC)
    before = next_occurrence.cache_info()
    first = next_occurrence(Timing.of("17 4 * * *", "Asia/Tokyo"), base)
    second = next_occurrence(Timing.of("17 4 * * *", "Asia/Tokyo"), base.replace())
    after = next_occurrence.cache_info()
    assert first is second
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    assert after.maxsize is not None
