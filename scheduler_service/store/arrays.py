"""Arrays as parameters of batch statements.

psycopg's own arrays take the smallest type that holds their numbers and none at all when they are empty, so that a
statement would be prepared again and again; and writing them costs three times as much. Numbers and texts go as text
that the statement casts; ids and points in time go in PostgreSQL's binary format, which spares each side half a
microsecond a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format


def plain(values: Iterable[object]) -> str:
    """Numbers, uuids, booleans and plain words; None is NULL."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """Any text; an array of nothing but None is empty, which `unnest` fills up with NULL."""
    written = [None if value is None else _quoted(value) for value in values]
    if not any(written):
        return "{}"
    return "{" + ",".join([value or "NULL" for value in written]) + "}"


def _quoted(value: str) -> str:
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


class Uuids(bytes):
    """A uuid[] on the wire."""


class Instants(bytes):
    """A timestamptz[] on the wire."""


class LocalTimes(bytes):
    """A timestamp[] on the wire."""


def uuids(values: Iterable[UUID | None]) -> Uuids:
    """Ids; None is NULL."""
    return Uuids(_array(_UUID, [_NULL if value is None else _SIXTEEN + value.bytes for value in values]))


def instants(values: Iterable[datetime | None]) -> Instants:
    """Points in time, of any zone; None is NULL."""
    return Instants(_array(_TIMESTAMPTZ, _times(values, _EPOCH)))


def local_times(values: Iterable[datetime | None]) -> LocalTimes:
    """Local times, without a zone; None is NULL."""
    return LocalTimes(_array(_TIMESTAMP, _times(values, _EPOCH.replace(tzinfo=None))))


_UUID, _TIMESTAMP, _TIMESTAMPTZ = 2950, 1114, 1184
# The number of dimensions, a flag that PostgreSQL does not need, the type of the elements, their number, the first's.
_HEADER = struct.Struct(">iiIii")
_NULL = struct.pack(">i", -1)
_SIXTEEN = struct.pack(">i", 16)
_TIME = struct.Struct(">iq")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _array(element: int, written: Sequence[bytes]) -> bytes:
    return _HEADER.pack(1, 0, element, len(written), 1) + b"".join(written)


def _times(values: Iterable[datetime | None], epoch: datetime) -> list[bytes]:
    # By identity: those that share a timing share the very same object, and finding it costs a third of writing it.
    written: dict[int, bytes] = {id(None): _NULL}
    kept = list(values)
    for value in kept:
        if id(value) not in written and value is not None:
            written[id(value)] = _TIME.pack(8, (value - epoch) // _MICROSECOND)
    return [written[id(value)] for value in kept]


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


class _UuidsDumper(_AsItIs):
    oid = 2951


class _InstantsDumper(_AsItIs):
    oid = 1185


class _LocalTimesDumper(_AsItIs):
    oid = 1115


# For every connection that is opened from here on, whoever opens it.
psycopg.adapters.register_dumper(Uuids, _UuidsDumper)
psycopg.adapters.register_dumper(Instants, _InstantsDumper)
psycopg.adapters.register_dumper(LocalTimes, _LocalTimesDumper)
