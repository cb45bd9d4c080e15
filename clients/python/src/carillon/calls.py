"""The calls that the clients offer, described once: their arguments, requests, and how their answers are read. Those
about schedules and tenants are in `schedule_calls`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from carillon.declaration import CatchUp, PolicyOptions, catch_up_value
from carillon.names import job_name, run_name, service_name
from carillon.overrides import overrides_and_mask
from carillon.rpc import PAGE, Call, Pages, Stream, Streaming, Unary
from carillon.structs import set_range, to_enum, to_struct
from carillon.v1 import (
    backfill_pb2,
    job_pb2,
    job_service_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Services.


def register_jobs(
    manifest: registry_service_pb2.RegisterJobsRequest,
) -> Call[registry_service_pb2.RegisterJobsResponse]:
    """Registers a manifest, such as `jobs.manifest()`, and answers what changed."""
    return Unary(lambda stubs: stubs.registry.RegisterJobs).call(manifest, lambda answer: answer)


# Jobs.


def get_job(job: str) -> Call[job_pb2.Job]:
    """Reads one job."""
    request = job_service_pb2.GetJobRequest(name=job_name(job))
    return Unary(lambda stubs: stubs.jobs.GetJob).call(request, lambda answer: answer.job)


def list_jobs(
    service: str = "-", *, labels: Mapping[str, str] | None = None, show_archived: bool = False
) -> Pages[job_pb2.Job]:
    """All jobs, or those of one service, ordered by service and job."""
    request = job_service_pb2.ListJobsRequest(
        parent=service_name(service), labels=labels, show_archived=show_archived, page_size=PAGE
    )
    return Unary(lambda stubs: stubs.jobs.ListJobs).pages(request, lambda answer: answer.jobs)


def update_job(job: str, **overrides: Unpack[PolicyOptions]) -> Call[job_pb2.Job]:
    """Overrides timing, policies or config: `update_job("email-service/digest", cron="0 7 * * *", retries=5)`.

    Only what is named changes, and it survives the service's next registration. config replaces the overridden
    keys as a whole.
    """
    values, mask = overrides_and_mask(overrides)
    request = job_service_pb2.UpdateJobRequest(name=job_name(job), overrides=values, update_mask=mask)
    return Unary(lambda stubs: stubs.jobs.UpdateJob).call(request, lambda answer: answer.job)


def reset_job_overrides(job: str, fields: Iterable[str] = ()) -> Call[job_pb2.Job]:
    """Clears all overrides, or those of these fields, such as `timing.cron`."""
    request = job_service_pb2.ResetJobOverridesRequest(name=job_name(job))
    request.mask.paths.extend(fields)
    return Unary(lambda stubs: stubs.jobs.ResetJobOverrides).call(request, lambda answer: answer.job)


def pause_job(job: str) -> Call[job_pb2.Job]:
    """Holds a job: its schedules owe nothing from now on."""
    request = job_service_pb2.PauseJobRequest(name=job_name(job))
    return Unary(lambda stubs: stubs.jobs.PauseJob).call(request, lambda answer: answer.job)


def resume_job(
    job: str, *, catch_up: CatchUp = "none", validate_only: bool = False
) -> Call[job_service_pb2.ResumeJobResponse]:
    """Lets a paused job go on, and answers what that catches up of the time it was paused: `answer.catch_up`.

    catch_up: what is run of what came due meanwhile, within the job's window: none, the latest, or all of each of its
    schedules. validate_only: only answers what would be caught up.
    """
    request = job_service_pb2.ResumeJobRequest(
        name=job_name(job), catch_up=catch_up_value("resume_job", catch_up), validate_only=validate_only
    )
    return Unary(lambda stubs: stubs.jobs.ResumeJob).call(request, lambda answer: answer)


def trigger_job(
    job: str,
    payload: Mapping[str, object] | None = None,
    *,
    tenants: Iterable[str] = (),
    test: bool = False,
    origin: str = "",
    run_key: str = "",
    request_id: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Call[list[run_pb2.Run]]:
    """Runs a job now: one run, or one for each tenant.

    payload: put over the job's config, key by key. run_key: may be used once for a job and tenant; a repeat raises
    `AlreadyExists`, whose `metadata["run"]` names the run. request_id: give the same one to repeat this call
    safely (default: a new one).
    """
    request = job_service_pb2.TriggerJobRequest(
        name=job_name(job),
        tenants=list(tenants),
        test=test,
        origin=origin,
        run_key=run_key,
        request_id=request_id or str(uuid.uuid4()),
        labels=labels,
    )
    if payload is not None:
        request.payload.CopyFrom(to_struct(payload, "payload"))
    return Unary(lambda stubs: stubs.jobs.TriggerJob).call(request, lambda answer: list(answer.runs))


def get_job_stats(
    job: str, *, since: datetime | None = None, until: datetime | None = None
) -> Call[job_service_pb2.GetJobStatsResponse]:
    """Counts a job's ended runs (default: of the last 7 days)."""
    request = job_service_pb2.GetJobStatsRequest(name=job_name(job))
    set_range(request, since, until)
    return Unary(lambda stubs: stubs.jobs.GetJobStats).call(request, lambda answer: answer)


# Backfills.


def backfill_job(
    job: str,
    since: datetime,
    until: datetime,
    *,
    tenant: str = "-",
    schedule: str = "",
    payload: Mapping[str, object] | None = None,
    validate_only: bool = False,
    request_id: str | None = None,
) -> Call[backfill_pb2.Backfill]:
    """Runs what a job's schedules owed from `since` until before `until`, unless it is completed, or live.

    tenant: whose schedules (default: the system's, the job's own among them; `*` for everyone's). schedule: only the
    one of this id. payload: put over the config of job and schedule, key by key. validate_only: only counts.
    request_id: as for `trigger_job`.
    """
    request = job_service_pb2.BackfillJobRequest(
        name=job_name(job),
        tenant=tenant,
        schedule=schedule,
        validate_only=validate_only,
        request_id=request_id or str(uuid.uuid4()),
    )
    set_range(request, since, until)
    if payload is not None:
        request.payload.CopyFrom(to_struct(payload, "payload"))
    return Unary(lambda stubs: stubs.jobs.BackfillJob).call(request, lambda answer: answer.backfill)


def get_backfill(name: str) -> Call[backfill_pb2.Backfill]:
    """Reads one backfill by its resource name: how many runs it has, and how far they are."""
    request = job_service_pb2.GetBackfillRequest(name=name)
    return Unary(lambda stubs: stubs.jobs.GetBackfill).call(request, lambda answer: answer.backfill)


def list_backfills(job: str) -> Pages[backfill_pb2.Backfill]:
    """A job's backfills, the newest first."""
    request = job_service_pb2.ListBackfillsRequest(parent=job_name(job), page_size=PAGE)
    return Unary(lambda stubs: stubs.jobs.ListBackfills).pages(request, lambda answer: answer.backfills)


def cancel_backfill(name: str, reason: str = "") -> Call[backfill_pb2.Backfill]:
    """Asks those runs of a backfill to stop that have not ended. It is named as for `get_backfill`."""
    request = job_service_pb2.CancelBackfillRequest(name=name, reason=reason)
    return Unary(lambda stubs: stubs.jobs.CancelBackfill).call(request, lambda answer: answer.backfill)


# Runs.


def get_run(run: str | uuid.UUID) -> Call[run_pb2.Run]:
    """Reads one run, live or ended.

    `pending_reason` says why a pending one does not run, `retry_reason` what decided when its next attempt comes, and
    `retried_by` which run was made to do what an ended one did not.
    """
    request = run_service_pb2.GetRunRequest(name=run_name(run))
    return Unary(lambda stubs: stubs.runs.GetRun).call(request, lambda answer: answer.run)


def list_runs(
    job: str = "",
    *,
    tenant: str = "",
    labels: Mapping[str, str] | None = None,
    states: Iterable[str] = (),
    trigger_sources: Iterable[str] = (),
    origin: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> Pages[run_pb2.Run]:
    """Runs, newest first. states such as `FAILED`, trigger_sources such as `MANUAL`; all filters must hold."""
    request = run_service_pb2.ListRunsRequest(
        job=job_name(job) if job else "",
        tenant=tenant,
        labels=labels,
        states=[to_enum(run_pb2.RunState, "RUN_STATE_", state) for state in states],
        trigger_sources=[to_enum(run_pb2.TriggerSource, "TRIGGER_SOURCE_", source) for source in trigger_sources],
        origin=origin,
        page_size=PAGE,
    )
    set_range(request, since, until)
    return Unary(lambda stubs: stubs.runs.ListRuns).pages(request, lambda answer: answer.runs)


def watch_runs(*, job: str = "", schedule: str = "", run: str | uuid.UUID = "") -> Stream[run_pb2.Run]:
    """Runs as they change, of one job, schedule (by resource name) or run. Ends when a watched run has ended."""
    request = run_service_pb2.WatchRunsRequest()
    if job:
        request.job = job_name(job)
    elif schedule:
        request.schedule = schedule
    elif run:
        request.run = run_name(run)
    else:
        raise ValueError("watch_runs needs a job, a schedule or a run")
    return Streaming(lambda stubs: stubs.runs.WatchRuns).stream(request, lambda answer: answer.run)


def list_attempts(run: str | uuid.UUID) -> Call[list[run_pb2.Attempt]]:
    """The attempts of a run, the first one first."""
    request = run_service_pb2.ListAttemptsRequest(name=run_name(run))
    return Unary(lambda stubs: stubs.runs.ListAttempts).call(request, lambda answer: list(answer.attempts))


def list_items(run: str | uuid.UUID, *, failed_only: bool = False) -> Pages[run_pb2.Item]:
    """The items of a run's last attempt, by key."""
    request = run_service_pb2.ListItemsRequest(name=run_name(run), failed_only=failed_only, page_size=PAGE)
    return Unary(lambda stubs: stubs.runs.ListItems).pages(request, lambda answer: answer.items)


def cancel_run(run: str | uuid.UUID, reason: str = "") -> Call[run_pb2.Run]:
    """Asks a run to stop."""
    request = run_service_pb2.CancelRunRequest(name=run_name(run), reason=reason)
    return Unary(lambda stubs: stubs.runs.CancelRun).call(request, lambda answer: answer.run)


def retry_run(run: str | uuid.UUID, *, request_id: str | None = None) -> Call[run_pb2.Run]:
    """Tries a failed, cancelled or skipped run again: answers the new run, whose `retry_of` names it.

    If an earlier retry of it is live or completed, that one is answered, and nothing is made. request_id: as for
    `trigger_job`.
    """
    request = run_service_pb2.RetryRunRequest(name=run_name(run), request_id=request_id or str(uuid.uuid4()))
    return Unary(lambda stubs: stubs.runs.RetryRun).call(request, lambda answer: answer.run)
