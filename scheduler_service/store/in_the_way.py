"""Who is in the way of results: rows that somebody has locked, found without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Result
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.stuck import be_patient_briefly

_THERE: LiteralString = """
select r.run_id, r.attempt, r.claim_id
from unnest(%(run_ids)s::uuid[], %(attempts)s::int[], %(claim_ids)s::bigint[], %(of_sessions)s::uuid[])
  as r(run_id, attempt, claim_id, session_id)
join carillon.sessions s on s.session_id = r.session_id
join carillon.live_runs l on l.run_id = r.run_id and l.attempt = r.attempt and l.claim_id = r.claim_id
  and l.session_id is not distinct from r.session_id"""

# The locks are let go of with the end of the transaction, which is at once.
_FREE: LiteralString = f"{_THERE} order by l.run_id for update of l skip locked for key share of s skip locked"


async def in_the_way(connection: Connection, reports: Sequence[Result | ItemResult]) -> set[AttemptRef]:
    """Attempts among these whose live run, or whose session, somebody has locked. Errors: LockNotAvailable, after half
    a second, where that is a whole table."""
    ordered = sorted({(each.ref, each.session_id) for each in reports}, key=lambda each: each[0].run_id.int)
    parameters = {
        "run_ids": arrays.uuids(ref.run_id for ref, _ in ordered),
        "attempts": arrays.plain(ref.attempt for ref, _ in ordered),
        "claim_ids": arrays.plain(ref.claim_id for ref, _ in ordered),
        "of_sessions": arrays.uuids(session_id for _, session_id in ordered),
    }
    async with connection.transaction():
        await be_patient_briefly(connection)
        there = await (await connection.execute(_THERE, parameters, binary=True)).fetchall()
        free = await (await connection.execute(_FREE, parameters, binary=True)).fetchall()
    return {AttemptRef(*row) for row in there} - {AttemptRef(*row) for row in free}
