"""Running a job now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scheduler_service.domain.access import SYSTEM_TENANT, Action, Principal, Resource, require
from scheduler_service.domain.audit import Change, made, payload_document
from scheduler_service.domain.errors import AlreadyExists, Conflict, NotFound
from scheduler_service.domain.fields import Violations, check_json, check_json_size, check_labels, check_text, json_size
from scheduler_service.domain.names import JobName, check_tenant
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import TriggerSource, new_run_id, run_name
from scheduler_service.store import audit
from scheduler_service.store import runs as run_store
from scheduler_service.store import trigger as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases.requests import idempotent
from scheduler_service.usecases.wakeups import Topic, Wakeups

MAX_TENANTS = 1000
MAX_PAYLOADS_BYTES = 16 * 1024 * 1024
"""What the payloads of one call's runs may have together."""
_MAX_ORIGIN = 63
_MAX_RUN_KEY = 200
_MAX_REQUEST_ID = 64
_TENANTS_AN_EVENT = 200


@dataclass(frozen=True, slots=True)
class TriggerRequest:
    """What to run. `digest` covers the request without its `request_id`."""

    job: JobName
    payload: Mapping[str, Any] = field(default_factory=dict)
    tenants: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    test: bool = False
    origin: str = ""
    run_key: str = ""
    request_id: str = ""
    digest: bytes = b""

    @property
    def source(self) -> TriggerSource:
        if self.test:
            return TriggerSource.TEST
        return TriggerSource.EXTERNAL if self.origin else TriggerSource.MANUAL


async def trigger_job(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    request: TriggerRequest,
    encode: Callable[[Sequence[Run]], bytes],
) -> bytes:
    """Makes a run for each tenant (none: one for the system), all of them or none, and answers them encoded; where
    there are several, without their payloads.

    Errors: InvalidInput, NotFound, Conflict (JOB_ARCHIVED), AlreadyExists (RUN_KEY_TAKEN, REQUEST_ID_REUSED).
    """
    require(principal, Action.TRIGGER, Resource(service=request.job.service))
    _check(request)

    async with database.acting_for(principal) as tx:

        async def act() -> bytes:
            return encode(await _make_runs(tx, request))

        answer = await idempotent(tx, request.request_id, request.digest, act)
    wakeups.wake(Topic.PENDING)
    wakeups.wake(Topic.RUNS)
    return answer


async def _make_runs(tx: Transaction, request: TriggerRequest) -> list[Run]:
    job = await store.lock_job(tx, request.job.service, request.job.job)
    if job is None:
        raise NotFound(f"there is no job {request.job}, or it is not yours to run")
    if job.archived_at is not None:
        raise Conflict(
            f"{request.job} is archived: its service no longer declares it; register it again to run it",
            reason="JOB_ARCHIVED",
        )
    tenants = request.tenants or [SYSTEM_TENANT]
    new = store.NewRuns(
        job_id=job.job_id,
        run_ids=[new_run_id(tx.now) for _ in tenants],
        tenants=tenants,
        trigger=request.source,
        origin=request.origin,
        labels={**job.labels, **request.labels},
        payload=_payload(job, request, len(tenants)),
    )
    if request.run_key:
        await _take_run_key(tx, new, request)
    await store.insert_runs(tx, new)
    await audit.record(tx, _audited(request, new))
    # The answer shows the payload of a single run only; a thousand copies need not even be read.
    made = await run_store.get_runs(tx, new.run_ids, with_payloads=len(new.run_ids) == 1)
    return [made[run_id] for run_id in new.run_ids]


def _audited(request: TriggerRequest, new: store.NewRuns) -> list[Change]:
    """One for the call, or for each 200 of its tenants, so that none is large; it is a tenant's where the call is for
    one tenant."""
    told = {"origin": request.origin, "run_key": request.run_key}
    common = {
        "trigger": new.trigger.name,
        "labels": dict(request.labels),
        "payload": payload_document(request.payload),
    } | {name: value for name, value in told.items() if value}
    runs, tenants = [run_name(run_id) for run_id in new.run_ids], list(new.tenants)
    owner = tenants[0] if len(tenants) == 1 else ""
    parts = (slice(begin, begin + _TENANTS_AN_EVENT) for begin in range(0, len(tenants), _TENANTS_AN_EVENT))
    return [made(request.job, {"runs": runs[part], "tenants": tenants[part], **common}, tenant=owner) for part in parts]


def _payload(job: store.TriggerableJob, request: TriggerRequest, runs: int) -> dict[str, Any]:
    """What each of so many runs is given."""
    payload = {**job.config, **request.payload}
    wrong = Violations()
    check_json_size(payload, "payload", wrong)
    wrong.refuse_if_any()
    if (size := json_size(payload)) * runs > MAX_PAYLOADS_BYTES:
        wrong.add(
            "tenants",
            f"{runs:,} runs with a payload of {size:,} bytes each are more than the {MAX_PAYLOADS_BYTES:,} (16 MiB)"
            f" that one call may make; name at most {MAX_PAYLOADS_BYTES // size:,} tenants at a time",
        )
    wrong.refuse_if_any()
    return payload


async def _take_run_key(tx: Transaction, new: store.NewRuns, request: TriggerRequest) -> None:
    taken = await store.take_run_key(tx, new, request.run_key)
    if taken is None:
        return
    tenant, run_id = taken
    raise AlreadyExists(
        f"the run_key {request.run_key!a} of {request.job} for tenant {tenant} was used already, by"
        f" {run_name(run_id)}; nothing was started",
        reason="RUN_KEY_TAKEN",
        run=run_name(run_id),
        tenant=tenant,
    )


def _check(request: TriggerRequest) -> None:
    wrong = Violations()
    check_json(request.payload, "payload", wrong)
    check_labels(request.labels, "labels", wrong)
    check_text(request.origin, "origin", wrong, at_most=_MAX_ORIGIN)
    check_text(request.run_key, "run_key", wrong, at_most=_MAX_RUN_KEY)
    check_text(request.request_id, "request_id", wrong, at_most=_MAX_REQUEST_ID)
    _check_tenants(request.tenants, wrong)
    wrong.refuse_if_any()


def _check_tenants(tenants: Sequence[str], wrong: Violations) -> None:
    if len(tenants) > MAX_TENANTS:
        wrong.add("tenants", f"there are {len(tenants):,} tenants; at most {MAX_TENANTS:,} are allowed in one call")
        return
    first_at: dict[str, int] = {}
    for index, tenant in enumerate(tenants):
        if tenant != SYSTEM_TENANT:
            check_tenant(tenant, f"tenants[{index}]", wrong)
        if first_at.setdefault(tenant, index) != index:
            wrong.add(
                f"tenants[{index}]", f"it is the same as tenants[{first_at[tenant]}]; a run is made once for each"
            )
