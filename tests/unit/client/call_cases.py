"""The calls of the clients, but for the watch and those about schedules: what each sends, and what it returns for an
answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from carillon.rpc import PAGE
from carillon.v1 import (
    backfill_pb2,
    job_pb2,
    job_service_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
    schedule_pb2,
)
from google.protobuf import field_mask_pb2, struct_pb2, timestamp_pb2

JOB = "services/kpi/jobs/sync"
RUN = run_pb2.Run(name="runs/1")
SINCE = datetime(2026, 3, 1, tzinfo=UTC)
UNTIL = datetime(2026, 4, 1, tzinfo=UTC)
FULL = struct_pb2.Struct(fields={"full": struct_pb2.Value(bool_value=True)})


@dataclass(frozen=True)
class Case:
    """A call of the client, what it sends for that, and what it returns for an answer."""

    name: str
    args: tuple[Any, ...]
    rpc: tuple[str, str]
    request: Any
    answer: Any
    result: Any
    options: Mapping[str, Any] = field(default_factory=dict)


def stamp(instant: datetime) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=int(instant.timestamp()))


_JOB = job_pb2.Job(name=JOB)
_RESUMED = job_service_pb2.ResumeJobResponse(job=_JOB, catch_up=schedule_pb2.CatchUpPlan(runs=2))
_BACKFILL = backfill_pb2.Backfill(name=f"{JOB}/backfills/7", occurrences=3)
_STATS = job_service_pb2.GetJobStatsResponse()
_MANIFEST = registry_service_pb2.RegisterJobsRequest(service="kpi", generation=3)
_REGISTERED = registry_service_pb2.RegisterJobsResponse(generation=3)
_ATTEMPTS = [run_pb2.Attempt(attempt=1), run_pb2.Attempt(attempt=2)]

UNARY = [
    Case("register_jobs", (_MANIFEST,), ("RegistryService", "RegisterJobs"), _MANIFEST, _REGISTERED, _REGISTERED),
    Case(
        "get_job",
        ("kpi/sync",),
        ("JobService", "GetJob"),
        job_service_pb2.GetJobRequest(name=JOB),
        job_service_pb2.GetJobResponse(job=_JOB),
        _JOB,
    ),
    Case(
        "update_job",
        ("kpi/sync",),
        ("JobService", "UpdateJob"),
        job_service_pb2.UpdateJobRequest(
            name=JOB,
            overrides=job_pb2.JobOverrides(timing=job_pb2.Timing(cron="@daily")),
            update_mask=field_mask_pb2.FieldMask(paths=["timing.cron"]),
        ),
        job_service_pb2.UpdateJobResponse(job=_JOB),
        _JOB,
        {"cron": "@daily"},
    ),
    Case(
        "reset_job_overrides",
        ("kpi/sync", ["timing.cron"]),
        ("JobService", "ResetJobOverrides"),
        job_service_pb2.ResetJobOverridesRequest(name=JOB, mask=field_mask_pb2.FieldMask(paths=["timing.cron"])),
        job_service_pb2.ResetJobOverridesResponse(job=_JOB),
        _JOB,
    ),
    Case(
        "pause_job",
        ("kpi/sync",),
        ("JobService", "PauseJob"),
        job_service_pb2.PauseJobRequest(name=JOB),
        job_service_pb2.PauseJobResponse(job=_JOB),
        _JOB,
    ),
    Case(
        "resume_job",
        ("kpi/sync",),
        ("JobService", "ResumeJob"),
        job_service_pb2.ResumeJobRequest(name=JOB, catch_up=job_pb2.CATCH_UP_LATEST, validate_only=True),
        _RESUMED,
        _RESUMED,
        {"catch_up": "latest", "validate_only": True},
    ),
    Case(
        "trigger_job",
        ("kpi/sync",),
        ("JobService", "TriggerJob"),
        job_service_pb2.TriggerJobRequest(name=JOB, tenants=["acme"], run_key="k", request_id="r", test=True),
        job_service_pb2.TriggerJobResponse(runs=[RUN]),
        [RUN],
        {"tenants": ["acme"], "run_key": "k", "request_id": "r", "test": True},
    ),
    Case(
        "get_job_stats",
        ("kpi/sync",),
        ("JobService", "GetJobStats"),
        job_service_pb2.GetJobStatsRequest(name=JOB),
        _STATS,
        _STATS,
    ),
    Case(
        "backfill_job",
        ("kpi/sync", SINCE, UNTIL),
        ("JobService", "BackfillJob"),
        job_service_pb2.BackfillJobRequest(
            name=JOB,
            since=stamp(SINCE),
            until=stamp(UNTIL),
            tenant="acme",
            schedule="daily",
            payload=FULL,
            validate_only=True,
            request_id="r",
        ),
        job_service_pb2.BackfillJobResponse(backfill=_BACKFILL),
        _BACKFILL,
        {"tenant": "acme", "schedule": "daily", "payload": {"full": True}, "validate_only": True, "request_id": "r"},
    ),
    Case(
        "get_backfill",
        (_BACKFILL.name,),
        ("JobService", "GetBackfill"),
        job_service_pb2.GetBackfillRequest(name=_BACKFILL.name),
        job_service_pb2.GetBackfillResponse(backfill=_BACKFILL),
        _BACKFILL,
    ),
    Case(
        "cancel_backfill",
        (_BACKFILL.name, "wrong month"),
        ("JobService", "CancelBackfill"),
        job_service_pb2.CancelBackfillRequest(name=_BACKFILL.name, reason="wrong month"),
        job_service_pb2.CancelBackfillResponse(backfill=_BACKFILL),
        _BACKFILL,
    ),
    Case(
        "get_run",
        ("1",),
        ("RunService", "GetRun"),
        run_service_pb2.GetRunRequest(name="runs/1"),
        run_service_pb2.GetRunResponse(run=RUN),
        RUN,
    ),
    Case(
        "list_attempts",
        ("1",),
        ("RunService", "ListAttempts"),
        run_service_pb2.ListAttemptsRequest(name="runs/1"),
        run_service_pb2.ListAttemptsResponse(attempts=_ATTEMPTS),
        _ATTEMPTS,
    ),
    Case(
        "cancel_run",
        ("1", "wrong list"),
        ("RunService", "CancelRun"),
        run_service_pb2.CancelRunRequest(name="runs/1", reason="wrong list"),
        run_service_pb2.CancelRunResponse(run=RUN),
        RUN,
    ),
    Case(
        "retry_run",
        ("1",),
        ("RunService", "RetryRun"),
        run_service_pb2.RetryRunRequest(name="runs/1", request_id="r-1"),
        run_service_pb2.RetryRunResponse(run=RUN),
        RUN,
        {"request_id": "r-1"},
    ),
]

# Of these, `answer` and `result` are the first page's; the second has another of the same.
PAGES = [
    Case(
        "list_jobs",
        ("kpi",),
        ("JobService", "ListJobs"),
        job_service_pb2.ListJobsRequest(parent="services/kpi", page_size=PAGE),
        job_service_pb2.ListJobsResponse(jobs=[_JOB]),
        [_JOB],
    ),
    Case(
        "list_backfills",
        ("kpi/sync",),
        ("JobService", "ListBackfills"),
        job_service_pb2.ListBackfillsRequest(parent=JOB, page_size=PAGE),
        job_service_pb2.ListBackfillsResponse(backfills=[_BACKFILL]),
        [_BACKFILL],
    ),
    Case(
        "list_runs",
        ("kpi/sync",),
        ("RunService", "ListRuns"),
        run_service_pb2.ListRunsRequest(job=JOB, states=[run_pb2.RUN_STATE_FAILED], page_size=PAGE),
        run_service_pb2.ListRunsResponse(runs=[RUN]),
        [RUN],
        {"states": ["failed"]},
    ),
    Case(
        "list_items",
        ("1",),
        ("RunService", "ListItems"),
        run_service_pb2.ListItemsRequest(name="runs/1", failed_only=True, page_size=PAGE),
        run_service_pb2.ListItemsResponse(items=[run_pb2.Item(key="a")]),
        [run_pb2.Item(key="a")],
        {"failed_only": True},
    ),
]
