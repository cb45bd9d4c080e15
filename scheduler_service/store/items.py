"""Results of items inside runs, fenced like the results of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

from scheduler_service.domain.attempt import ItemResult
from scheduler_service.store.arrays import plain, texts
from scheduler_service.store.connection import Connection
from scheduler_service.store.patience import PATIENCE, PATIENTLY, in_ms

# The lock keeps the run from ending, and a later attempt from beginning, until the items are committed.
_INSERT: LiteralString = f"""
with held as (
  select r.run_id, r.attempt, r.claim_id, r.session_id, r.job_id, r.tenant_id
  from (select distinct * from unnest(%(run_ids)s::uuid[], %(attempts)s::integer[], %(claim_ids)s::bigint[],
                                      %(sessions)s::uuid[]) b(run_id, attempt, claim_id, session_id)) b
  join carillon.live_runs r on r.run_id = b.run_id and r.attempt = b.attempt and r.claim_id = b.claim_id
    and r.session_id is not distinct from b.session_id
  where {PATIENTLY}
  order by r.run_id for key share of r
)
insert into carillon.items (run_id, attempt, key, job_id, tenant_id, succeeded, error, finished_at)
select i.run_id, i.attempt, i.key, h.job_id, h.tenant_id, i.succeeded, coalesce(i.error, ''), t.now
from unnest(%(run_ids)s::uuid[], %(attempts)s::integer[], %(claim_ids)s::bigint[], %(keys)s::text[],
            %(succeeded)s::boolean[], %(errors)s::text[], %(sessions)s::uuid[])
  i(run_id, attempt, claim_id, key, succeeded, error, session_id)
join held h on h.run_id = i.run_id and h.attempt = i.attempt and h.claim_id = i.claim_id
  and h.session_id = i.session_id
cross join (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now) t
on conflict do nothing
"""


async def insert_items(
    connection: Connection, items: Sequence[ItemResult], *, now: datetime | None = None, patience: float = PATIENCE
) -> int:
    """Writes items' results; answers how many were new. What belongs to an attempt that its session does not hold
    under that claim is left out; of an item that is there already, or twice in the batch, the first result stays.
    Errors: LockNotAvailable, of who waited for a lock for longer than `patience`, in seconds."""
    values = {
        "run_ids": plain(item.ref.run_id for item in items),
        "attempts": plain(item.ref.attempt for item in items),
        "claim_ids": plain(item.ref.claim_id for item in items),
        "sessions": plain(item.session_id for item in items),
        "keys": texts(item.key for item in items),
        "succeeded": plain(item.succeeded for item in items),
        "errors": texts(item.error for item in items),
        "now": now,
        "patience": in_ms(patience),
    }
    return (await connection.execute(_INSERT, values)).rowcount
