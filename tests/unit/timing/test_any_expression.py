"""Whatever text comes in: it is read or refused with our error, and what is read can be used, in bounded work."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler_service.domain.timing import Timing, TimingError, count, describe, occurrences, parse
from tests.time_oracle.expressions import EXPRESSIONS
from tests.unit.timing.work import calls

READING = 100_000
DESCRIBING = 25_000
COUNTING = 20_000
STEPPING = 300_000
"""Calls of functions, about three times what the worst known expression takes."""

ZONE = "America/New_York"
START = datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC)
MONTH = timedelta(days=31)

SIGNS = [*"*/-,#LW?HR~@= \t\n\0é\u0660", "@every", "*/"]
VALUES = ["0", "7", "31", "59", "60", "9" * 20, "-1", "1e9", "1-5", "mon", "jan", "fri-mon", "5#2", "5L"]
PIECES = [*SIGNS, *VALUES]
FIELDS = sorted({field for text in EXPRESSIONS for field in text.split()})


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """An expression that was right, with up to five mistakes."""
    text = draw(st.sampled_from(EXPRESSIONS))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(text)))
        end = draw(st.integers(place, min(place + 6, len(text))))
        piece = draw(st.sampled_from([*PIECES, text[place:end], text[place:end].swapcase()]))
        text = text[:place] + piece + text[draw(st.sampled_from([place, end])) :]
    return text


@st.composite
def shuffled(draw: st.DrawFn) -> str:
    """Fields of right expressions in any place, as lists of each other."""
    picked = st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4).map(",".join)
    return " ".join(draw(st.lists(picked, min_size=5, max_size=5)))


@st.composite
def nested(draw: st.DrawFn) -> str:
    """One piece over and over, up to and past the length that is read."""
    unit = "".join(draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3)))
    separator = draw(st.sampled_from(["", ",", "-", "/", "#", "("]))
    field = separator.join([unit] * draw(st.integers(1, 120)))
    place = draw(st.integers(0, 4))
    return " ".join(field if number == place else "*" for number in range(5))


INTERVAL = st.from_regex(r"@every ([0-9]{1,250}[dhms]){1,4}", fullmatch=True)
ANY = st.one_of(mutated(), shuffled(), nested(), INTERVAL, st.text(max_size=300))


@settings(max_examples=300)
@given(ANY)
@example("0 0 29 2 */7")
@example("0 0 */14 2 1#5")
@example("0 0 29 2 0#5,1#5,2#5,3#5,4#5,5#5,6#5,0L,1L,2L,3L,4L,5L,6L")
def test_any_text_is_refused_with_our_error_or_can_be_used(text: str) -> None:
    assert _calls_to_read(text) < READING
    timing = _timing(text)
    if isinstance(timing, TimingError):
        assert all((timing.part, timing.problem, timing.instead))
        return
    assert calls(lambda: describe.__wrapped__(timing)) < DESCRIBING
    assert "on the schedule" not in describe(timing).lower()
    assert calls(lambda: list(islice(occurrences(timing, START), 3))) < STEPPING
    assert calls(lambda: count(timing, START, START + MONTH)) < COUNTING
    found = list(islice(occurrences(timing, START, START + MONTH), 3))
    assert len(found) == min(count(timing, START, START + MONTH), 3)


@pytest.mark.parametrize(
    "expression",
    [
        ",".join(["*"] * 124) + " * * * *",
        "0 0 */30 2 1#2",
        "* * * * " + ",".join(["1#1"] * 62),
        "*/" + "9" * 246 + " * * * *",
        "@every " + "9" * 248 + "s",
        "0 0 31 2,4,6,9,11 " + ",".join(f"{day}#5" for day in range(7)),
    ],
)
def test_the_longest_and_the_hopeless_are_read_in_bounded_work(expression: str) -> None:
    assert 0 < _calls_to_read(expression) < READING


def _timing(text: str) -> Timing | TimingError:
    try:
        return Timing.of(text, ZONE)
    except TimingError as refused:
        return refused


def _calls_to_read(text: str) -> int:
    """Without what was remembered."""

    def read() -> None:
        with suppress(TimingError):
            parse.__wrapped__(text)

    return calls(read)
