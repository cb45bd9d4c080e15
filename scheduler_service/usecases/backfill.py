"""Backfills: runs for a range of the past, and how far they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from scheduler_service.domain.access import SYSTEM_TENANT, Action, Principal, Resource, require
from scheduler_service.domain.audit import made, payload_document, updated
from scheduler_service.domain.backfill import (
    MAX_SCHEDULES,
    Backfill,
    BackfillCounts,
    Wanted,
    refuse_too_many_runs,
    wanted_in,
)
from scheduler_service.domain.errors import Conflict, InvalidInput, NotFound, Unavailable, Violation
from scheduler_service.domain.fields import MAX_JSON_BYTES, Violations, check_json, check_text
from scheduler_service.domain.names import ANY_TENANT, BackfillName, JobName, check_id, check_tenant
from scheduler_service.domain.record import RunError
from scheduler_service.domain.run import EPOCH, new_run_id
from scheduler_service.domain.timing import HORIZON
from scheduler_service.store import audit
from scheduler_service.store import backfill_runs as runs
from scheduler_service.store import backfills as store
from scheduler_service.store.backfill_runs import InScope
from scheduler_service.store.cancel import end_pending_runs
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.pages import Pages, page_size
from scheduler_service.store.timeline import timelines
from scheduler_service.store.trigger import TriggerableJob, lock_job
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.arming import settle_schedules
from scheduler_service.usecases.requests import idempotent
from scheduler_service.usecases.wakeups import Topic, Wakeups

MAX_PAYLOADS_BYTES = 64 * 1024 * 1024
"""What the payloads of one backfill's runs may have together."""
_MAX_REQUEST_ID = 64
_MAX_REASON = 1000


@dataclass(frozen=True, slots=True)
class BackfillRequest:
    """What to fill. `digest` covers the request without its `request_id`."""

    job: JobName
    since: datetime
    until: datetime
    tenant: str = SYSTEM_TENANT
    schedule: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)
    validate_only: bool = False
    request_id: str = ""
    digest: bytes = b""


async def backfill_job(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    request: BackfillRequest,
    encode: Callable[[Backfill], bytes],
) -> bytes:
    """Makes a run for each occurrence in the range that neither has been completed nor is live, all of them or none,
    and answers the backfill encoded; with `validate_only`, what it would be.

    Errors: InvalidInput, NotFound, Conflict (JOB_ARCHIVED), AlreadyExists (REQUEST_ID_REUSED), Unavailable.
    """
    require(principal, Action.BACKFILL, Resource(service=request.job.service))
    _check(request)

    async with database.acting_for(principal) as tx:

        async def act() -> bytes:
            return encode(await _backfill(tx, request))

        answer = await idempotent(tx, request.request_id, request.digest, act)
    if not request.validate_only:
        wakeups.wake(Topic.PENDING)
        wakeups.wake(Topic.RUNS)
    return answer


async def get_backfill(database: Database, principal: Principal, name: BackfillName) -> Backfill:
    """Errors: NotFound, Forbidden."""
    require(principal, Action.BACKFILL, Resource(service=name.job.service))
    async with database.acting_for(principal) as tx:
        return _found(await store.get_backfill(tx, name), name)


async def list_backfills(
    database: Database, principal: Principal, job: JobName, *, size: int = 0, token: str = ""
) -> tuple[Sequence[Backfill], str]:
    """One page of a job's backfills, the newest first, and the token of the next (empty on the last). Errors:
    InvalidInput, Forbidden."""
    require(principal, Action.BACKFILL, Resource(service=job.service))
    limit = page_size(size)
    pages = Pages("backfills", {"caller": str(principal), "job": str(job)})
    position = pages.position(token, UUID)
    async with database.acting_for(principal) as tx:
        page = await store.list_backfills(tx, job, before=position[0] if position else None, limit=limit)
    last = page.backfills[-1].name if page.more else None
    return page.backfills, pages.token([str(last.backfill_id)]) if last else ""


async def cancel_backfill(
    database: Database, wakeups: Wakeups, principal: Principal, name: BackfillName, reason: str = ""
) -> Backfill:
    """Ends its waiting runs as CANCELLED, and asks the workers of the running ones to stop them. Answers the backfill
    as it is then; one that was cancelled before is left as it is. Errors: InvalidInput, NotFound, Forbidden."""
    require(principal, Action.BACKFILL, Resource(service=name.job.service))
    wrong = Violations()
    check_text(reason, "reason", wrong, at_most=_MAX_REASON)
    wrong.refuse_if_any()
    async with database.acting_for(principal) as tx:
        backfill = _found(await store.lock_backfill(tx, name), name)
        if backfill.cancelled_at is None:
            ended = await _cancel(tx, name, reason)
            after = {"cancelled": True, "reason": reason, "ended_runs": ended}
            await audit.record(tx, [updated(name, {"cancelled": False}, after, tenant=backfill.tenant)])
            backfill = _found(await store.get_backfill(tx, name), name)
    for topic in (Topic.CANCELS, Topic.PENDING, Topic.RUNS):
        wakeups.wake(topic)
    return backfill


async def _cancel(tx: Transaction, name: BackfillName, reason: str) -> int:
    """Answers how many runs ended at once."""
    error = RunError("CANCELLED", f"cancelled by {tx.principal}{f': {reason}' if reason else ''}")
    live = await runs.lock_live(tx, name.backfill_id)
    ended = await end_pending_runs(await tx.driver_connection(), live, error, tx.now)
    await runs.request_cancels(tx, name.backfill_id, error.message)
    await store.mark_cancelled(tx, name.backfill_id)
    return ended


async def _backfill(tx: Transaction, request: BackfillRequest) -> Backfill:
    job = await _job(tx, request.job)
    if request.until > tx.now:
        raise InvalidInput(Violation("until", f"it is after now, {tx.now:%Y-%m-%dT%H:%M:%SZ}; the future fills itself"))
    scope = await _scope(tx, job, request)
    # Before anything is locked: as long as this takes, schedules of the job could not tick.
    wanted = await _occurrences(tx, scope, request)
    if not request.validate_only:
        return await _fill(tx, request, scope, wanted)
    async with tx.connection.begin_nested() as trial:
        missing = await _missing(tx, request, scope, wanted)
        await trial.rollback()
    return _counted(request, len(wanted), len(missing))


async def _job(tx: Transaction, name: JobName) -> TriggerableJob:
    job = await lock_job(tx, name.service, name.job)
    if job is None:
        raise NotFound(f"there is no job {name}, or it is not yours to run")
    if job.archived_at is not None:
        raise Conflict(
            f"{name} is archived: its service no longer declares it; register it again to run it", reason="JOB_ARCHIVED"
        )
    return job


async def _scope(tx: Transaction, job: TriggerableJob, request: BackfillRequest) -> dict[int, InScope]:
    found = await runs.schedules_in_scope(
        tx, job.job_id, request.job, request.tenant, request.schedule, limit=MAX_SCHEDULES + 1
    )
    if not found:
        which = f"schedule {request.schedule!a}" if request.schedule else "schedule"
        whose = "for anyone" if request.tenant == ANY_TENANT else f"for tenant {request.tenant}"
        raise NotFound(f"{request.job} has no {which} {whose}; ScheduleService.ListSchedules lists those that it has")
    if len(found) > MAX_SCHEDULES:
        raise InvalidInput(
            Violation(
                "tenant", f"there are more than {MAX_SCHEDULES:,} schedules; name one tenant or one schedule at a time"
            )
        )
    return {each.schedule_id: each for each in found}


async def _occurrences(tx: Transaction, scope: Mapping[int, InScope], request: BackfillRequest) -> list[Wanted]:
    lines = await timelines(tx, scope, HORIZON)
    names = {schedule_id: each.name for schedule_id, each in scope.items()}
    # Up to a few seconds of arithmetic, which other calls need not wait for.
    return await asyncio.to_thread(wanted_in, lines, names, request.since, request.until)


async def _missing(
    tx: Transaction, request: BackfillRequest, scope: Mapping[int, InScope], wanted: Sequence[Wanted]
) -> list[Wanted]:
    """Those occurrences that get a run. Their schedules are locked and settled from here on."""
    schedule_ids = {each.part.schedule_id for each in wanted}
    locked = await runs.lock_schedules(tx, schedule_ids)
    # Others may have acted while the occurrences were worked out, or while this waited for them.
    if locked != {schedule_id: scope[schedule_id].revision for schedule_id in schedule_ids}:
        raise Unavailable(f"schedules of {request.job} were changed at this moment; try again")
    await tx.look_at_clock()
    await settle_schedules(tx, await runs.unsettled(tx, schedule_ids, request.until))
    missing = await runs.not_passed_over(tx, wanted, request.since, request.until)
    refuse_too_many_runs(len(missing))
    await _check_payloads(tx, request, missing)
    return missing


async def _fill(
    tx: Transaction, request: BackfillRequest, scope: Mapping[int, InScope], wanted: Sequence[Wanted]
) -> Backfill:
    missing = await _missing(tx, request, scope, wanted)
    name = BackfillName(request.job, new_run_id(tx.now))
    backfill = replace(
        _counted(request, len(wanted), len(missing)), name=name, created_at=tx.now, created_by=str(tx.principal)
    )
    await store.insert_backfill(tx, name, backfill)
    await runs.insert_runs(tx, name.backfill_id, missing, request.payload)
    await arrange(await tx.driver_connection(), {each.part.schedule_id for each in missing})
    await audit.record(tx, [made(name, _document(request, backfill), tenant=request.tenant)])
    return backfill


def _document(request: BackfillRequest, backfill: Backfill) -> dict[str, Any]:
    return {
        "since": request.since.isoformat(),
        "until": request.until.isoformat(),
        "tenant": request.tenant,
        "schedule": request.schedule,
        "occurrences": backfill.occurrences,
        "runs": backfill.runs,
        "payload": payload_document(request.payload),
    }


def _counted(request: BackfillRequest, occurrences: int, missing: int) -> Backfill:
    return Backfill(
        name=None,
        since=request.since,
        until=request.until,
        tenant=request.tenant,
        schedule=request.schedule,
        occurrences=occurrences,
        runs=missing,
        counts=BackfillCounts(pending=0 if request.validate_only else missing),
    )


async def _check_payloads(tx: Transaction, request: BackfillRequest, missing: Sequence[Wanted]) -> None:
    sizes = await runs.payload_sizes(tx, Counter(each.part.schedule_id for each in missing), request.payload)
    wrong = Violations()
    # Without one of its own, each run has what the schedule's other runs have.
    if request.payload and sizes.longest > MAX_JSON_BYTES:
        wrong.add(
            "payload",
            f"over the config of job and schedule it makes {sizes.longest:,} bytes of JSON for a run; at most"
            f" {MAX_JSON_BYTES:,} (256 KiB) are allowed",
        )
    if sizes.total > MAX_PAYLOADS_BYTES:
        wrong.add(
            "until",
            f"the payloads of {len(missing):,} runs have {sizes.total:,} bytes together, more than the"
            f" {MAX_PAYLOADS_BYTES:,} (64 MiB) that one backfill may make; take a shorter range",
        )
    wrong.refuse_if_any()


def _check(request: BackfillRequest) -> None:
    wrong = Violations()
    check_json(request.payload, "payload", wrong)
    check_text(request.request_id, "request_id", wrong, at_most=_MAX_REQUEST_ID)
    if request.since < EPOCH:
        wrong.add("since", "it is before 1970, the first year that has occurrences")
    if request.since >= request.until:
        wrong.add("until", "it is not after `since`; it is the end of the range, exclusive")
    if request.tenant not in (SYSTEM_TENANT, ANY_TENANT):
        check_tenant(request.tenant, "tenant", wrong)
    if request.schedule:
        check_id(request.schedule, "schedule", wrong, what="the schedule")
    wrong.refuse_if_any()


def _found(backfill: Backfill | None, name: BackfillName) -> Backfill:
    if backfill is None:
        raise NotFound(f"there is no {name}, or it is not yours to see")
    return backfill
