"""How often a live run was lost with its worker."""

from __future__ import annotations

from typing import Literal, LiteralString


def losses(live_run: Literal["l", "r"]) -> LiteralString:
    """An expression of the row of that name: how many of the run's attempts ended so. It looks into one partition, and
    not at all for a run at its first attempt."""
    return f"""
case when {live_run}.attempt > 1 then (
  select count(*) from carillon.attempts a
  where a.run_id = {live_run}.run_id and a.error ->> 'code' = 'WORKER_LOST'
) else 0 end"""
