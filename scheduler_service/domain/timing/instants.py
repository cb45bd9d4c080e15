"""The occurrences of a timing: stepped forward, the latest, and how many.

croniter steps over local time; counting and looking back are arithmetic over dates. The two are held to the
same answers by tests. Nothing is owed after 2199.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from scheduler_service.domain.timing.dates import count_matches, first_match, last_match
from scheduler_service.domain.timing.local_spans import Gap, Span, local_spans
from scheduler_service.domain.timing.model import Occurrence, Timing
from scheduler_service.domain.timing.rule import Cron, Every
from scheduler_service.domain.timing.stepping import LocalSteps
from scheduler_service.domain.timing.zones import zone

HORIZON = datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


def occurrences(timing: Timing, after: datetime, until: datetime | None = None) -> Iterator[Occurrence]:
    """Those strictly after `after`, up to and including `until` (default: the end of 2199), in order of
    their instants and no instant twice. Both bounds are aware."""
    end = HORIZON if until is None else min(until, HORIZON)
    if end <= after:
        return iter(())
    if isinstance(timing.rule, Every):
        return _intervals(timing, timing.rule, after, end)
    return _matches(timing, timing.rule, _naive_utc(after), _naive_utc(end))


@lru_cache(maxsize=32_768)
def next_occurrence(timing: Timing, after: datetime) -> Occurrence | None:
    """The first one strictly after an aware instant; None if there is none before 2200.

    Remembered, because schedules that share an expression, a zone and an instant ask again and again.
    """
    return next(occurrences(timing, after), None)


def latest_occurrence(timing: Timing, after: datetime, until: datetime) -> Occurrence | None:
    """The last one in `(after, until]`, found from the end without stepping through the stretch."""
    end = min(until, HORIZON)
    if end <= after:
        return None
    if isinstance(timing.rule, Every):
        return _latest_interval(timing, timing.rule, after, end)
    spans = list(local_spans(timing.rule, timing, _naive_utc(after), _naive_utc(end)))
    found = (_latest_in(timing.rule, span) for span in reversed(spans))
    return next((occurrence for occurrence in found if occurrence is not None), None)


def first_occurrence(timing: Timing, after: datetime, until: datetime) -> Occurrence | None:
    """The first one in `(after, until]`, by arithmetic: for a past that is asked about once, where `next_occurrence`
    steps and remembers."""
    end = min(until, HORIZON)
    if end <= after:
        return None
    if isinstance(timing.rule, Every):
        return next(_intervals(timing, timing.rule, after, end), None)
    spans = local_spans(timing.rule, timing, _naive_utc(after), _naive_utc(end))
    found = (_first_in(timing.rule, span) for span in spans)
    return next((occurrence for occurrence in found if occurrence is not None), None)


def count(timing: Timing, after: datetime, until: datetime) -> int:
    """How many there are in `(after, until]`, by arithmetic: its cost grows with days, not occurrences."""
    end = min(until, HORIZON)
    if end <= after:
        return 0
    if isinstance(timing.rule, Every):
        return _interval_number(timing, timing.rule, end) - _interval_number(timing, timing.rule, after)
    spans = local_spans(timing.rule, timing, _naive_utc(after), _naive_utc(end))
    return sum(_count_in(timing.rule, span) for span in spans)


def _matches(timing: Timing, rule: Cron, after: datetime, until: datetime) -> Iterator[Occurrence]:
    steps = LocalSteps(rule.forms)
    for span in local_spans(rule, timing, after, until):
        if isinstance(span, Gap):
            left_out = steps.first_from(span.first)
            if left_out is not None and left_out < span.end and steps.first_from(span.end) != span.end:
                yield _shifted(span, left_out)
            continue
        local = steps.first_from(span.first)
        while local is not None and local < span.end:
            yield _plain(span, local)
            local = steps.first_from(local + _MINUTE)
        if local is None:
            return


def _first_in(rule: Cron, span: Span | Gap) -> Occurrence | None:
    if isinstance(span, Gap):
        return _only_in(rule, span)
    local = first_match(rule, span.first, span.end)
    return None if local is None else _plain(span, local)


def _latest_in(rule: Cron, span: Span | Gap) -> Occurrence | None:
    if isinstance(span, Gap):
        return _only_in(rule, span)
    local = last_match(rule, span.first, span.end)
    return None if local is None else _plain(span, local)


def _only_in(rule: Cron, gap: Gap) -> Occurrence | None:
    if _count_in(rule, gap) == 0:
        return None
    left_out = first_match(rule, gap.first, gap.end)
    return None if left_out is None else _shifted(gap, left_out)


def _count_in(rule: Cron, span: Span | Gap) -> int:
    left_out = count_matches(rule, span.first, span.end)
    if isinstance(span, Span):
        return left_out
    shown_anyway = count_matches(rule, span.end, span.end + timedelta(microseconds=1))
    return 1 if left_out and not shown_anyway else 0


def _plain(span: Span, local: datetime) -> Occurrence:
    return Occurrence((local - span.offset).replace(tzinfo=UTC), local, fold=int(local < span.reached))


def _shifted(gap: Gap, local: datetime) -> Occurrence:
    return Occurrence(gap.instant.replace(tzinfo=UTC), local, shifted=True)


def _intervals(timing: Timing, rule: Every, after: datetime, until: datetime) -> Iterator[Occurrence]:
    instant = _interval_instant(timing, rule, _interval_number(timing, rule, after) + 1)
    while instant <= until:
        yield _elapsed(timing, instant)
        instant += rule.period


def _latest_interval(timing: Timing, rule: Every, after: datetime, until: datetime) -> Occurrence | None:
    instant = _interval_instant(timing, rule, _interval_number(timing, rule, until))
    return _elapsed(timing, instant) if instant > after else None


def _interval_number(timing: Timing, rule: Every, at: datetime) -> int:
    """Which interval since the epoch the last instant at or before `at` ends."""
    return (at - _EPOCH - timing.phase) // rule.period


def _interval_instant(timing: Timing, rule: Every, number: int) -> datetime:
    return _EPOCH + timing.phase + number * rule.period


def _elapsed(timing: Timing, instant: datetime) -> Occurrence:
    local = instant.astimezone(zone(timing.time_zone))
    return Occurrence(instant, local.replace(tzinfo=None, fold=0), fold=local.fold)


def _naive_utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(tzinfo=None)
