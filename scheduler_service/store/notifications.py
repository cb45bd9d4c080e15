"""LISTEN and NOTIFY: how replicas tell each other that something happened. A notification names it, and no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from scheduler_service.store import arrays
from scheduler_service.store.connection import KEEPALIVE, Connection, PatientConnection, answering_within

_ASK_SECONDS = 5.0
_TELL: LiteralString = "select pg_notify('carillon', t) from unnest(%(topics)s::text[]) as t"


async def direct_connection(url: str) -> Connection:
    """A connection that can LISTEN: not through PgBouncer in transaction mode. Notices within half a minute that the
    other end is gone, though it never says anything itself."""
    return await PatientConnection.connect(url, autocommit=True, **KEEPALIVE)


async def listen(connection: Connection) -> None:
    """From now on, what is told arrives on this connection."""
    await connection.execute("listen carillon")


async def hear(connection: Connection, seconds: float) -> list[tuple[str, int]]:
    """What was told: each name, and the process id of the teller's connection. Waits so long for the first."""
    heard = connection.notifies(timeout=seconds, stop_after=1)
    return [(notify.payload, notify.pid) async for notify in heard]


async def require_answer(connection: Connection) -> None:
    """Returns if the server is at the other end. Whoever only listens would not notice a proxy that lost it. Errors:
    psycopg.OperationalError."""
    with answering_within(_ASK_SECONDS):
        await connection.execute("select 1")


async def tell(connection: Connection, topics: Iterable[str]) -> None:
    """Tells all who listen. In a statement of its own: NOTIFY takes a lock of the whole server at commit."""
    await connection.execute(_TELL, {"topics": arrays.texts(topics)})
