"""Goodbye: a worker stops in order. Its session ends, and what it still held is free again.

One that holds very many runs gives them up in small transactions, as nobody may have that many locked for long. Its row
stands until the last of them: were it gone before, the reaper would take the others for lost with their worker.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from uuid import UUID

from scheduler_service.domain.returns import after_goodbye
from scheduler_service.engine.deciding import decided
from scheduler_service.store import reap
from scheduler_service.store import sessions as store
from scheduler_service.store.database import Database

LIMIT = 500
"""Runs in one transaction."""


async def end_session(
    database: Database, session_id: UUID, stream: int, freed: Callable[[], None], *, now: datetime | None = None
) -> None:
    """Ends a session, unless another stream is its newest. `freed` is told of each commit that freed runs."""
    is_over = False
    while not is_over:
        async with database.as_engine() as pooled:
            connection = await store.driver_connection(pooled)
            is_over = await store.holds_at_most(connection, session_id, LIMIT)
            end = store.close_session if is_over else store.lock_session
            worker = await end(connection, session_id, stream)
            if worker is None:
                return
            at = now or await store.database_now(connection)
            held = await reap.held_by(connection, {session_id: worker}, limit=LIMIT)
            await reap.carry_out(connection, await decided(held, partial(after_goodbye, now=at)), at)
        if held:
            freed()
