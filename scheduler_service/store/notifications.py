"""LISTEN and NOTIFY: how replicas tell each other that something happened. A notification names it, and no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from scheduler_service.store import arrays

Connection = psycopg.AsyncConnection[TupleRow]

_CONNECT_SECONDS = 5
_TELL: LiteralString = "select pg_notify('carillon', t) from unnest(%(topics)s::text[]) as t"


async def direct_connection(url: str) -> Connection:
    """A connection that can LISTEN: not through PgBouncer in transaction mode. Notices within half a minute that the
    other end is gone, though it never says anything itself."""
    return await psycopg.AsyncConnection.connect(
        url,
        autocommit=True,
        connect_timeout=_CONNECT_SECONDS,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
    )


async def listen(connection: Connection) -> None:
    """From now on, what is told arrives on this connection."""
    await connection.execute("listen carillon")


async def hear(connection: Connection, seconds: float) -> list[tuple[str, int]]:
    """What was told: each name, and the process id of the teller's connection. Waits so long for the first."""
    heard = connection.notifies(timeout=seconds, stop_after=1)
    return [(notify.payload, notify.pid) async for notify in heard]


async def tell(connection: Connection, topics: Iterable[str]) -> None:
    """Tells all who listen. In a statement of its own: NOTIFY takes a lock of the whole server at commit."""
    await connection.execute(_TELL, {"topics": arrays.texts(topics)})
