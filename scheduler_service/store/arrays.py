"""Arrays as parameters of batch statements, as text that the statement casts.

psycopg's own arrays take the smallest type that holds their numbers and none at all when they are empty, so that a
statement would be prepared again and again; and writing them costs three times as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime


def plain(values: Iterable[object]) -> str:
    """Numbers, uuids, booleans and plain words; None is NULL."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def instants(values: Iterable[datetime | None]) -> str:
    """Points in time, with their offset where they have one."""
    # By identity: those that share a timing share the very same object, and finding it costs a quarter of writing it.
    written: dict[int, str] = {id(None): "NULL"}
    kept = list(values)
    for value in kept:
        if id(value) not in written and value is not None:
            written[id(value)] = value.isoformat()
    return "{" + ",".join([written[id(value)] for value in kept]) + "}"


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
