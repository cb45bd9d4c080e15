"""What a run is: its states, why it exists, and how its id is made (RFC 9562)."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from scheduler_service.domain.errors import InvalidInput, Violation

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_VARIANT = 0b10 << 62
_LOW_62 = (1 << 62) - 1


class RunState(StrEnum):
    """Where a run stands. The last four are outcomes: such a run never changes again."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"

    @property
    def is_live(self) -> bool:
        return self in (RunState.PENDING, RunState.RUNNING)


class TriggerSource(StrEnum):
    """Why a run exists."""

    SCHEDULE = "SCHEDULE"
    CATCH_UP = "CATCH_UP"
    MANUAL = "MANUAL"
    BACKFILL = "BACKFILL"
    REPAIR = "REPAIR"
    TEST = "TEST"
    EXTERNAL = "EXTERNAL"


def scheduled_run_id(schedule_id: int, instant: datetime) -> UUID:
    """The id of the run for an occurrence: a UUIDv8 of the nominal instant's milliseconds, then a hash of schedule
    and instant, so that the same occurrence has the same id on every replica."""
    microseconds = (instant - EPOCH) // _MICROSECOND
    digest = int.from_bytes(hashlib.blake2b(b"%d@%d" % (schedule_id, microseconds), digest_size=10).digest(), "big")
    return _uuid(microseconds // 1000, version=8, high=digest >> 68, low=digest & _LOW_62)


def new_run_id(now: datetime) -> UUID:
    """The id of a run that no schedule owes: a UUIDv7 of the database's `now`."""
    random = secrets.randbits(74)
    return _uuid((now - EPOCH) // _MILLISECOND, version=7, high=random >> 62, low=random & _LOW_62)


def id_floor(instant: datetime) -> UUID:
    """The smallest id of an instant, for ranges of ids that mean ranges of time."""
    return UUID(int=((instant - EPOCH) // _MILLISECOND) << 80)


def run_name(run_id: UUID) -> str:
    """The resource name: `runs/{run}`."""
    return f"runs/{run_id}"


def parse_run_name(name: str, field: str = "name") -> UUID:
    """Reads `runs/{run}`. Refuses anything else with InvalidInput for the field."""
    kind, _, text = name.partition("/")
    with suppress(ValueError):
        run_id = UUID(text)
        if kind == "runs" and str(run_id) == text.lower():
            return run_id
    shown = ascii(name if len(name) <= 80 else f"{name[:77]}...")
    raise InvalidInput(Violation(field, f"{shown} is not of the form runs/{{run}}, where the run's id is a UUID"))


def _uuid(milliseconds: int, *, version: int, high: int, low: int) -> UUID:
    return UUID(int=milliseconds << 80 | version << 76 | high << 64 | _VARIANT | low)
