"""A sample of `make time-oracle`, through the same code: each shape of a clock change with a share of the
expressions, so that each expression meets every kind of change."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.time_oracle.comparison import compare
from tests.time_oracle.expressions import EXPRESSIONS
from tests.time_oracle.transitions import FIRST_YEAR, LAST_YEAR, Transition, distinct_transitions, zone_names

PARTS = 4
SHARES = 8
"""Each transition of the sample is compared with one expression in so many."""


def sample() -> list[Transition]:
    """One transition for each shape: how far the clock jumps, and at which local time."""
    shapes: dict[tuple[object, ...], Transition] = {}
    for each in distinct_transitions():
        shapes.setdefault((each.shift, (each.instant + each.before).time()), each)
    return list(shapes.values())


@pytest.mark.parametrize("part", range(PARTS))
def test_the_engine_agrees_with_the_oracle_around_each_kind_of_change(part: int) -> None:
    owed = 0
    for number, transition in enumerate(sample()):
        if number % PARTS == part:
            for share in range(2):
                tally = compare(transition, EXPRESSIONS[(number + share * 3) % SHARES :: SHARES])
                assert tally.mismatches == ()
                owed += tally.occurrences
    assert owed > 1_000


def test_the_expressions_are_two_hundred_different_ones() -> None:
    assert len(set(EXPRESSIONS)) == len(EXPRESSIONS) == 200


def test_the_transitions_are_all_of_the_years() -> None:
    found = distinct_transitions()
    assert len(zone_names()) > 590
    assert len(found) > 2_400
    assert {each.instant.year for each in found} == set(range(FIRST_YEAR, LAST_YEAR + 1))
    assert {each.shift for each in found} >= {timedelta(minutes=n) for n in (-60, -30, 30, 60, 180, 1440)}
