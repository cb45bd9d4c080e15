"""Trying an ended run again by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from scheduler_service.domain.access import Action, Principal, require
from scheduler_service.domain.audit import made
from scheduler_service.domain.errors import Conflict, NotFound
from scheduler_service.domain.fields import Violations, check_text
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import RunState, new_run_id, run_name
from scheduler_service.store import audit
from scheduler_service.store import retries as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.runs import get_run
from scheduler_service.store.trigger import lock_job
from scheduler_service.usecases.requests import idempotent
from scheduler_service.usecases.wakeups import Topic, Wakeups

_MAX_REQUEST_ID = 64


@dataclass(frozen=True, slots=True)
class RetryRunRequest:
    """Which run to try again. `digest` covers the request without its `request_id`."""

    run_id: UUID
    request_id: str = ""
    digest: bytes = b""


async def retry_run(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    request: RetryRunRequest,
    encode: Callable[[Run], bytes],
) -> bytes:
    """Makes a run that does again what an ended one was to do, and answers it encoded; or the one that was made for the
    same thing already and is live or completed.

    Errors: InvalidInput, NotFound, Forbidden, Conflict (RUN_LIVE, RUN_COMPLETED, JOB_ARCHIVED; or its schedule is
    deleted, or its payload cleared, as far as can be told), AlreadyExists (REQUEST_ID_REUSED).
    """
    require(principal, Action.RETRY)
    wrong = Violations()
    check_text(request.request_id, "request_id", wrong, at_most=_MAX_REQUEST_ID)
    wrong.refuse_if_any()

    async with database.acting_for(principal) as tx:

        async def act() -> bytes:
            return encode(await _retry(tx, request.run_id))

        answer = await idempotent(tx, request.request_id, request.digest, act)
    wakeups.wake(Topic.PENDING)
    wakeups.wake(Topic.RUNS)
    return answer


async def _retry(tx: Transaction, run_id: UUID) -> Run:
    run = await _found(tx, run_id)
    _refuse_unless_unsuccessful(run)
    ended = await store.find_ended(tx, run_id)
    if ended is None:
        raise _not_there()
    await store.lock_retries(tx, ended)
    await _lock_job(tx, run)
    if ended.schedule_id is not None and not await store.lock_schedule(tx, ended.schedule_id):
        raise Conflict(
            f"{run_name(run_id)} is of a schedule that was deleted, and nothing is run for it any more; to do its work"
            " all the same, run the job with JobService.TriggerJob"
        )
    if (standing := await store.find_standing(tx, ended)) is not None:
        return await _found(tx, standing)
    await tx.look_at_clock()
    made_id = new_run_id(tx.now)
    if not await store.insert_retry(tx, ended, made_id):
        raise _cleared(run)
    await audit.record(tx, [made(run_name(run_id), {"runs": [run_name(made_id)]}, tenant=run.tenant)])
    return await _found(tx, made_id)


async def _found(tx: Transaction, run_id: UUID) -> Run:
    run = await get_run(tx, run_id)
    if run is None:
        raise _not_there()
    return run


def _not_there() -> NotFound:
    return NotFound("there is no such run, or it is not yours to see")


async def _lock_job(tx: Transaction, run: Run) -> None:
    name = JobName(run.service, run.job)
    job = await lock_job(tx, run.service, run.job)
    if job is None or job.archived_at is not None:
        raise Conflict(
            f"{name} is archived: its service no longer declares it; register it again to try its runs again",
            reason="JOB_ARCHIVED",
        )


def _refuse_unless_unsuccessful(run: Run) -> None:
    name = run_name(run.run_id)
    if run.state.is_live:
        raise Conflict(
            f"{name} has not ended ({run.state}); wait until it has, or end it with RunService.CancelRun",
            reason="RUN_LIVE",
        )
    if run.state is RunState.COMPLETED:
        raise Conflict(
            f"{name} has completed, and there is nothing to try again; to do its work once more, run the job with"
            " JobService.TriggerJob",
            reason="RUN_COMPLETED",
        )


def _cleared(run: Run) -> Conflict:
    name = run_name(run.run_id)
    why = f"the payload of {name} is not kept any more: its job keeps payloads for a while only"
    if run.error is None:
        why = f"{name} has neither a payload nor an error that would say whether its payload was cleared"
    return Conflict(f"{why}; run the job with JobService.TriggerJob, and give the payload there")
