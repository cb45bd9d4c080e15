"""What was owed, by the oracle: every minute of every zone is walked, month by month."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from scheduler_service.domain.names import ScheduleName
from tests.simulation.diary import Diary, Span, Timing
from tests.time_oracle.grammar import EveryRule, read
from tests.time_oracle.oracle import EPOCH, SECOND, Window, owed

_PART = timedelta(days=30)
_MINUTE = timedelta(minutes=1)


def everything_owed(
    diary: Diary, since: datetime, until: datetime
) -> dict[ScheduleName, list[tuple[datetime, Timing]]]:
    """Each schedule's nominal instants after `since` up to `until`, in order, with what was in force for each."""
    by_zone: dict[str, list[tuple[ScheduleName, Span]]] = defaultdict(list)
    for name in diary.schedules:
        for span in diary.spans(name, until):
            by_zone[span.timing.time_zone].append((name, span))
    found: dict[ScheduleName, list[tuple[datetime, Timing]]] = {name: [] for name in diary.schedules}
    for zone, spans in by_zone.items():
        for start, end in _parts(since, until):
            _walk(zone, start, end, spans, found)
    return {name: sorted(instants, key=lambda pair: pair[0]) for name, instants in found.items()}


def _walk(
    zone: str,
    start: datetime,
    end: datetime,
    spans: list[tuple[ScheduleName, Span]],
    found: dict[ScheduleName, list[tuple[datetime, Timing]]],
) -> None:
    here = [(name, span) for name, span in spans if span.after < end and span.until > start]
    window = Window(zone, start, end) if any(not _is_interval(span.timing) for _, span in here) else None
    known: dict[Timing, list[datetime]] = {}
    for name, span in here:
        if span.timing not in known:
            known[span.timing] = _instants(span.timing, start, end, window)
        within = (instant for instant in known[span.timing] if span.after < instant <= span.until)
        found[name] += [(instant, span.timing) for instant in within]


def _instants(timing: Timing, start: datetime, end: datetime, window: Window | None) -> list[datetime]:
    rule = read(timing.cron)
    if isinstance(rule, EveryRule):
        first, last, phase = ((each - EPOCH) // SECOND for each in (start, end, EPOCH + timing.phase))
        beyond = first + 1 + (phase - first - 1) % rule.period
        return [EPOCH + second * SECOND for second in range(beyond, last + 1, rule.period)]
    assert window is not None
    return [each.instant for each in owed(rule, window, skip_gaps=timing.skip_gaps, both=timing.both)]


def _is_interval(timing: Timing) -> bool:
    return timing.cron.startswith("@every")


def _parts(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The time in stretches of whole minutes."""
    start = since.astimezone(UTC).replace(second=0, microsecond=0)
    while start < until:
        yield start, start + _PART
        start += _PART
