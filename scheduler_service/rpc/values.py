"""Durations, times and enums between messages and domain values."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from scheduler_service.domain.fields import Violations

E = TypeVar("E", bound=Enum)
_MAX_SECONDS = 315_576_000_000
_NANOS = 1_000_000_000


def read_duration(message: Message, field: str, path: str, wrong: Violations) -> timedelta | None:
    """The duration in a field; None if it is not set, or (with a violation) is none. To the microsecond."""
    if not message.HasField(field):
        return None
    duration: Duration = getattr(message, field)
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_SECONDS or abs(nanos) >= _NANOS or seconds * nanos < 0:
        wrong.add(f"{path}.{field}", f"{seconds} s and {nanos} ns are no duration that google.protobuf.Duration allows")
        return None
    return timedelta(seconds=seconds, microseconds=nanos // 1000 if nanos >= 0 else -(-nanos // 1000))


def write_duration(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    message = Duration()
    message.FromTimedelta(duration)
    return message


def write_time(instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def read_enum(message: Message, field: str, kind: type[E], prefix: str, path: str, wrong: Violations) -> E | None:
    """The domain's value of the same name as an enum field's, less its prefix; None for UNSPECIFIED, the default."""
    number: int = getattr(message, field)
    if number == 0:
        return None
    declared = message.DESCRIPTOR.fields_by_name[field].enum_type
    known = declared.values_by_number.get(number) if declared else None
    if known is None:
        where = f"{path}.{field}" if path else field
        wrong.add(where, f"{number} is no value of it that this scheduler knows")
        return None
    return kind[known.name.removeprefix(prefix)]
