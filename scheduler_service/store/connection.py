"""A connection to PostgreSQL that notices when the other end is gone, or says nothing any more.

The server ends a statement after its `statement_timeout` (`logins`). A connection on which nothing came for longer
leads nowhere, though it looks whole: through a proxy or balancer whose other side is gone, or to a host that hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

Connection = psycopg.AsyncConnection[TupleRow]

_CONNECT_SECONDS = 5
KEEPALIVE: dict[str, Any] = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""How the client notices that the other end is gone; the server's side of it goes with the login (`logins`)."""

# Longer than the statement_timeout of a login.
_PATIENCE = 65.0
_patience: ContextVar[float] = ContextVar("patience", default=_PATIENCE)

_Row = TypeVar("_Row", covariant=True)
_Answer = TypeVar("_Answer")


@contextmanager
def answering_within(seconds: float) -> Iterator[None]:
    """In here, a server that has not answered a statement for so long counts as gone."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


class PatientConnection(psycopg.AsyncConnection[_Row]):
    """psycopg's, which waits for an answer, but not for ever: then it is closed, and OperationalError raised.

    `outdated`: whoever keeps it, opens another in its place before the next transaction."""

    outdated = False

    async def wait(self, gen: PQGen[_Answer], interval: float = 0.1, timeout: float | None = None) -> _Answer:
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        seconds = _patience.get()
        try:
            return await super().wait(gen, interval, seconds)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has not answered for {seconds:g} s") from None
        except psycopg.InternalError as error:
            if error.sqlstate is not None:
                raise
            # Not the server's, but the driver's: PgBouncer passes on the last word of a server connection that ends,
            # and adds its own, and the driver, which began or ended a transaction, expected one answer.
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the connection was lost: {error}") from None
