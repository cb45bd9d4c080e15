"""Preview: when a stored or a proposed schedule is owed. Stores nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from scheduler_service.domain.access import Action, Kind, Principal, Resource, require
from scheduler_service.domain.errors import NotFound, Violation
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.job import DEFAULT_TIMING, TimingSpec
from scheduler_service.domain.job_rules import check_timing
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.preview import PreviewedOccurrence, previewed
from scheduler_service.domain.schedule import InForce, ScheduleSpec, revise
from scheduler_service.domain.timing import TimingError, describe
from scheduler_service.store import jobs, tenants
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases.schedules import get_schedule

DEFAULT_COUNT = 10
MAX_COUNT = 1_000
MAX_COUNT_OF_A_USER = 100

# Looking ahead is arithmetic, up to 0.1 s of it. Beside the loop and one at a time, it keeps others who look ahead
# waiting, and nobody else.
_ASIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preview")


@dataclass(frozen=True, slots=True)
class Range:
    """How far to look: instants after `since` (default: now), up to `until` (default: without end), `count` of them
    at most (0: 10)."""

    since: datetime | None = None
    until: datetime | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """What is coming, in a sentence, and the timing with everything filled in."""

    occurrences: Sequence[PreviewedOccurrence]
    description: str
    timing: TimingSpec


async def preview_schedule(
    database: Database, principal: Principal, name: ScheduleName, wanted: Range, *, default_time_zone: str = "UTC"
) -> Preview:
    """A stored schedule, also while it is paused or disabled, or the default that is shown where there is none. One
    whose timing cannot be evaluated any more has no occurrences, and says so. Errors: InvalidInput, NotFound,
    Forbidden."""
    wrong = Violations()
    _check(wanted, principal, wrong)
    wrong.refuse_if_any()
    schedule = await get_schedule(database, principal, name, default_time_zone=default_time_zone)
    async with database.acting_for(principal) as tx:
        now = tx.now
    found = await _ahead(schedule.shown, wanted, now, schedule.schedule_id if schedule.stored else None)
    return Preview(found, schedule.description, schedule.shown.as_spec())


async def preview_timing(
    database: Database,
    principal: Principal,
    timing: TimingSpec,
    job: JobName | None,
    wanted: Range,
    *,
    default_time_zone: str = "UTC",
    problems: Sequence[Violation] = (),
) -> Preview:
    """A proposed timing, of a schedule of `job` if one is named: what it leaves out is the job's, but the zone of a
    user's tenant comes before the job's. It has no jitter yet,
    which is each schedule's own. Errors: InvalidInput, NotFound (the job), Forbidden."""
    require(principal, Action.READ, Resource(service=job.service if job else ""))
    wrong = Violations(problems)
    check_timing(replace(timing, phase=None), "timing", wrong)
    _check(wanted, principal, wrong)
    async with database.acting_for(principal) as tx:
        base = await _base(tx, job, default_time_zone)
        if timing.phase is not None:
            check_timing(TimingSpec(cron=timing.cron, phase=timing.phase), "timing", wrong, base=base)
        if not (base.cron if timing.cron is None else timing.cron):
            wrong.add("timing.cron", _NO_CRON if job is None else f"neither it nor its job says when; {_WRITE}")
        wrong.refuse_if_any()
        zone = (await tenants.get_tenant(tx, principal.tenant)).time_zone if principal.tenant else ""
        now = tx.now
    in_force = revise(ScheduleSpec(timing), base, None, is_jobs_own=False, tenant_zone=zone)
    found = await _ahead(in_force, wanted, now, None)
    return Preview(found, describe(in_force.timing), in_force.as_spec())


_WRITE = "write a cron expression such as `0 9 * * 1`"
_NO_CRON = f"it is missing; {_WRITE}"


async def _base(tx: Transaction, name: JobName | None, default_time_zone: str) -> TimingSpec:
    """What fills in what a proposed timing leaves out."""
    if name is None:
        return replace(DEFAULT_TIMING, time_zone=default_time_zone)
    job = await jobs.get_job(tx, name)
    if job is None:
        raise NotFound(f"there is no job {name}, or it is not yours to see")
    return job.in_force(default_time_zone).timing


async def _ahead(in_force: InForce, wanted: Range, now: datetime, schedule_id: int | None) -> list[PreviewedOccurrence]:
    since, count = wanted.since or now, wanted.count or DEFAULT_COUNT
    look = partial(previewed, in_force, since, wanted.until, count, schedule_id=schedule_id)
    try:
        return await asyncio.get_running_loop().run_in_executor(_ASIDE, look)
    except TimingError:
        return []


def _check(wanted: Range, principal: Principal, wrong: Violations) -> None:
    most = MAX_COUNT_OF_A_USER if principal.kind is Kind.USER else MAX_COUNT
    if not 0 <= wanted.count <= most:
        wrong.add(
            "count",
            f"{wanted.count:,} is not from 0 to {most:,}; leave it at 0 for {DEFAULT_COUNT}, and for more ask"
            " again with `since` at the last one's time",
        )
    if wanted.since is not None and wanted.until is not None and wanted.since >= wanted.until:
        wrong.add("until", f"{wanted.until.isoformat()} is not after since, {wanted.since.isoformat()}")
