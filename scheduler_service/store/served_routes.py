"""Which routes some worker's session serves, wherever it is connected.

Callers may not see sessions (row level security), and learn no more of them than this: that a route of a run of theirs
is served, and whether only by sessions that are kept for a run that is alone. So the engine's role looks, on a
connection of its own, for all callers together and seldom.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from math import inf

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.domain.pending import Served

_BELIEVED = 1.0
"""In seconds, how long a route that was served, by kept sessions or others, is taken to be so still."""

_PATIENCE = 1.0
"""In seconds, how long looking may take: who asks may hold locks meanwhile."""

# `offset 0`: what a session holds is looked up once, and not for each of its routes.
_SERVED = text("""
select served.route, bool_and(s.kept)
from (
  select s.routes, exists (select from carillon.live_runs a where a.session_id = s.session_id and a.alone) as kept
  from carillon.sessions s where s.expires_at > :now offset 0
) s cross join lateral unnest(s.routes) as served(route)
group by served.route""")


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
        self._routes: Mapping[str, Served] | None = None
        self._looked_at = -inf
        self._looking = asyncio.Lock()

    async def serves(self, route: str, *, now: datetime, since: float) -> Served | None:
        """Whether a session serves the route, by the database's `now`. That one does, kept or not, may have been seen
        up to a second ago; that none does is seen at `since` (by the monotonic clock) or later. None if it cannot be
        found out."""
        if self._routes and route in self._routes and self._clock() - self._looked_at < _BELIEVED:
            return self._routes[route]
        if self._looked_at < since:
            async with self._looking:
                if self._looked_at < since:  # nobody has looked while we waited
                    await self._look(now)
        return None if self._routes is None else self._routes.get(route, Served.NO)

    async def _look(self, now: datetime) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(_PATIENCE), self._connect() as connection:
                rows = await connection.execute(_SERVED, {"now": now})
                routes: dict[str, Served] | None = {
                    route: Served.KEPT if kept else Served.YES for route, kept in rows.all()
                }
        except (SQLAlchemyError, TimeoutError):
            # The engine's connections are all in use, or lead nowhere: who reads runs reads them without this.
            routes = None
        self._routes, self._looked_at = routes, began
