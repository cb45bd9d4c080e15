"""What requests about runs ask for, as the domain's values; every wrong field is listed at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from carillon.v1 import job_service_pb2, run_service_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.fields import Violations, check_labels, check_text
from scheduler_service.domain.names import JobName, ScheduleName, check_tenant, parse_service_parent
from scheduler_service.domain.run import parse_run_name
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.rpc.encode_runs import STATES, TRIGGERS
from scheduler_service.rpc.structs import read_struct
from scheduler_service.usecases.trigger import TriggerRequest

E = TypeVar("E", bound=StrEnum)
_ALL_JOBS = "/jobs/-"
_MAX_ORIGIN = 63


def run_filter(request: run_service_pb2.ListRunsRequest) -> RunFilter:
    wrong = Violations()
    service, job = _job_filter(request.job, wrong)
    if request.tenant not in ("", SYSTEM_TENANT):
        check_tenant(request.tenant, "tenant", wrong)
    check_labels(request.labels, "labels", wrong)
    check_text(request.origin, "origin", wrong, at_most=_MAX_ORIGIN)
    wanted = RunFilter(
        service=service,
        job=job,
        tenant=request.tenant,
        labels=dict(request.labels),
        states=named(request.states, STATES, "states", wrong),
        triggers=named(request.trigger_sources, TRIGGERS, "trigger_sources", wrong),
        origin=request.origin,
        since=instant(request, "since", wrong),
        until=instant(request, "until", wrong),
    )
    wrong.refuse_if_any()
    return wanted


def watch_target(request: run_service_pb2.WatchRunsRequest) -> JobName | ScheduleName | UUID:
    match request.WhichOneof("scope"):
        case "job":
            return JobName.parse(request.job, "job")
        case "schedule":
            return ScheduleName.parse(request.schedule, "schedule")
        case "run":
            return parse_run_name(request.run, "run")
        case _:
            raise InvalidInput(Violation("scope", "it is missing; set one of `job`, `schedule` and `run`"))


def trigger_request(request: job_service_pb2.TriggerJobRequest) -> TriggerRequest:
    wrong = Violations()
    payload = read_struct(request.payload, "payload", wrong)
    wrong.refuse_if_any()
    return TriggerRequest(
        job=JobName.parse(request.name),
        payload=payload,
        tenants=list(request.tenants),
        labels=dict(request.labels),
        test=request.test,
        origin=request.origin,
        run_key=request.run_key,
        request_id=request.request_id,
        digest=request_digest(request),
    )


def instant(request: Message, field: str, wrong: Violations) -> datetime | None:
    """A Timestamp field; None if it is not set."""
    if not request.HasField(field):
        return None
    timestamp: Timestamp = getattr(request, field)
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        wrong.add(field, "it is no instant from the year 1 to 9999 with 0 to 999,999,999 nanoseconds")
        return None


def request_digest(request: Message) -> bytes:
    """The same for the same request of the same method, whatever its `request_id`."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("request_id")
    body = asked.SerializeToString(deterministic=True)
    return hashlib.sha256(asked.DESCRIPTOR.full_name.encode() + b"\n" + body).digest()


def _job_filter(name: str, wrong: Violations) -> tuple[str, str]:
    if not name:
        return "", ""
    try:
        if name.endswith(_ALL_JOBS):
            return parse_service_parent(name.removesuffix(_ALL_JOBS), "job") or "", ""
        job = JobName.parse(name, "job")
    except InvalidInput as error:
        for violation in error.violations:
            wrong.add(violation.field, violation.problem)
        return "", ""
    return job.service, job.job


def named(numbers: Iterable[int], known: Mapping[E, int], field: str, wrong: Violations) -> frozenset[E]:
    """The values that a repeated enum field names."""
    by_number = {number: value for value, number in known.items()}
    found = set()
    for index, number in enumerate(numbers):
        if number in by_number:
            found.add(by_number[number])
        else:
            wrong.add(f"{field}[{index}]", f"{number} is none of {', '.join(value.name for value in known)}")
    return frozenset(found)
