"""Who gets what of which method: the requests, and the answers that are expected.

Each request is about a job of the email-service and tenant A. The answers:

    O   is answered
    E   an empty list
    N   NOT_FOUND
    D   PERMISSION_DENIED
    U   UNAUTHENTICATED
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from uuid import uuid4

from carillon.v1 import audit_service_pb2 as audit
from carillon.v1 import job_pb2, schedule_pb2, work_pb2
from carillon.v1 import job_service_pb2 as jobs
from carillon.v1 import registry_service_pb2 as registry
from carillon.v1 import run_service_pb2 as runs
from carillon.v1 import schedule_service_pb2 as schedules
from carillon.v1.worker_service_pb2 import WorkRequest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.security.world import EMAIL, A, Things

COLUMNS = (
    *("anonymous", "false-token", "false-jwt", "no-tenant"),
    *("service", "register", "trigger", "read", "coverage", "work", "no-scope", "other", "worker"),
    *("user-a", "user-b", "nobody", "forger", "admin"),
)

_EXPECTED = """
RegistryService/RegisterJobs             U U U U  O O D D D D D  D D  D D N N  D
RegistryService/RemoveJob                U U U U  O O D D D D D  D D  D D N N  D
JobService/GetJob                        U U U U  O D D O D D D  D D  N N N N  O
JobService/ListJobs                      U U U U  O D D O D D D  O D  E E E E  O
JobService/ListJobs/of-the-service       U U U U  O D D O D D D  D D  E E E E  O
JobService/UpdateJob                     U U U U  D D D D D D D  D D  D D N N  O
JobService/ResetJobOverrides             U U U U  D D D D D D D  D D  D D N N  O
JobService/PauseJob                      U U U U  D D D D D D D  D D  D D N N  O
JobService/ResumeJob                     U U U U  D D D D D D D  D D  D D N N  O
JobService/TriggerJob                    U U U U  O D O D D D D  D D  D D N N  O
JobService/BackfillJob                   U U U U  D D D D D D D  D D  D D N N  O
JobService/GetBackfill                   U U U U  D D D D D D D  D D  D D N N  O
JobService/ListBackfills                 U U U U  D D D D D D D  D D  D D E E  O
JobService/CancelBackfill                U U U U  D D D D D D D  D D  D D N N  O
JobService/GetJobStats                   U U U U  O D D O D D D  D D  N N N N  O
ScheduleService/GetSchedule              U U U U  O D D O D D D  D D  O N N N  O
ScheduleService/ListSchedules            U U U U  O D D O D D D  E D  O O E E  O
ScheduleService/ListSchedules/of-a       U U U U  O D D O D D D  D D  O N E E  O
ScheduleService/PutSchedule              U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/PutSchedule/new          U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/PutSchedule/the-systems  U U U U  D D D D D D D  D D  N N N N  O
ScheduleService/PauseSchedule            U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/ResumeSchedule           U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/DeleteSchedule           U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/RunSchedule              U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/PreviewOccurrences       U U U U  O D D O D D D  D D  O N N N  O
ScheduleService/PreviewOccurrences/new   U U U U  O D D O D D D  O D  O O N N  O
ScheduleService/ListLedger               U U U U  O D D O D D D  D D  O N E E  O
ScheduleService/GetTenant                U U U U  D D D D D D D  D D  O N N N  O
ScheduleService/PutTenant                U U U U  D D D D D D D  D D  O N N N  O
RunService/GetRun                        U U U U  O D D O D D D  N D  O N N N  O
RunService/ListRuns                      U U U U  O D D O D D D  O D  O O E E  O
RunService/ListRuns/of-a                 U U U U  O D D O D D D  E D  O E E E  O
RunService/WatchRuns                     U U U U  O D D O D D D  N D  O N N N  O
RunService/WatchRuns/of-the-job          U U U U  O D D O D D D  D D  O O N N  O
RunService/WatchRuns/of-the-schedule     U U U U  O D D O D D D  D D  O N N N  O
RunService/ListAttempts                  U U U U  O D D O D D D  N D  O N E E  O
RunService/ListItems                     U U U U  O D D O D D D  N D  O N E E  O
RunService/CancelRun                     U U U U  D D D D D D D  D D  D D N N  O
RunService/RetryRun                      U U U U  D D D D D D D  D D  D D N N  O
WorkerService/Work                       U U U U  O D D D D O D  D O  D D N N  D
WorkerService/Work/of-all                U U U U  D D D D D D D  D O  D D N N  D
AuditService/ListAuditEvents             U U U U  D D D D D D D  D D  D D E E  O
AuditService/GetAuditHead                U U U U  D D D D D D D  D D  D D N N  O
AuditService/VerifyAuditTrail            U U U U  D D D D D D D  D D  D D N N  O
ScheduleService/RemoveTenant             U U U U  D D D D D D D  D D  D D N N  O
"""


def expected() -> Mapping[str, Mapping[str, str]]:
    """By row, then by caller."""
    rows = [line.split() for line in _EXPECTED.strip().splitlines()]
    return {name: dict(zip(COLUMNS, answers, strict=True)) for name, *answers in rows}


def method_of(row: str) -> str:
    """The full name of the method that a row is about."""
    return "/carillon.v1." + "/".join(row.split("/")[:2])


def request_of(row: str, things: Things) -> Message:
    """The row's request, about these things."""
    return _REQUESTS[row](things)


def _spec(job: str) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(job=job, target=job_pb2.Target(http=job_pb2.HttpTarget(endpoint="/run")))


def _manifest(things: Things) -> Message:
    return registry.RegisterJobsRequest(
        service=EMAIL,
        base_url="http://somewhere.internal",
        jobs=[_spec(things.job.job)],
        validate_only=True,
        allow_mass_removal=True,
    )


def _update(things: Things) -> Message:
    overrides = job_pb2.JobOverrides(timing=job_pb2.Timing(cron="0 7 * * *"))
    return jobs.UpdateJobRequest(
        name=things.job.name, overrides=overrides, update_mask=FieldMask(paths=["timing.cron"])
    )


def _backfill(things: Things) -> Message:
    now = int(time.time())
    since, until = Timestamp(seconds=now - 3600), Timestamp(seconds=now - 1800)
    return jobs.BackfillJobRequest(name=things.job.name, tenant=A, schedule="daily", since=since, until=until)


def _put(name: str) -> Message:
    timing = job_pb2.Timing(cron="0 9 * * *", time_zone="UTC")
    return schedules.PutScheduleRequest(schedule=schedule_pb2.Schedule(name=name, timing=timing))


def _preview(things: Things) -> Message:
    return schedules.PreviewOccurrencesRequest(timing=job_pb2.Timing(cron="0 9 * * *"))


def _hello(route: str) -> Message:
    return WorkRequest(hello=work_pb2.Hello(session_id=uuid4().bytes, worker="w", routes=[route], client="test"))


def _run(things: Things) -> str:
    return f"runs/{things.run}"


_REQUESTS: Mapping[str, Callable[[Things], Message]] = {
    "RegistryService/RegisterJobs": _manifest,
    "RegistryService/RemoveJob": lambda it: registry.RemoveJobRequest(name=it.job.name),
    "JobService/GetJob": lambda it: jobs.GetJobRequest(name=it.job.name),
    "JobService/ListJobs": lambda it: jobs.ListJobsRequest(),
    "JobService/ListJobs/of-the-service": lambda it: jobs.ListJobsRequest(parent=f"services/{EMAIL}"),
    "JobService/UpdateJob": _update,
    "JobService/ResetJobOverrides": lambda it: jobs.ResetJobOverridesRequest(name=it.job.name),
    "JobService/PauseJob": lambda it: jobs.PauseJobRequest(name=it.job.name),
    "JobService/ResumeJob": lambda it: jobs.ResumeJobRequest(name=it.job.name),
    "JobService/TriggerJob": lambda it: jobs.TriggerJobRequest(name=it.job.name, tenants=[A]),
    "JobService/BackfillJob": _backfill,
    "JobService/GetBackfill": lambda it: jobs.GetBackfillRequest(name=it.backfill),
    "JobService/ListBackfills": lambda it: jobs.ListBackfillsRequest(parent=it.job.name),
    "JobService/CancelBackfill": lambda it: jobs.CancelBackfillRequest(name=it.backfill),
    "JobService/GetJobStats": lambda it: jobs.GetJobStatsRequest(name=it.job.name),
    "ScheduleService/GetSchedule": lambda it: schedules.GetScheduleRequest(name=it.schedule),
    "ScheduleService/ListSchedules": lambda it: schedules.ListSchedulesRequest(),
    "ScheduleService/ListSchedules/of-a": lambda it: schedules.ListSchedulesRequest(
        parent=f"{it.job.name}/tenants/{A}"
    ),
    "ScheduleService/PutSchedule": lambda it: _put(it.schedule),
    "ScheduleService/PutSchedule/new": lambda it: _put(f"{it.job.name}/tenants/{A}/schedules/another"),
    "ScheduleService/PutSchedule/the-systems": lambda it: _put(f"{it.job.name}/tenants/-/schedules/another"),
    "ScheduleService/PauseSchedule": lambda it: schedules.PauseScheduleRequest(name=it.schedule),
    "ScheduleService/ResumeSchedule": lambda it: schedules.ResumeScheduleRequest(name=it.schedule),
    "ScheduleService/DeleteSchedule": lambda it: schedules.DeleteScheduleRequest(name=it.schedule),
    "ScheduleService/RunSchedule": lambda it: schedules.RunScheduleRequest(name=it.schedule),
    "ScheduleService/PreviewOccurrences": lambda it: schedules.PreviewOccurrencesRequest(name=it.schedule),
    "ScheduleService/PreviewOccurrences/new": _preview,
    "ScheduleService/ListLedger": lambda it: schedules.ListLedgerRequest(
        schedule=it.schedule, since=Timestamp(seconds=int(time.time()) - 86_400 * 2)
    ),
    "ScheduleService/GetTenant": lambda it: schedules.GetTenantRequest(name=f"tenants/{A}"),
    "ScheduleService/PutTenant": lambda it: schedules.PutTenantRequest(
        tenant=schedule_pb2.Tenant(name=f"tenants/{A}", time_zone="Asia/Kolkata")
    ),
    "RunService/GetRun": lambda it: runs.GetRunRequest(name=_run(it)),
    "RunService/ListRuns": lambda it: runs.ListRunsRequest(),
    "RunService/ListRuns/of-a": lambda it: runs.ListRunsRequest(tenant=A),
    "RunService/WatchRuns": lambda it: runs.WatchRunsRequest(run=_run(it)),
    "RunService/WatchRuns/of-the-job": lambda it: runs.WatchRunsRequest(job=it.job.name),
    "RunService/WatchRuns/of-the-schedule": lambda it: runs.WatchRunsRequest(schedule=it.schedule),
    "RunService/ListAttempts": lambda it: runs.ListAttemptsRequest(name=_run(it)),
    "RunService/ListItems": lambda it: runs.ListItemsRequest(name=_run(it)),
    "RunService/CancelRun": lambda it: runs.CancelRunRequest(name=f"runs/{it.live_run}"),
    "RunService/RetryRun": lambda it: runs.RetryRunRequest(name=_run(it)),
    "WorkerService/Work": lambda it: _hello(f"handler/{EMAIL}/{it.job.job}"),
    "WorkerService/Work/of-all": lambda it: _hello("http"),
    "AuditService/ListAuditEvents": lambda it: audit.ListAuditEventsRequest(),
    "AuditService/GetAuditHead": lambda it: audit.GetAuditHeadRequest(),
    "AuditService/VerifyAuditTrail": lambda it: audit.VerifyAuditTrailRequest(),
    "ScheduleService/RemoveTenant": lambda it: schedules.RemoveTenantRequest(name=f"tenants/{A}"),
}
