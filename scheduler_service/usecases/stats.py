"""How a job's runs ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from scheduler_service.domain.access import Action, Kind, Principal, Resource, require
from scheduler_service.domain.errors import InvalidInput, NotFound, Violation
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import ItemCounts, JobStats
from scheduler_service.domain.run import RunState
from scheduler_service.store.database import Database
from scheduler_service.store.runs import jobs_of
from scheduler_service.store.stats import StateStats, job_stats

DEFAULT_WINDOW = timedelta(days=7)
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)


async def get_job_stats(
    database: Database, principal: Principal, job: JobName, *, since: datetime | None, until: datetime | None
) -> JobStats:
    """Counts a job's ended runs by the hour in which they ended, from `since` (default: 7 days before `until`) until
    `until` (exclusive, default: now). Errors: InvalidInput, NotFound."""
    require(principal, Action.READ, Resource(service=job.service))
    async with database.acting_for(principal) as tx:
        until = until or tx.now
        since = since or until - min(DEFAULT_WINDOW, until - _FIRST_INSTANT)
        if since >= until:
            raise InvalidInput(Violation("until", f"{until.isoformat()} is not after since, {since.isoformat()}"))
        # Counts are over all tenants, so they are no user's.
        job_ids = await jobs_of(tx, job.service, job.job) if principal.kind is not Kind.USER else []
        for job_id in job_ids:
            return _summed(await job_stats(tx, job_id, since=since, until=until))
    raise NotFound(f"there is no job {job}, or it is not yours to see")


def _summed(stats: Sequence[StateStats]) -> JobStats:
    by_state = {each.state: each for each in stats}
    completed = by_state.get(RunState.COMPLETED)
    timed = completed is not None and completed.timed > 0
    newest = max(stats, key=lambda each: each.last_finished_at, default=None)
    return JobStats(
        counts={state: each.runs for state, each in by_state.items()},
        average_duration=completed.total_duration / completed.timed if completed and timed else None,
        longest_duration=completed.longest_duration if completed and timed else None,
        items=ItemCounts(
            processed=sum(each.items.processed for each in stats),
            succeeded=sum(each.items.succeeded for each in stats),
            failed=sum(each.items.failed for each in stats),
        ),
        last_finished_at=newest.last_finished_at if newest else None,
        last_state=newest.state if newest else None,
    )
