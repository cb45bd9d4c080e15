"""Which routes some worker's session serves, wherever it is connected.

Callers may not see sessions (row level security), and learn no more of them than this: that a route of a run of theirs
is served. So the engine's role looks, on a connection of its own, for all callers together and seldom.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from math import inf

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

_BELIEVED = 1.0
"""In seconds, how long a route that was served is taken to be so still."""

_PATIENCE = 1.0
"""In seconds, how long looking may take: who asks may hold locks meanwhile."""

_SERVED = text("select distinct unnest(routes) from carillon.sessions where expires_at > :now")


class ServedRoutes:
    """What was seen last, and looking again. `connect` gives a transaction of the engine's role; `clock` is monotonic,
    in seconds."""

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._routes: frozenset[str] | None = None
        self._looked_at = -inf
        self._looking = asyncio.Lock()

    async def serves(self, route: str, *, now: datetime, since: float) -> bool | None:
        """Whether a session serves the route, by the database's `now`. That one does may have been seen up to a second
        ago; that none does is seen at `since` (by the monotonic clock) or later. None if it cannot be found out."""
        if self._routes and route in self._routes and self._clock() - self._looked_at < _BELIEVED:
            return True
        if self._looked_at < since:
            async with self._looking:
                if self._looked_at < since:  # nobody has looked while we waited
                    await self._look(now)
        return None if self._routes is None else route in self._routes

    async def _look(self, now: datetime) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(_PATIENCE), self._connect() as connection:
                routes: frozenset[str] | None = frozenset((await connection.execute(_SERVED, {"now": now})).scalars())
        except (SQLAlchemyError, TimeoutError):
            # The engine's connections are all in use, or lead nowhere: who reads runs reads them without this.
            routes = None
        self._routes, self._looked_at = routes, began
