"""Counts of ended runs. Each batch of records appends its own; here they become one row a key again."""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

Connection = psycopg.AsyncConnection[TupleRow]

# One replica folds at a time. The deleted rows are what is summed, so that what is appended meanwhile stays.
_FOLD: LiteralString = """
with folder as materialized (select pg_try_advisory_xact_lock(hashtext('carillon.fold_statistics')) as alone),
split as (
  select job_id, hour, state from carillon.job_stats group by job_id, hour, state having count(*) > 1
),
taken as (
  delete from carillon.job_stats s using split
  where (select alone from folder) and (s.job_id, s.hour, s.state) = (split.job_id, split.hour, split.state)
  returning s.*
)
insert into carillon.job_stats
select job_id, hour, state, sum(runs), sum(timed), sum(total_duration), max(longest_duration),
  sum(items_processed), sum(items_succeeded), sum(items_failed), max(last_finished_at)
from taken group by job_id, hour, state"""


async def fold_statistics(connection: Connection) -> int:
    """Folds rows of the same job, hour and outcome into one; answers how many keys that were."""
    return (await connection.execute(_FOLD)).rowcount
