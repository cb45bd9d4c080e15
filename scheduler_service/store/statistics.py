"""Counts of ended runs. Each batch of records appends its own; here they become one row a key again."""

from __future__ import annotations

from typing import LiteralString

from scheduler_service.store.connection import Connection

# The deleted rows are what is summed, so that what is appended meanwhile stays.
_ALONE: LiteralString = "select pg_try_advisory_xact_lock(hashtext('carillon.fold_statistics'))"
_FOLD: LiteralString = """
with split as (
  select job_id, hour, state from carillon.job_stats where hour >= {since}
  group by job_id, hour, state having count(*) > 1
),
taken as (
  delete from carillon.job_stats s using split
  where (s.job_id, s.hour, s.state) = (split.job_id, split.hour, split.state)
  returning s.*
)
insert into carillon.job_stats
select job_id, hour, state, sum(runs), sum(timed), sum(total_duration), max(longest_duration),
  sum(items_processed), sum(items_succeeded), sum(items_failed), max(last_finished_at)
from taken group by job_id, hour, state"""
_FOLD_RECENT = _FOLD.format(since="date_trunc('hour', now(), 'UTC') - interval '1 hour'")
_FOLD_ALL = _FOLD.format(since="'-infinity'")


async def fold_statistics(connection: Connection) -> int:
    """Folds rows of the same job, hour and outcome into one, of this hour and the one before; answers how many keys
    that were. Does nothing while another replica is at it."""
    return await _fold(connection, _FOLD_RECENT)


async def fold_all_statistics(connection: Connection) -> int:
    """As `fold_statistics`, for every hour: what was left while no replica ran. Reads all there is."""
    return await _fold(connection, _FOLD_ALL)


async def _fold(connection: Connection, statement: LiteralString) -> int:
    async with connection.transaction():
        # A statement of its own: beside the others, these would be evaluated before it said no.
        alone = await (await connection.execute(_ALONE)).fetchone()
        return (await connection.execute(statement)).rowcount if alone == (True,) else 0
