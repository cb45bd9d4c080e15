"""What docs/time.md says of expressions and clock changes is what happens."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import pytest

from scheduler_service.domain.timing import (
    GapPolicy,
    RepeatPolicy,
    Timing,
    TimingError,
    describe,
    occurrences,
    parse,
    zone,
)
from tests.e2e.cluster import ROOT

PAGE = (ROOT / "docs" / "time.md").read_text(encoding="utf-8")
NEW_YORK = "America/New_York"


def table(heading: str) -> list[list[str]]:
    """The rows of the table that begins with a heading."""
    body = PAGE.partition(f"| {heading} |")[2].split("\n\n", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in body.splitlines()[2:]]
    assert len(rows) > 5
    return rows


def code(cell: str) -> str:
    found = re.match(r"`([^`]+)`", cell)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("expression", "sentence"), table("expression"))
def test_an_expression_is_described_as_the_page_says(expression: str, sentence: str) -> None:
    assert describe(Timing.of(code(expression))).removesuffix(", UTC") == sentence


@pytest.mark.parametrize(("refused", "because", "instead"), table("refused"))
def test_what_the_page_calls_refused_is_refused_and_what_it_advises_is_read(
    refused: str, because: str, instead: str
) -> None:
    with pytest.raises(TimingError):
        parse(code(refused))
    if instead.startswith("`"):
        parse(code(instead))


@pytest.mark.parametrize(("timing", "on", "owed"), table("in New York"))
def test_a_clock_change_does_what_the_page_says(timing: str, on: str, owed: str) -> None:
    rule = Timing.of(
        code(timing),
        NEW_YORK,
        gap=GapPolicy.SKIP if "SKIP" in timing else GapPolicy.SHIFT,
        repeat=RepeatPolicy.BOTH if "BOTH" in timing else RepeatPolicy.FIRST,
    )
    found = _on(rule, date.fromisoformat(on[:10]))
    number = re.match(r"(\d+) times", owed)
    if number:
        assert len(found) == int(number[1])
    else:
        assert found == re.findall(r"\d\d:\d\d E[SD]T", owed)
        assert found or owed == "not"


def _on(rule: Timing, day: date) -> list[str]:
    noon = datetime(day.year, day.month, day.day, 17, tzinfo=UTC)
    owed = occurrences(rule, noon - timedelta(days=1), noon + timedelta(days=1))
    shown = [each.instant.astimezone(zone(NEW_YORK)) for each in owed]
    return [f"{each:%H:%M %Z}" for each in shown if each.date() == day]
