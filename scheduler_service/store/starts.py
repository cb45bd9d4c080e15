"""Starts of attempts, written in batches."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.store.arrays import plain
from scheduler_service.store.connection import Connection
from scheduler_service.store.patience import PATIENCE, PATIENTLY, UNLOCKED, in_ms

# `session_id is not distinct from`: with `=` the planner may walk the session's index once for each id.
_START: LiteralString = """
update carillon.live_runs r set
  started_at = s.at, deadline = s.at + r.attempt_timeout,
  first_started_at = coalesce(r.first_started_at, s.at), run_deadline = coalesce(r.run_deadline, s.at + r.run_timeout)
from (
  select l.run_id, l.attempt, l.claim_id, greatest(l.claimed_at, t.now - b.age * interval '1 second') as at
  from unnest(%(run_ids)s::uuid[], %(attempts)s::integer[], %(claim_ids)s::bigint[], %(session_ids)s::uuid[],
              %(ages)s::double precision[]) b(run_id, attempt, claim_id, session_id, age)
  join carillon.live_runs l on l.run_id = b.run_id and l.attempt = b.attempt and l.claim_id = b.claim_id
   and l.session_id is not distinct from b.session_id
  cross join (select coalesce(%(now)s::timestamptz, clock_timestamp()) as now) t
) s
where r.run_id = s.run_id and r.attempt = s.attempt and r.claim_id = s.claim_id and r.started_at is null
  and """
_RETURNING: LiteralString = " returning r.run_id"

_NOT_NOTED = """
select b.run_id, b.attempt, b.claim_id,
  (l.attempt, l.claim_id, l.session_id) is distinct from (b.attempt, b.claim_id, b.session_id) as taken_away
from unnest(%(run_ids)s::uuid[], %(attempts)s::integer[], %(claim_ids)s::bigint[], %(session_ids)s::uuid[])
  b(run_id, attempt, claim_id, session_id)
join carillon.live_runs l on l.run_id = b.run_id
where l.started_at is null
  or (l.attempt, l.claim_id, l.session_id) is distinct from (b.attempt, b.claim_id, b.session_id)
"""


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt began `age` seconds ago."""

    run_id: UUID
    attempt: int
    claim_id: int
    session_id: UUID
    age: float


@dataclass(frozen=True, slots=True)
class NotNoted:
    """Attempts whose start is not on record though their run lives. `taken_away`: it is free, or in other hands."""

    taken_away: AbstractSet[AttemptRef]
    held_up: AbstractSet[AttemptRef]


async def record_starts(
    connection: Connection, starts: Sequence[Start], *, now: datetime | None = None, pass_over_locked: bool = False
) -> list[UUID]:
    """Notes when attempts began, and sets their deadlines and their runs'. Answers the runs that changed; an attempt
    that its session no longer holds, or that was noted before, is left alone. So are those that somebody has locked, if
    they are to be passed over. Errors: else LockNotAvailable, after PATIENCE."""
    ordered = sorted(starts, key=lambda start: start.run_id)
    ages = plain(start.age for start in ordered)
    query = _START + (UNLOCKED if pass_over_locked else PATIENTLY) + _RETURNING
    cursor = await connection.execute(query, _arrays(ordered) | {"ages": ages, "now": now, "patience": in_ms(PATIENCE)})
    return [row[0] for row in await cursor.fetchall()]


async def not_noted(connection: Connection, starts: Sequence[Start]) -> NotNoted:
    """Those of these starts that `record_starts` has not noted, and no one before."""
    rows = await (await connection.execute(_NOT_NOTED, _arrays(starts))).fetchall()
    taken_away = {AttemptRef(*row[:3]) for row in rows if row[3]}
    return NotNoted(taken_away, {AttemptRef(*row[:3]) for row in rows} - taken_away)


def _arrays(starts: Sequence[Start]) -> dict[str, object]:
    return {
        "run_ids": plain(start.run_id for start in starts),
        "attempts": plain(start.attempt for start in starts),
        "claim_ids": plain(start.claim_id for start in starts),
        "session_ids": plain(start.session_id for start in starts),
    }
