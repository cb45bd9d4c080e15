"""What each method of the API is, to whoever decides whether it may be called: a method that is not here is refused.

The method's action is checked before its handler runs; whose thing it is about, the use case checks itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import descriptor_pool

from scheduler_service.domain.access import Action

PUBLIC = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Anybody may call these."""

_MIB = 1024 * 1024
_MOST_BYTES_OF_PUBLIC = 4 * 1024
_MOST_BYTES = 128 * 1024
# A document of 256 KiB of JSON has up to 1.5 MiB as a Struct.
_MOST_BYTES_OF: Mapping[str, int] = {
    "/carillon.v1.RegistryService/RegisterJobs": 8 * _MIB,
    "/carillon.v1.WorkerService/Work": 8 * _MIB,
    "/carillon.v1.JobService/UpdateJob": 2 * _MIB,
    "/carillon.v1.JobService/TriggerJob": 2 * _MIB,
    "/carillon.v1.JobService/BackfillJob": 2 * _MIB,
    "/carillon.v1.ScheduleService/PutSchedule": 2 * _MIB,
    "/carillon.v1.ScheduleService/RunSchedule": 2 * _MIB,
}

ACTIONS: Mapping[str, Action] = {
    "/carillon.v1.RegistryService/RegisterJobs": Action.REGISTER,
    "/carillon.v1.RegistryService/RemoveJob": Action.REGISTER,
    "/carillon.v1.JobService/GetJob": Action.READ,
    "/carillon.v1.JobService/ListJobs": Action.READ,
    "/carillon.v1.JobService/UpdateJob": Action.STEER,
    "/carillon.v1.JobService/ResetJobOverrides": Action.STEER,
    "/carillon.v1.JobService/PauseJob": Action.STEER,
    "/carillon.v1.JobService/ResumeJob": Action.STEER,
    "/carillon.v1.JobService/TriggerJob": Action.TRIGGER,
    "/carillon.v1.JobService/BackfillJob": Action.BACKFILL,
    "/carillon.v1.JobService/GetBackfill": Action.BACKFILL,
    "/carillon.v1.JobService/ListBackfills": Action.BACKFILL,
    "/carillon.v1.JobService/CancelBackfill": Action.BACKFILL,
    "/carillon.v1.JobService/GetJobStats": Action.READ,
    "/carillon.v1.ScheduleService/GetSchedule": Action.READ,
    "/carillon.v1.ScheduleService/ListSchedules": Action.READ,
    "/carillon.v1.ScheduleService/PutSchedule": Action.SET_SCHEDULE,
    "/carillon.v1.ScheduleService/DeleteSchedule": Action.SET_SCHEDULE,
    "/carillon.v1.ScheduleService/PauseSchedule": Action.SET_SCHEDULE,
    "/carillon.v1.ScheduleService/ResumeSchedule": Action.SET_SCHEDULE,
    "/carillon.v1.ScheduleService/RunSchedule": Action.RUN_SCHEDULE,
    "/carillon.v1.ScheduleService/PreviewOccurrences": Action.READ,
    "/carillon.v1.ScheduleService/ListLedger": Action.READ,
    "/carillon.v1.ScheduleService/GetTenant": Action.TENANT,
    "/carillon.v1.ScheduleService/PutTenant": Action.TENANT,
    "/carillon.v1.ScheduleService/RemoveTenant": Action.REMOVE_TENANT,
    "/carillon.v1.RunService/GetRun": Action.READ,
    "/carillon.v1.RunService/ListRuns": Action.READ,
    "/carillon.v1.RunService/WatchRuns": Action.READ,
    "/carillon.v1.RunService/ListAttempts": Action.READ,
    "/carillon.v1.RunService/ListItems": Action.READ,
    "/carillon.v1.RunService/CancelRun": Action.CANCEL,
    "/carillon.v1.RunService/RetryRun": Action.RETRY,
    "/carillon.v1.WorkerService/Work": Action.WORK,
    "/carillon.v1.AuditService/ListAuditEvents": Action.AUDIT,
    "/carillon.v1.AuditService/GetAuditHead": Action.AUDIT,
    "/carillon.v1.AuditService/VerifyAuditTrail": Action.AUDIT,
}


def is_public(method: str) -> bool:
    return method.startswith(PUBLIC)


def most_bytes(method: str) -> int:
    """How large a request of this method may be."""
    return _MOST_BYTES_OF_PUBLIC if is_public(method) else _MOST_BYTES_OF.get(method, _MOST_BYTES)


def methods_of(service: str) -> list[str]:
    """The full names of a service's methods, as its proto has them. `service`: such as `carillon.v1.JobService`."""
    found = descriptor_pool.Default().FindServiceByName(service)
    return [f"/{service}/{method.name}" for method in found.methods]


def unlisted(methods: Iterable[str]) -> list[str]:
    """Those of these full names (`/carillon.v1.JobService/GetJob`) that have no action here."""
    return [method for method in methods if method not in ACTIONS and not is_public(method)]
