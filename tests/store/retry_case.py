"""What the tests of RetryRun share: runs that failed, and trying them again on a stepped clock."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from scheduler_service.domain.access import Principal
from scheduler_service.domain.job import Policies, TimingSpec
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import RunState
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.usecases.retry_run import RetryRunRequest, retry_run
from tests.builders import ADMIN, MadeJob, finish, make_ended_run
from tests.store.definitions_case import HOUR, MINUTE, START, Scheduler, every, for_tenant
from tests.store.pausing_case import job

ACME = for_tenant("acme")
DUE = START + 10 * MINUTE
ONE_AT_A_TIME = Policies(overlap=Overlap.SKIP)
FAILURE: dict[str, Any] = {"error": {"code": "HTTP_500", "message": "no", "detail": ""}}


async def begin(scheduler: Scheduler) -> Scheduler:
    """A job whose runs take turns, and a tenant's schedule of it that is due each 10 minutes."""
    await scheduler.register(job(timing=TimingSpec(), policies=ONE_AT_A_TIME, config={"limit": 1}))
    await scheduler.put(ACME, ScheduleSpec(every("10m"), config={"limit": 2}, labels={"brand_id": "b"}))
    return scheduler


async def retry(scheduler: Scheduler, run_id: UUID, *, by: Principal = ADMIN, **request: Any) -> Run:
    answered: list[Run] = []

    def encode(run: Run) -> bytes:
        answered.append(run)
        return run.run_id.bytes

    await retry_run(scheduler.database, scheduler.wakeups, by, RetryRunRequest(run_id, **request), encode)
    return answered[0]


def the_job(scheduler: Scheduler) -> MadeJob:
    (found,) = scheduler.admin.execute("select job_id from carillon.jobs where job = 'weekly-digest'").fetchall()
    return MadeJob(found[0], "email-service", "weekly-digest")


def ended(scheduler: Scheduler, state: RunState = RunState.FAILED, **columns: Any) -> UUID:
    """A run of no schedule."""
    return make_ended_run(scheduler.admin, the_job(scheduler), state, **(FAILURE | {"at": START - HOUR} | columns))


def end(scheduler: Scheduler, run: Run | UUID, state: RunState = RunState.FAILED) -> UUID:
    run_id = run.run_id if isinstance(run, Run) else run
    failed: dict[str, Any] = {} if state is RunState.COMPLETED else FAILURE
    finish(scheduler.admin, run_id, state, finished_at=scheduler.database.now, **failed)
    return run_id


async def failed_occurrence(scheduler: Scheduler) -> UUID:
    """What the schedule owed at DUE, and which failed."""
    await scheduler.tick_until(DUE)
    ((run_id,),) = scheduler.admin.execute("select run_id from carillon.live_runs").fetchall()
    return end(scheduler, run_id)


def retries(scheduler: Scheduler) -> dict[UUID, UUID]:
    """Which run each of them tries again."""
    return dict(scheduler.admin.execute("select run_id, retry_of from carillon.retries").fetchall())
