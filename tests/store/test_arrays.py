"""Arrays arrive as they were."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest

from scheduler_service.store import arrays

IDS = [UUID(int=1), None, UUID(int=0), UUID(int=2**128 - 1)]
NOW = datetime(2026, 11, 21, 4, 27, 51, 123456, tzinfo=UTC)
INSTANTS = [NOW, None, NOW, datetime(1970, 1, 1, tzinfo=UTC), NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))]
LOCAL_TIMES = [NOW.replace(tzinfo=None), None, datetime(1999, 12, 31, 23, 59, 59, 999_999)]  # noqa: DTZ001 - local


@pytest.mark.parametrize(
    ("query", "written", "values"),
    [
        ("select unnest(%s::uuid[])", arrays.uuids(IDS), IDS),
        ("select unnest(%s::timestamptz[])", arrays.instants(INSTANTS), INSTANTS),
        ("select unnest(%s::timestamp[])", arrays.local_times(LOCAL_TIMES), LOCAL_TIMES),
        ("select unnest(%s::uuid[])", arrays.uuids([]), []),
        ("select unnest(%s::timestamptz[])", arrays.instants([None]), [None]),
    ],
    ids=["ids", "instants", "local times", "nothing", "null"],
)
async def test_an_array_arrives_as_it_was(
    hot: psycopg.AsyncConnection[Any], query: LiteralString, written: bytes, values: list[object]
) -> None:
    rows = await (await hot.execute(query, [written])).fetchall()
    assert [value for (value,) in rows] == values
