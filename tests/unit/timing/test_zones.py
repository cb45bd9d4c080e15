"""Zones by name, and transitions found by asking, against the transitions that the tables list."""

# ruff: noqa: DTZ001 - local times are naive here

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from scheduler_service.domain.timing import TimingError, tzdata_version, zone
from scheduler_service.domain.timing.zones import stretches
from tests.time_oracle.transitions import Transition, transitions_of, zone_names

NAMES = zone_names()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def since_1970(name: str) -> list[Transition]:
    return [each for each in transitions_of(name) if each.instant >= EPOCH]


def test_no_zone_changes_twice_within_two_days() -> None:
    changes = {name: since_1970(name) for name in NAMES}
    assert sum(map(len, changes.values())) > 10_000
    nearest = min(two.instant - one.instant for found in changes.values() for one, two in pairwise(found))
    assert nearest > timedelta(days=2)


@pytest.mark.parametrize(
    "name", [*NAMES[::40], "Africa/Monrovia", "Africa/Casablanca", "Europe/Dublin", "Pacific/Apia", "America/Caracas"]
)
def test_stretches_change_exactly_where_the_tables_say(name: str) -> None:
    found = list(stretches(name, datetime(1970, 1, 1), datetime(2038, 1, 1)))
    assert all(one.end == two.start for one, two in pairwise(found))
    changes = [
        Transition(name, two.start.replace(tzinfo=UTC), one.offset, two.offset)
        for one, two in pairwise(found)
        if one.offset != two.offset
    ]
    assert [change for change in changes if change.instant >= EPOCH] == since_1970(name)


def test_a_stretch_ends_with_the_year_so_that_later_years_are_not_worked_out() -> None:
    found = list(stretches("UTC", datetime(2026, 5, 1), datetime(2199, 12, 31)))
    assert found[0].end == datetime(2026, 12, 31, 23, 59, 59)
    assert all(each.end - each.start <= timedelta(days=366) for each in found)


def test_a_stretch_knows_how_far_the_clock_had_been() -> None:
    autumn = datetime(2026, 11, 1, 6)
    before, after = stretches("America/New_York", autumn - timedelta(hours=1), autumn + timedelta(hours=1))
    assert (before.end, after.start) == (autumn, autumn)
    assert after.local_start == datetime(2026, 11, 1, 1)
    assert after.reached == before.local_end == datetime(2026, 11, 1, 2)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("america/new_york", "write America/New_York instead"),
        ("New York", "write America/New_York instead"),
        ("Europe/Berln", "write Europe/Berlin instead"),
        ("Kolkatta", "write Asia/Kolkata instead"),
        (
            "+05:30",
            "write a place such as Europe/Berlin, or Etc/GMT-5 for five hours ahead of UTC, instead",
        ),
        ("", "write an area and a place such as Europe/Berlin or America/New_York, or UTC, instead"),
        (
            "../../etc/passwd",
            "write an area and a place such as Europe/Berlin or America/New_York, or UTC, instead",
        ),
    ],
)
def test_other_names_are_refused_with_near_ones(name: str, instead: str) -> None:
    with pytest.raises(TimingError) as refused:
        zone(name)
    assert str(refused.value) == f"time_zone: {name!a} is not an IANA time zone; {instead}"


def test_a_zone_is_loaded_once_and_named() -> None:
    assert zone("Europe/Dublin") is zone("Europe/Dublin")
    assert zone("Europe/Dublin").key == "Europe/Dublin"


def test_the_tables_version_is_an_iana_release() -> None:
    assert tzdata_version()[:4].isdigit()
    assert tzdata_version()[4:].isalpha()
