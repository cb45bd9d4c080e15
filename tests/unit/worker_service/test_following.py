"""What the headers of a failure ask for."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_service.targets.following import Asked, asked_by

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
WEEK = 7 * 86_400.0


def date(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("000120", 120.0),
        ("604801", WEEK),
        ("9" * 8_000, WEEK),
        (date(90), 90.0),
        (date(0), 0.0),
        ("Saturday, 21-Nov-26 12:01:30 GMT", 90.0),
        ("Sat Nov 21 12:01:30 2026", 90.0),
        ("Sat, 21 Nov 2026 13:01:30 +0100", 90.0),
    ],
    ids=["none", "seconds", "spaced", "zeros", "long", "endless", "date", "now", "rfc850", "asctime", "zone"],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert asked_by({"Retry-After": text}, NOW) == Asked(retry_after=seconds)


def test_a_date_that_has_passed_leaves_the_wait_to_the_policy() -> None:
    assert asked_by({"Retry-After": date(-1)}, NOW) == Asked()
    assert asked_by({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, NOW) == Asked()


def test_a_date_beyond_reason_is_the_longest_wait() -> None:
    assert asked_by({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, NOW) == Asked(retry_after=WEEK)


def test_a_date_is_read_by_the_clock_of_who_wrote_it() -> None:
    fast = {"Date": date(3_600), "Retry-After": date(3_630)}
    assert asked_by(fast, NOW) == Asked(retry_after=30.0)
    assert asked_by({**fast, "Date": "yesterday"}, NOW) == Asked(retry_after=3_630.0)


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.5", "5m", "٣", "Sun, 06 Nov", "32 Foo 99999 99:99:99 GMT", "\x00"]
)
def test_what_is_neither_is_told_and_asks_for_nothing(text: str) -> None:
    asked = asked_by({"Retry-After": text}, NOW)
    assert (asked.retry, asked.retry_after) == (True, None)
    assert asked.problem.startswith("; its Retry-After '")


@pytest.mark.parametrize("text", ["false", "False", " false "])
def test_no_retry_counts_more_than_a_time(text: str) -> None:
    assert asked_by({"Carillon-Retry": text, "Retry-After": "5"}, NOW) == Asked(retry=False)


def test_a_word_that_is_not_known_is_told_and_changes_nothing() -> None:
    assert asked_by({"Carillon-Retry": "true"}, NOW) == Asked()
    asked = asked_by({"Carillon-Retry": "never" * 100, "Retry-After": "5"}, NOW)
    assert (asked.retry, asked.retry_after) == (True, 5.0)
    assert "is neither true nor false" in asked.problem
    assert len(asked.problem) < 150


@given(
    st.text(max_size=60)
    | st.from_regex(r"\A[A-Z][a-z]{2}, [0-9]{1,9} [A-Z][a-z]{2} [0-9]{1,9} [0-9:]{1,20} [^ ]{0,9}\Z")
)
def test_whatever_is_said_is_read_or_told(text: str) -> None:
    asked = asked_by({"Retry-After": text, "Date": text, "Carillon-Retry": text}, NOW)
    assert asked.retry_after is None or 0 <= asked.retry_after <= WEEK
    assert asked.retry == (text.strip().lower() != "false")
