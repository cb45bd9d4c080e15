"""The attempt that a worker would be handed, made from the declaration instead of by the scheduler."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypedDict

from carillon.declaration import labels
from carillon.handlers import Handler
from carillon.run import Assignment
from carillon.structs import Seconds, from_struct, to_duration, to_struct
from carillon.v1 import job_pb2

if TYPE_CHECKING:
    from carillon.jobs import Jobs

TriggerSource = Literal["SCHEDULE", "CATCH_UP", "MANUAL", "BACKFILL", "REPAIR", "TEST", "EXTERNAL"]

# What the scheduler takes for what a declaration leaves out; see `JobOptions`.
_ATTEMPT_TIMEOUT = 3_600.0
_CANCEL_GRACE = 30.0
_MAX_ATTEMPTS = 3


class RunOptions(TypedDict, total=False):
    """What may be said of a run under test."""

    # Whose run it is. Default: `-`, the system.
    tenant: str
    # Which attempt this is. Default: 1.
    attempt: int
    # How many the run has in all. Default: as declared.
    max_attempts: int
    # The nominal instant that it is for, with a time zone. Default: now.
    scheduled_time: datetime
    # Why it exists. Default: `MANUAL`.
    trigger_source: TriggerSource
    # Laid over the job's labels.
    labels: Mapping[str, str]
    # The run's id. Default: a new one.
    run_id: uuid.UUID
    # How long the attempt may take, in real time; `time_out_when` needs none. Default: as declared.
    timeout: Seconds
    # How long it may take to stop, in real time. Default: as declared.
    cancel_grace: Seconds


def handler_of(jobs: Jobs, job: str) -> Handler:
    """The handler of a job. Raises ValueError if the job has none."""
    handlers = {**jobs.handlers, **jobs.grpc_handlers}
    if job not in handlers:
        raise ValueError(f"{jobs.service} declares no handler {job!r}; there are: {', '.join(handlers) or 'none'}")
    return handlers[job]


def assignment_for(jobs: Jobs, job: str, payload: Mapping[str, object], options: RunOptions) -> Assignment:
    """One attempt at a run of `job`. Raises ValueError or TypeError with a sentence that names what is wrong."""
    handler_of(jobs, job)
    [spec] = [each for each in jobs.manifest().jobs if each.job == job]
    what = f"run of {job!r}"
    attempt = options.get("attempt", 1)
    max_attempts = options.get("max_attempts", max(attempt, spec.policies.retry.max_attempts or _MAX_ATTEMPTS))
    if not 1 <= attempt <= max_attempts:
        raise ValueError(f"{what}: attempt {attempt} of {max_attempts} cannot be")
    return Assignment(
        run_id=options.get("run_id") or uuid.uuid4(),
        attempt=attempt,
        claim_id=attempt,
        max_attempts=max_attempts,
        service=jobs.service,
        job=job,
        tenant=options.get("tenant", "-"),
        endpoint="",
        payload_json=_payload_json(spec, payload, what),
        attempt_timeout=_seconds(options, "timeout", _declared(spec, "attempt_timeout", _ATTEMPT_TIMEOUT), what),
        cancel_grace=_seconds(options, "cancel_grace", _declared(spec, "cancel_grace", _CANCEL_GRACE), what),
        scheduled_time=_instant(options.get("scheduled_time"), what),
        trigger_source=options.get("trigger_source", "MANUAL"),
        labels={**spec.labels, **labels(what, options.get("labels", {}))},
    )


def _payload_json(spec: job_pb2.JobSpec, payload: Mapping[str, object], what: str) -> str:
    # By way of a Struct, so that a test meets what the way to the scheduler does to numbers, and what it refuses.
    given = to_struct(payload, f"{what}: payload")
    return json.dumps({**from_struct(spec.config), **from_struct(given)})


def _declared(spec: job_pb2.JobSpec, policy: Literal["attempt_timeout", "cancel_grace"], default: float) -> float:
    if not spec.policies.HasField(policy):
        return default
    return float(getattr(spec.policies, policy).ToTimedelta().total_seconds())


def _seconds(options: RunOptions, name: Literal["timeout", "cancel_grace"], default: float, what: str) -> float:
    if name not in options:
        return default
    return to_duration(options[name], f"{what}: {name}").ToTimedelta().total_seconds()


def _instant(given: datetime | None, what: str) -> datetime:
    if given is None:
        return datetime.now(timezone.utc)
    if given.tzinfo is None:
        raise ValueError(f"{what}: scheduled_time must say its time zone: {given.isoformat()} has none")
    return given.astimezone(timezone.utc)
