"""How far running attempts are, written in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from scheduler_service.store.arrays import plain, texts
from scheduler_service.store.connection import Connection
from scheduler_service.store.patience import PATIENCE, PATIENTLY, UNLOCKED, in_ms

_PROGRESS: LiteralString = """
update carillon.live_runs r set
  progress = jsonb_build_object('done', b.done, 'total', b.total, 'message', b.message, 'updated_at', t.now)
from unnest(%(run_ids)s::uuid[], %(attempts)s::integer[], %(claim_ids)s::bigint[], %(session_ids)s::uuid[],
            %(done)s::bigint[], %(totals)s::bigint[], %(messages)s::text[])
       b(run_id, attempt, claim_id, session_id, done, total, message),
     (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now) t
where r.run_id = b.run_id and r.attempt = b.attempt and r.claim_id = b.claim_id
  and r.session_id is not distinct from b.session_id and """
_RETURNING: LiteralString = " returning r.run_id"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is: units done, of units in all (0 if not known)."""

    run_id: UUID
    attempt: int
    claim_id: int
    session_id: UUID
    done: int
    total: int
    message: str


async def record_progress(
    connection: Connection, progress: Sequence[Progress], *, now: datetime | None = None, pass_over_locked: bool = False
) -> list[UUID]:
    """Notes how far attempts are. Answers the runs that changed; what a session no longer holds is left alone, and what
    somebody has locked, if that is to be passed over. Errors: else LockNotAvailable, after PATIENCE."""
    ordered = sorted(progress, key=lambda one: one.run_id)
    cursor = await connection.execute(
        _PROGRESS + (UNLOCKED if pass_over_locked else PATIENTLY) + _RETURNING,
        {
            "run_ids": plain(one.run_id for one in ordered),
            "attempts": plain(one.attempt for one in ordered),
            "claim_ids": plain(one.claim_id for one in ordered),
            "session_ids": plain(one.session_id for one in ordered),
            "done": plain(one.done for one in ordered),
            "totals": plain(one.total for one in ordered),
            "messages": texts(one.message for one in ordered),
            "now": now,
            "patience": in_ms(PATIENCE),
        },
    )
    return [row[0] for row in await cursor.fetchall()]
