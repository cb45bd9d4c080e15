"""Connections: one pool for each of the two roles, and the engine's own hot connections.

The API's role sees and writes only what the principal of its transaction may (row level security), so a transaction
begins by saying who that is. The engine's role works for all tenants.

Nothing here may outlive its transaction in the server's session: behind PgBouncer the next transaction of that session
is somebody else's. So what a session needs is set with its login (`logins`), what a transaction needs with
`set_config(..., true)`, and locks are `pg_advisory_xact_lock`. LISTEN has a direct connection (`notifications`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from scheduler_service.domain.access import Principal
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, what_login_lacks

_CONNECT_SECONDS = 5
# How the client notices that the other end is gone; the server's side of it goes with the login (`logins`).
_KEEPALIVE: dict[str, Any] = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

_ACT_FOR = text(
    "select set_config('carillon.kind', :kind, true), set_config('carillon.service', :service, true),"
    " set_config('carillon.tenant', :tenant, true), set_config('carillon.principal', :principal, true),"
    " clock_timestamp()"
)
_NOW = text("select clock_timestamp()")
_BY_INDEX = text(
    "select set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)"
)


class Transaction:
    """One transaction of the API's role: a SQLAlchemy connection, for whom it acts, and the database's now, as it was
    when the transaction began or `look_at_clock` was called."""

    def __init__(self, connection: AsyncConnection, principal: Principal, now: datetime) -> None:
        self.connection = connection
        self.principal = principal
        self.now = now

    async def look_at_clock(self) -> None:
        """Takes `now` again. For those who have waited for a lock: others may have acted later than `now` meanwhile,
        and what counts from it would count from before them."""
        self.now = (await self.connection.execute(_NOW)).scalar_one()

    async def driver_connection(self) -> psycopg.AsyncConnection[TupleRow]:
        """The driver's connection under this transaction, for batch statements that are shared with the engine. From
        here on the transaction plans by index, as the engine does: where one schedule has nearly all live runs, the
        planner would otherwise walk through them for each run (14 s for 10,000)."""
        await self.connection.execute(_BY_INDEX)
        raw = await self.connection.get_raw_connection()
        connection = raw.driver_connection
        assert isinstance(connection, psycopg.AsyncConnection)
        return connection


class Database:
    """The one PostgreSQL. `api_url` and `engine_url` are `postgresql://` URLs of the two login roles;
    `through_pgbouncer` says that they lead to one in transaction mode, which may know no prepared statements."""

    def __init__(self, api_url: str, engine_url: str, *, pool_size: int = 10, through_pgbouncer: bool = False) -> None:
        self._engine_url = engine_url
        self._through_pgbouncer = through_pgbouncer
        self._api = _pool(api_url, pool_size, through_pgbouncer)
        # The same pool.
        self._snapshots = self._api.execution_options(isolation_level="REPEATABLE READ")
        self._engine = _pool(engine_url, pool_size, through_pgbouncer)

    @asynccontextmanager
    async def acting_for(self, principal: Principal, *, one_snapshot: bool = False) -> AsyncIterator[Transaction]:
        """A transaction on behalf of a caller; committed at the end, rolled back on any error. With `one_snapshot`,
        for one that only reads, all its statements see the same moment."""
        async with (self._snapshots if one_snapshot else self._api).begin() as connection:
            answer = await connection.execute(
                _ACT_FOR,
                {
                    "kind": principal.kind.value,
                    "service": principal.service,
                    "tenant": principal.tenant,
                    "principal": str(principal),
                },
            )
            yield Transaction(connection, principal, answer.one()[-1])

    @asynccontextmanager
    async def as_engine(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of the engine's role, for work that is not hot."""
        async with self._engine.begin() as connection:
            yield connection

    async def hot_connection(self) -> psycopg.AsyncConnection[TupleRow]:
        """A connection of the engine's role outside any pool, in autocommit, for a loop around one statement."""
        return await psycopg.AsyncConnection.connect(
            self._engine_url,
            autocommit=True,
            prepare_threshold=None if self._through_pgbouncer else 1,
            **_KEEPALIVE,
        )

    async def what_logins_lack(self) -> list[str]:
        """For each login without the settings that it should have (one made by hand), the SQL that gives them."""
        async with self._api.connect() as api, self._engine.connect() as engine:
            lacking = [await what_login_lacks(api, API_ROLE), await what_login_lacks(engine, ENGINE_ROLE)]
        return [statement for statement in lacking if statement]

    async def forget_connections(self) -> None:
        """Later transactions have connections that are opened anew."""
        await self._api.dispose()
        await self._engine.dispose()

    async def close(self) -> None:
        await self._api.dispose()
        await self._engine.dispose()


def _pool(url: str, size: int, through_pgbouncer: bool) -> AsyncEngine:
    return create_async_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={**_KEEPALIVE, **({"prepare_threshold": None} if through_pgbouncer else {})},
        hide_parameters=True,
    )
