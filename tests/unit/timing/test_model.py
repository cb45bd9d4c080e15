"""A timing as a value."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler_service.domain.timing import GapPolicy, RepeatPolicy, Timing, TimingError, parse


def test_equal_timings_are_one_key() -> None:
    one, other = Timing(parse("0 9 * * 1"), "Europe/Paris"), Timing(parse("0 9 * * 1"), "Europe/Paris")
    assert one is not other
    assert {one: "found"}[other] == "found"


def test_every_part_tells_timings_apart() -> None:
    timings = {
        Timing.of("@every 90s"),
        Timing.of("@every 90s", "Europe/Paris"),
        Timing.of("@every 90s", gap=GapPolicy.SKIP),
        Timing.of("@every 90s", repeat=RepeatPolicy.BOTH),
        Timing.of("@every 90s", phase=timedelta(seconds=1)),
        Timing.of("@every 91s"),
    }
    assert len(timings) == 6


def test_the_same_arguments_give_the_same_object() -> None:
    assert Timing.of("0 9 * * 1", "Europe/Paris") is Timing.of("0 9 * * 1", "Europe/Paris")


@pytest.mark.parametrize(
    ("expression", "seconds", "sentence"),
    [
        ("0 9 * * 1", 5, "phase: only @every has a phase; leave it out, or write @every, instead"),
        (
            "@every 90s",
            90,
            "phase: 90 s is not within the interval; write from 0 s to less than 90 s instead",
        ),
        (
            "@every 90s",
            -1,
            "phase: -1 s is not within the interval; write from 0 s to less than 90 s instead",
        ),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(expression: str, seconds: int, sentence: str) -> None:
    with pytest.raises(TimingError) as refused:
        Timing.of(expression, phase=timedelta(seconds=seconds))
    assert str(refused.value) == sentence


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(TimingError, match="time_zone: 'Mars/Olympus' is not an IANA time zone"):
        Timing.of("0 9 * * 1", "Mars/Olympus")
