"""What is owed in a window, against a reading minute by minute; and what became of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_service.domain.ledger import TICK, Account, Gap, Outcome, Owed, explained, judged, owed
from scheduler_service.domain.schedule import InForce
from scheduler_service.domain.timeline import Stretch
from scheduler_service.domain.timing import GapPolicy, RepeatPolicy

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LAST_MINUTE = 40


def at(minute: float) -> datetime:
    return START + minute * MINUTE


def every(minutes: int) -> InForce:
    return InForce(True, f"*/{minutes} * * * *", "UTC", GapPolicy.SHIFT, RepeatPolicy.FIRST, timedelta(), timedelta())


def account(*stretches: Stretch, schedule_id: int = 7, settled_to: datetime = START, **fields: Any) -> Account:
    said = {"revision": len(stretches), "armed": True, "set_aside_reason": "", **fields}
    return Account(schedule_id=schedule_id, settled_to=settled_to, stretches=stretches, **said)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Account], list[Gap]]:
    """Two schedules of one name, one after the other, and gaps of some of their stretches."""
    cuts = sorted(draw(st.sets(st.integers(0, LAST_MINUTE), min_size=6, max_size=8)))
    stretches: list[list[Stretch]] = [[], []]
    for number, (begin, end) in enumerate(pairwise(cuts)):
        # Two stretches of a revision, as where its job was paused between; four of a schedule, until it was deleted.
        in_force = every(draw(st.integers(1, 3)))
        stretches[number // 4].append(Stretch(at(begin), at(end), number // 2, in_force, draw(st.booleans())))
    known = [(of, stretch.revision) for of, each in enumerate(stretches) for stretch in each]
    edges = sorted(draw(st.sets(st.integers(0, LAST_MINUTE), min_size=2, max_size=8)))
    gaps = [
        Gap(of, at(first), at(last - draw(st.integers(0, last - first))), None, "CATCH_UP_NONE", revision)
        for first, last in zip(edges[::2], edges[1::2], strict=False)
        for of, revision in [draw(st.sampled_from(known))]
    ]
    accounts = [account(*each, schedule_id=of) for of, each in enumerate(stretches)]
    return draw(st.permutations(accounts)), gaps


def minute_by_minute(
    accounts: list[Account], gaps: list[Gap], after: datetime, until: datetime
) -> list[tuple[datetime, datetime, int, bool]]:
    """First, last, how many, and whether they were missed, of everything owed."""
    found: list[tuple[datetime, tuple[datetime, Gap | datetime]]] = []
    for minute in range(LAST_MINUTE + 1):
        instant = at(minute)
        for each in accounts:
            for stretch in each.stretches:
                step = int(stretch.in_force.cron[2])
                if not (stretch.owing and stretch.after < instant <= stretch.until and after < instant <= until):
                    continue
                if minute % step == 0:
                    covering = [
                        gap
                        for gap in gaps
                        if (gap.schedule_id, gap.revision) == (each.schedule_id, stretch.revision)
                        and gap.first <= instant <= gap.last
                    ]
                    found.append((instant, (stretch.after, covering[0] if covering else instant)))
    lines = []
    for (_, kind), group in groupby(found, key=lambda pair: pair[1]):
        instants = [instant for instant, _ in group]
        lines.append((instants[0], instants[-1], len(instants), isinstance(kind, Gap)))
    return lines


def line(each: Owed) -> tuple[datetime, datetime, int, bool]:
    return (each.first, each.last, each.count, each.gap is not None)


@settings(max_examples=300)
@given(history=histories(), window=st.tuples(st.integers(-1, LAST_MINUTE), st.integers(-1, LAST_MINUTE)))
def test_everything_owed_in_a_window_is_there_once(
    history: tuple[list[Account], list[Gap]], window: tuple[int, int]
) -> None:
    accounts, gaps = history
    after, until = at(window[0]), at(window[1])
    assert [line(each) for each in owed(accounts, gaps, after, until)] == minute_by_minute(accounts, gaps, after, until)


@given(history=histories(), place=st.integers(0, 20))
def test_it_goes_on_after_any_entry_as_if_it_had_not_stopped(
    history: tuple[list[Account], list[Gap]], place: int
) -> None:
    accounts, gaps = history
    whole = list(owed(accounts, gaps, at(-1), at(LAST_MINUTE)))
    if place < len(whole):
        assert list(owed(accounts, gaps, whole[place].last, at(LAST_MINUTE))) == whole[place + 1 :]


def test_a_gap_that_is_whole_keeps_the_count_that_was_recorded() -> None:
    one = account(Stretch(at(0), at(20), 1, every(1), owing=True))
    gap = Gap(7, at(5), at(9), 77, "CATCH_UP_NONE", 1)
    assert [each.count for each in owed([one], [gap], at(4), at(9))] == [77]
    assert [each.count for each in owed([one], [gap], at(5), at(9))] == [4]
    assert [each.count for each in owed([one], [gap], at(4), at(9) - TICK)] == [4]


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"settled_to": at(4)}, Outcome.PENDING),
        ({"settled_to": at(5)}, Outcome.UNACCOUNTED),
        ({"settled_to": at(4), "armed": False}, Outcome.UNACCOUNTED),
    ],
    ids=["not settled yet", "settled", "nobody will settle it"],
)
def test_what_has_no_run_is_pending_only_while_somebody_will_settle_it(
    fields: dict[str, Any], outcome: Outcome
) -> None:
    one = account(Stretch(at(4), at(5), 1, every(1), owing=True), **fields)
    (each,) = owed([one], [], at(0), at(9))
    assert judged(each, None).outcome is outcome
    assert judged(each, None).run_id is None


def test_what_is_unaccounted_for_is_old_or_wrong() -> None:
    one = account(Stretch(at(4), at(5), 1, every(1), owing=True), settled_to=at(5))
    (each,) = owed([one], [], at(0), at(9))
    entry = judged(each, None)
    assert "older than what is kept" in explained(entry, at(6)).message
    for kept_from in (at(5), None):
        assert "something is wrong" in explained(entry, kept_from).message
