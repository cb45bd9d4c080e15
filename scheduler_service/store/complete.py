"""Results, in batches: what ends runs, what has them tried again, and what became of those that matched nothing.

The fence is the match on (run, attempt, claim), and that the session's row is still there: who frees the runs of a
lost session deletes that row first. Arrays are in order of run ids, the order in which everyone locks live rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from scheduler_service.domain.attempt import AttemptRef, Result
from scheduler_service.store import arrays

Connection = psycopg.AsyncConnection[TupleRow]

_NOW: LiteralString = "(select coalesce(%(now)s::timestamptz, clock_timestamp()))"

_HELD: LiteralString = """
held as materialized (
  select session_id, worker from carillon.sessions where session_id = any(%(sessions)s::uuid[])
  order by session_id for key share
)"""

_RESULTS: LiteralString = """
unnest(%(run_ids)s::uuid[], %(attempts)s::int[], %(claim_ids)s::bigint[], %(of_sessions)s::uuid[],
       %(durations)s::float8[], %(errors)s::text[], %(digests)s::text[])
  as r(run_id, attempt, claim_id, session_id, seconds, error, digest)"""

# `is not distinct from` keeps the planner off the index on sessions, which it would walk once for each run.
_IS_THAT_ATTEMPT: LiteralString = """
l.run_id = r.run_id and l.attempt = r.attempt and l.claim_id = r.claim_id
  and l.session_id is not distinct from r.session_id"""

_STARTED: LiteralString = """
case when l.started_at is not null then l.started_at
     when r.seconds is not null then greatest(l.claimed_at, t.now - make_interval(secs => r.seconds)) end"""

_END: LiteralString = f"""
with {_HELD},
ended as (
  delete from carillon.live_runs l
  using {_RESULTS.replace("%(digests)s::text[])", "%(digests)s::text[], %(completed)s::boolean[],"
      " %(processed)s::bigint[], %(succeeded)s::bigint[], %(failed)s::bigint[], %(metrics)s::text[],"
      " %(metadata)s::text[])").replace("error, digest)", "error, digest, completed, processed, succeeded, failed,"
      " metrics, metadata)")}
  join held h on h.session_id = r.session_id
  where {_IS_THAT_ATTEMPT}
  returning l.*, h.worker, r.seconds, r.error, r.digest, r.completed, r.processed, r.succeeded, r.failed, r.metrics,
    r.metadata
)
select 1"""
