"""When schedules are owed: expressions, time zones, occurrences, catch-up, and words for people.

Pure: no I/O but the package's own tables, and no clock (`now` is an argument).
"""

from scheduler_service.domain.timing.catch_up import CatchUp, Due, Missed, MissedReason, Settlement, settle
from scheduler_service.domain.timing.errors import TimingError
from scheduler_service.domain.timing.grammar import parse
from scheduler_service.domain.timing.instants import (
    HORIZON,
    count,
    latest_occurrence,
    next_occurrence,
    occurrences,
)
from scheduler_service.domain.timing.jitter import jitter_offset
from scheduler_service.domain.timing.model import GapPolicy, Occurrence, RepeatPolicy, Timing
from scheduler_service.domain.timing.rule import Cron, Every
from scheduler_service.domain.timing.words import describe
from scheduler_service.domain.timing.zones import tzdata_version, zone

__all__ = [
    "HORIZON",
    "CatchUp",
    "Cron",
    "Due",
    "Every",
    "GapPolicy",
    "Missed",
    "MissedReason",
    "Occurrence",
    "RepeatPolicy",
    "Settlement",
    "Timing",
    "TimingError",
    "count",
    "describe",
    "jitter_offset",
    "latest_occurrence",
    "next_occurrence",
    "occurrences",
    "parse",
    "settle",
    "tzdata_version",
    "zone",
]
