"""Running a schedule now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler_service.domain.access import Action, Principal, Resource, require
from scheduler_service.domain.audit import made, payload_document
from scheduler_service.domain.errors import Conflict, NotFound
from scheduler_service.domain.fields import Violations, check_json, check_json_size, check_text
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import new_run_id, run_name
from scheduler_service.store import audit
from scheduler_service.store import run_schedule as store
from scheduler_service.store import runs as run_store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.trigger import lock_job
from scheduler_service.usecases.requests import idempotent
from scheduler_service.usecases.wakeups import Topic, Wakeups

_MAX_REQUEST_ID = 64


@dataclass(frozen=True, slots=True)
class RunScheduleRequest:
    """Which schedule to run; `payload` is put over its config and its job's. `digest` covers the request without its
    `request_id`."""

    name: ScheduleName
    payload: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    digest: bytes = b""


async def run_schedule(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    request: RunScheduleRequest,
    encode: Callable[[Run], bytes],
) -> bytes:
    """Makes a run of a schedule by hand, also while it or its job is paused or it is disabled, and answers it encoded.
    If another run of the schedule is live, it waits its turn.

    Errors: InvalidInput, NotFound, Forbidden, Conflict (JOB_ARCHIVED), AlreadyExists (REQUEST_ID_REUSED).
    """
    name = request.name
    require(principal, Action.RUN_SCHEDULE, Resource(service=name.job.service, tenant=name.tenant))
    wrong = Violations()
    check_json(request.payload, "payload", wrong)
    check_text(request.request_id, "request_id", wrong, at_most=_MAX_REQUEST_ID)
    wrong.refuse_if_any()

    async with database.acting_for(principal) as tx:

        async def act() -> bytes:
            return encode(await _make_run(tx, request))

        answer = await idempotent(tx, request.request_id, request.digest, act)
    wakeups.wake(Topic.PENDING)
    wakeups.wake(Topic.RUNS)
    return answer


async def _make_run(tx: Transaction, request: RunScheduleRequest) -> Run:
    name = request.name
    job = await lock_job(tx, name.job.service, name.job.job)
    schedule = await store.lock_schedule(tx, name) if job else None
    if job is None or schedule is None:
        raise NotFound(
            f"there is no schedule {name} that is stored, or it is not yours to run; store it first with"
            " ScheduleService.PutSchedule"
        )
    if job.archived_at is not None:
        raise Conflict(
            f"{name.job} is archived: its service no longer declares it; register it again to run its schedules",
            reason="JOB_ARCHIVED",
        )
    payload = {**job.config, **schedule.config, **request.payload}
    wrong = Violations()
    check_json_size(payload, "payload", wrong)
    wrong.refuse_if_any()
    await tx.look_at_clock()
    run_id = new_run_id(tx.now)
    await store.insert_run(tx, schedule.schedule_id, run_id, payload)
    document = {"runs": [run_name(run_id)], "payload": payload_document(request.payload)}
    await audit.record(tx, [made(name, document, tenant=name.tenant)])
    return (await run_store.get_runs(tx, [run_id]))[run_id]
