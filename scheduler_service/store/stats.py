"""Statistics of jobs, which a trigger on `runs` appends and a loop folds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text

from scheduler_service.domain.record import ItemCounts
from scheduler_service.domain.run import RunState
from scheduler_service.store.database import Transaction


@dataclass(frozen=True, slots=True)
class StateStats:
    """Runs of one job in one window that ended alike. Durations are of those (`timed`) that have one."""

    state: RunState
    runs: int
    timed: int
    total_duration: timedelta
    longest_duration: timedelta
    items: ItemCounts
    last_finished_at: datetime


async def job_stats(tx: Transaction, job_id: int, *, since: datetime, until: datetime) -> list[StateStats]:
    """Sums by outcome, of the hours that begin before `until`, from the one of `since` on."""
    rows = await tx.connection.execute(
        text(
            "select state::text as state, sum(runs)::bigint as runs, sum(timed)::bigint as timed,"
            " sum(total_duration) as total_duration, max(longest_duration) as longest_duration,"
            " sum(items_processed)::bigint as processed, sum(items_succeeded)::bigint as succeeded,"
            " sum(items_failed)::bigint as failed, max(last_finished_at) as last_finished_at"
            " from carillon.job_stats"
            " where job_id = :job_id and hour >= date_trunc('hour', cast(:since as timestamptz), 'UTC')"
            " and hour < :until group by state"
        ),
        {"job_id": job_id, "since": since, "until": until},
    )
    return [
        StateStats(
            state=RunState(row.state),
            runs=row.runs,
            timed=row.timed,
            total_duration=row.total_duration,
            longest_duration=row.longest_duration,
            items=ItemCounts(row.processed, row.succeeded, row.failed),
            last_finished_at=row.last_finished_at,
        )
        for row in rows
    ]
