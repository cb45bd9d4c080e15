"""The engine against the oracle around one transition: the whole window, and again from restart points in it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice

from scheduler_service.domain.timing import (
    GapPolicy,
    Occurrence,
    RepeatPolicy,
    Timing,
    count,
    latest_occurrence,
    next_occurrence,
    occurrences,
)
from scheduler_service.domain.timing.instants import first_occurrence
from tests.time_oracle import cronsim_answers
from tests.time_oracle.expressions import PHASES
from tests.time_oracle.grammar import CronRule, EveryRule, read
from tests.time_oracle.oracle import Owed, Window, owed
from tests.time_oracle.transitions import Transition

EITHER_SIDE = timedelta(hours=6)
OFF_THE_MINUTE = timedelta(seconds=17, microseconds=1)
NO_PHASE = timedelta()
FAR_ENOUGH = 12
"""So many occurrences after a restart, a list can no longer differ from the one of the whole window."""


@dataclass(frozen=True)
class Tally:
    """How many occurrences were compared in whole windows, and in a sentence each what did not agree."""

    occurrences: int
    mismatches: tuple[str, ...]


def compare(transition: Transition, expressions: Iterable[str]) -> Tally:
    """One sentence at most for each expression and choice of policies: the first thing that did not agree."""
    window = _window(transition)
    total, mismatches = 0, []
    for expression in expressions:
        rule = read_once(expression)
        for timing in _timings(expression, rule, transition):
            wanted = _owed(rule, window, timing)
            total += len(wanted)
            problem = next(_disagreements(timing, wanted, transition, window), None)
            if problem is not None:
                mismatches.append(f"{_said(timing)}, {transition.instant:%Y-%m-%dT%H:%MZ}: {problem}")
        mismatches += _disagreement_with_cronsim(expression, rule, transition, window)
    return Tally(total, tuple(mismatches))


def restart_points(transition: Transition) -> list[datetime]:
    """Before, at, inside and after: inside the first showing of a repeat, at its end, inside the second, and after."""
    size = min(abs(transition.shift), EITHER_SIDE / 2)
    return [
        transition.instant - size / 2 - OFF_THE_MINUTE,
        transition.instant,
        transition.instant + size / 2 + OFF_THE_MINUTE,
        transition.instant + size,
    ]


@lru_cache(maxsize=1024)
def read_once(expression: str) -> CronRule | EveryRule:
    return read(expression)


def _window(transition: Transition) -> Window:
    window = Window(transition.time_zone, transition.instant - EITHER_SIDE, transition.instant + EITHER_SIDE)
    before, at = (window.watched[transition.instant - minutes * timedelta(minutes=1)].local for minutes in (1, 0))
    assert at - before == timedelta(minutes=1) + transition.shift, f"{transition}: the clock does not jump there"
    return window


def _timings(expression: str, rule: CronRule | EveryRule, transition: Transition) -> Iterator[Timing]:
    """The policies that matter there. Rules that follow the clock must be deaf to them."""
    zone = transition.time_zone
    if isinstance(rule, EveryRule):
        yield from (Timing.of(expression, zone, phase=timedelta(seconds=phase)) for phase in PHASES)
        return
    yield Timing.of(expression, zone)
    if not rule.literal and transition.shift > NO_PHASE:
        yield Timing.of(expression, zone, gap=GapPolicy.SKIP)
    elif not rule.literal:
        yield Timing.of(expression, zone, repeat=RepeatPolicy.BOTH)


def _owed(rule: CronRule | EveryRule, window: Window, timing: Timing) -> list[Owed]:
    return owed(
        rule,
        window,
        skip_gaps=timing.gap is GapPolicy.SKIP,
        both=timing.repeat is RepeatPolicy.BOTH,
        phase=int(timing.phase.total_seconds()),
    )


def _disagreements(timing: Timing, wanted: list[Owed], transition: Transition, window: Window) -> Iterator[str]:
    yield from _lists_differ("from the window's start", timing, window.after, window.until, wanted)
    instants = [each.instant for each in wanted]
    for point in restart_points(transition):
        passed = bisect_right(instants, point)
        head, tail = wanted[:passed], wanted[passed:]
        since = f"from {point.astimezone(UTC):%H:%M:%S.%fZ}"
        yield from _lists_differ(since, timing, point, _end_of(tail, window), tail[:FAR_ENOUGH])
        yield from _next_differs(since, timing, point, window.until, tail)
        yield from _latest_differs(f"up to {point:%H:%M:%S.%fZ}", timing, window.after, point, head)
        yield from _first_differs(since, timing, point, window.until, tail)


def _lists_differ(where: str, timing: Timing, after: datetime, until: datetime, wanted: list[Owed]) -> Iterator[str]:
    found = [_as_owed(each) for each in islice(occurrences(timing, after, until), len(wanted) + 1)]
    if found != wanted:
        extra = [each for each in found if each not in wanted]
        missing = [each for each in wanted if each not in found]
        yield f"{where}: extra {_shown(extra)}, missing {_shown(missing)}"


def _end_of(tail: list[Owed], window: Window) -> datetime:
    return tail[FAR_ENOUGH - 1].instant if len(tail) > FAR_ENOUGH else window.until


def _next_differs(where: str, timing: Timing, after: datetime, until: datetime, tail: list[Owed]) -> Iterator[str]:
    found = next_occurrence(timing, after)
    right = _as_owed(found) == tail[0] if found and tail else not tail and (found is None or found.instant > until)
    if not right:
        yield f"{where} next is {found}, not {_shown(tail[:1])}"


def _latest_differs(where: str, timing: Timing, after: datetime, until: datetime, wanted: list[Owed]) -> Iterator[str]:
    found = latest_occurrence(timing, after, until)
    if [_as_owed(each) for each in (found,) if each] != wanted[-1:]:
        yield f"{where} latest is {found}, not {_shown(wanted[-1:])}"
    yield from _count_differs(where, timing, after, until, wanted)


def _first_differs(where: str, timing: Timing, after: datetime, until: datetime, wanted: list[Owed]) -> Iterator[str]:
    found = first_occurrence(timing, after, until)
    if [_as_owed(each) for each in (found,) if each] != wanted[:1]:
        yield f"{where} first is {found}, not {_shown(wanted[:1])}"
    yield from _count_differs(where, timing, after, until, wanted)


def _count_differs(where: str, timing: Timing, after: datetime, until: datetime, wanted: list[Owed]) -> Iterator[str]:
    number = count(timing, after, until)
    if number != len(wanted):
        yield f"{where} count is {number}, not {len(wanted)}"


def _disagreement_with_cronsim(
    expression: str, rule: CronRule | EveryRule, transition: Transition, window: Window
) -> Iterator[str]:
    found = cronsim_answers.between(expression, rule, transition, window)
    if found is None:
        return
    wanted = [each.instant for each in owed(rule, window)]
    if found != wanted:
        yield f"{expression} in {transition.time_zone}, {transition.instant:%Y-%m-%dT%H:%MZ}: cronsim has {found}"


def _as_owed(found: Occurrence) -> Owed:
    return Owed(found.instant, found.local, found.fold, found.shifted)


def _said(timing: Timing) -> str:
    phase = f" + {timing.phase.total_seconds():g}s" if timing.phase else ""
    return f"{timing.rule.text}{phase} in {timing.time_zone} ({timing.gap.value}, {timing.repeat.value})"


def _shown(some: list[Owed]) -> str:
    texts = [f"{each.instant:%H:%M:%SZ}={each.local:%d %H:%M}{' shifted' * each.shifted}" for each in some[:3]]
    return f"[{', '.join(texts)}{', ...' * (len(some) > 3)}]"
