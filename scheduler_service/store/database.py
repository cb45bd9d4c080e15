"""Connections: one pool for each of the two roles, and the engine's own hot connections.

The API's role sees and writes only what the principal of its transaction may (row level security), so a transaction
begins by saying who that is. The engine's role works for all tenants.

Nothing here may outlive its transaction in the server's session: behind PgBouncer the next transaction of that session
is somebody else's. So what a session needs is set with its login (`logins`), what a transaction needs with
`set_config(..., true)`, and locks are `pg_advisory_xact_lock`. LISTEN has a direct connection (`notifications`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from scheduler_service.domain.access import Principal
from scheduler_service.domain.pending import Served
from scheduler_service.store.connection import KEEPALIVE, Connection, PatientConnection, answering_within
from scheduler_service.store.errors import is_read_only
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, what_login_lacks
from scheduler_service.store.served_routes import ServedRoutes

# For a connection of the pool to be free, and to be opened where it must be.
_POOL_SECONDS = 5
# For a first statement, which waits for nobody.
_BEGIN_SECONDS = 5.0

_ACT_FOR = text(
    "select set_config('carillon.kind', :kind, true), set_config('carillon.service', :service, true),"
    " set_config('carillon.tenant', :tenant, true), set_config('carillon.principal', :principal, true),"
    " clock_timestamp()"
)
_NOW = text("select clock_timestamp()")
_TAKES_CHANGES = text("select current_setting('transaction_read_only') = 'off'")
_BY_INDEX = text(
    "select set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)"
)


class Transaction:
    """One transaction of the API's role: a SQLAlchemy connection, for whom it acts, and the database's now, as it was
    when the transaction began or `look_at_clock` was called."""

    def __init__(
        self, connection: AsyncConnection, principal: Principal, now: datetime, served_routes: ServedRoutes
    ) -> None:
        self.connection = connection
        self.principal = principal
        self.now = now
        self.served_routes = served_routes
        self._began = monotonic()

    async def serves(self, route: str) -> Served | None:
        """Whether a worker that is connected serves the route, as it was during this transaction or, if one does, up
        to a second before. None if that cannot be found out."""
        return await self.served_routes.serves(route, now=self.now, since=self._began)

    async def look_at_clock(self) -> None:
        """Takes `now` again. For those who have waited for a lock: others may have acted later than `now` meanwhile,
        and what counts from it would count from before them."""
        self.now = (await self.connection.execute(_NOW)).scalar_one()

    async def takes_changes(self) -> bool:
        """False of a standby, and of a primary that was made read-only."""
        return bool((await self.connection.execute(_TAKES_CHANGES)).scalar_one())

    async def driver_connection(self) -> Connection:
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
        self._opened: WeakSet[PatientConnection[TupleRow]] = WeakSet()
        self._api = self._pool(api_url, pool_size)
        # The same pool.
        self._snapshots = self._api.execution_options(isolation_level="REPEATABLE READ")
        self._engine = self._pool(engine_url, pool_size)
        self._served_routes = ServedRoutes(self.as_engine)

    @asynccontextmanager
    async def acting_for(self, principal: Principal, *, one_snapshot: bool = False) -> AsyncIterator[Transaction]:
        """A transaction on behalf of a caller; committed at the end, rolled back on any error. With `one_snapshot`,
        for one that only reads, all its statements see the same moment."""
        async with AsyncExitStack() as stack:
            with answering_within(_BEGIN_SECONDS):
                engine = self._snapshots if one_snapshot else self._api
                connection = await stack.enter_async_context(engine.begin())
                answer = await connection.execute(
                    _ACT_FOR,
                    {
                        "kind": principal.kind.value,
                        "service": principal.service,
                        "tenant": principal.tenant,
                        "principal": str(principal),
                    },
                )
            yield Transaction(connection, principal, answer.one()[-1], self._served_routes)

    @asynccontextmanager
    async def as_engine(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of the engine's role, for work that is not hot."""
        async with AsyncExitStack() as stack:
            with answering_within(_BEGIN_SECONDS):
                connection = await stack.enter_async_context(self._engine.begin())
            yield connection

    async def hot_connection(self) -> Connection:
        """A connection of the engine's role outside any pool, in autocommit, for a loop around one statement."""
        return await self._open(
            self._engine_url,
            autocommit=True,
            prepare_threshold=None if self._through_pgbouncer else 1,
            **KEEPALIVE,
        )

    async def what_logins_lack(self) -> list[str]:
        """For each login without the settings that it should have (one made by hand), the SQL that gives them."""
        async with self._api.connect() as api, self._engine.connect() as engine:
            lacking = [await what_login_lacks(api, API_ROLE), await what_login_lacks(engine, ENGINE_ROLE)]
        return [statement for statement in lacking if statement]

    async def forget_connections(self) -> None:
        """Later transactions have connections that are opened anew, the loops' too."""
        for connection in self._opened:
            connection.outdated = True

    async def close(self) -> None:
        await self._api.dispose()
        await self._engine.dispose()

    def _pool(self, url: str, size: int) -> AsyncEngine:
        pool = create_async_engine(
            make_url(url).set(drivername="postgresql+psycopg"),
            pool_size=size,
            max_overflow=0,
            pool_timeout=_POOL_SECONDS,
            pool_pre_ping=True,
            connect_args={
                **KEEPALIVE,
                **({"prepare_threshold": None} if self._through_pgbouncer else {}),
                "async_creator_fn": self._open,
            },
            hide_parameters=True,
        )
        event.listen(pool.sync_engine, "handle_error", _leave_the_read_only)
        event.listen(pool.sync_engine, "checkout", _leave_the_outdated)
        return pool

    async def _open(self, url: str = "", **options: Any) -> PatientConnection[TupleRow]:
        connection = await PatientConnection.connect(url, **options)
        self._opened.add(connection)
        return connection


def _leave_the_read_only(context: ExceptionContext) -> None:
    """A server that lets nobody write is the wrong one: its address may lead to another by now, and connections that
    are open would stay with it."""
    if is_read_only(context.original_exception):
        context.is_disconnect = True


def _leave_the_outdated(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
    """The pool opens another instead."""
    if connection.driver_connection.outdated:
        raise DisconnectionError("it is outdated")
