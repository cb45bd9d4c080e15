"""Python values as the messages have them: JSON objects as `Struct`, seconds as `Duration`, instants as `Timestamp`,
enums by their short names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2

Seconds = float | int | timedelta

# A Struct carries numbers as doubles; beyond this, integers would change on the way.
LARGEST_INTEGER = 2**53
# In seconds, what a Duration can carry: 10,000 years.
_LONGEST = 315_576_000_000


def to_struct(value: Mapping[str, object], what: str) -> struct_pb2.Struct:
    """`value` as a JSON object.

    Raises ValueError or TypeError with a sentence that names the place below `what` if it cannot arrive unchanged.
    """
    struct = struct_pb2.Struct()
    _fill_struct(struct, value, what)
    return struct


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The JSON object; numbers without a fraction are ints, as far as doubles count them."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def to_duration(value: Seconds, what: str) -> duration_pb2.Duration:
    """`value` in seconds, or a timedelta. Raises TypeError or ValueError with a sentence that names `what`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(value).__name__}")
    if not value >= 0 or value == math.inf:
        raise ValueError(f"{what} must be a number of seconds from 0 on, not {value}")
    if value > _LONGEST:
        raise ValueError(f"{what} must be at most {_LONGEST} seconds, which is 10,000 years")
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def to_timestamp(value: datetime, what: str) -> timestamp_pb2.Timestamp:
    """`value` as an instant. Raises ValueError if it has no time zone."""
    if value.tzinfo is None:
        raise ValueError(f"{what} must say its time zone: {value.isoformat()} has none")
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(value)
    return timestamp


def set_range(request: Any, since: datetime | None, until: datetime | None) -> None:
    """Sets `since` and `until` of a request, where they are given. Raises ValueError for one without a time zone."""
    if since is not None:
        request.since.CopyFrom(to_timestamp(since, "since"))
    if until is not None:
        request.until.CopyFrom(to_timestamp(until, "until"))


def to_enum(kind: Any, prefix: str, name: str) -> Any:
    """The value of an enum by its name without the prefix, such as `FAILED`. Raises ValueError with those there are."""
    try:
        return kind.Value(prefix + name.upper())
    except ValueError:
        known = ", ".join(value.removeprefix(prefix) for value in kind.keys()[1:])
        raise ValueError(f"{name!r} is none of {known}") from None


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [_plain(entry) for entry in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= LARGEST_INTEGER else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _fill_struct(struct: struct_pb2.Struct, value: Mapping[str, object], where: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a mapping, not {type(value).__name__}")
    for key, entry in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r}; keys must be strings")
        _fill(struct.fields[_text(key, where)], entry, f"{where}.{key}")


def _fill(target: struct_pb2.Value, value: object, where: str) -> None:
    if value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, (int, float)):
        target.number_value = _number(value, where)
    elif isinstance(value, str):
        target.string_value = _text(value, where)
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        _fill_struct(target.struct_value, value, where)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        target.list_value.SetInParent()
        for index, entry in enumerate(value):
            _fill(target.list_value.values.add(), entry, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot carry")


def _number(value: int | float, where: str) -> float:
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{where} is {value}, beyond 2**53, and would lose digits; send it as a string")
    if not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON does not have")
    return float(value)


def _text(value: str, where: str) -> str:
    if "\0" in value:
        raise ValueError(f"{where} contains a NUL character, which PostgreSQL cannot store")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where} contains half of a surrogate pair, which is no valid text") from None
    return value
