"""What is kept for a while only."""

from __future__ import annotations

from datetime import timedelta

from scheduler_service.store.connection import Connection

REQUESTS_KEPT = timedelta(hours=24)


async def forget_requests(connection: Connection) -> int:
    """Forgets the answers to requests that may not be sent again; answers how many."""
    forgotten = "delete from carillon.requests where created_at < clock_timestamp() - %s"
    return (await connection.execute(forgotten, [REQUESTS_KEPT])).rowcount
