"""Reads and steers jobs, schedules and runs: what an operator or another program does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from carillon.channel import Connection, Tls
from carillon.declaration import PolicyOptions, TimingOptions
from carillon.errors import from_rpc
from carillon.names import job_name, run_name, schedule_name, service_name
from carillon.overrides import overrides_and_mask, schedule_and_mask
from carillon.structs import to_struct, to_timestamp
from carillon.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R")

CALL_SECONDS = 30.0
PAGE = 500


class Client:
    """A connection for admin and read calls, for use as `async with Client(...) as client:`.

    target: default `CARILLON_TARGET`, else `127.0.0.1:7007`. token: a JWT; or service_token (default:
    `CARILLON_SERVICE_TOKEN`). tls: True, or the files to use; plain text by default. timeout: seconds for a call.

    Jobs are named `email-service/weekly-digest`, or by their resource names; runs by id or name. Each method returns
    the generated messages, and raises `CarillonError`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        service_token: str | None = None,
        tls: Tls | bool | None = None,
        timeout: float = CALL_SECONDS,
    ) -> None:
        self._connection = Connection.resolve(target, service_token=service_token, jwt=token, tls=tls)
        self._timeout = timeout
        self._channel: Any = None

    async def __aenter__(self) -> Client:
        self._channel = self._connection.open()
        self._jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._schedules = schedule_service_pb2_grpc.ScheduleServiceStub(self._channel)
        self._runs = run_service_pb2_grpc.RunServiceStub(self._channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    # Jobs.

    async def get_job(self, job: str) -> job_pb2.Job:
        """Reads one job."""
        return (
            await self._call(
                job_service_pb2.GetJobResponse, "GetJob", job_service_pb2.GetJobRequest(name=job_name(job))
            )
        ).job

    async def list_jobs(
        self, service: str = "-", *, labels: Mapping[str, str] | None = None, show_archived: bool = False
    ) -> AsyncIterator[job_pb2.Job]:
        """All jobs, or those of one service, ordered by service and job."""
        request = job_service_pb2.ListJobsRequest(
            parent=service_name(service), labels=labels, show_archived=show_archived, page_size=PAGE
        )
        async for page in self._pages(job_service_pb2.ListJobsResponse, "ListJobs", request):
            for job in page.jobs:
                yield job

    async def update_job(self, job: str, **overrides: Unpack[PolicyOptions]) -> job_pb2.Job:
        """Overrides timing, policies or config: `update_job("email-service/digest", cron="0 7 * * *", retries=5)`.

        Only what is named changes, and it survives the service's next registration. config replaces the overridden
        keys as a whole.
        """
        values, mask = overrides_and_mask(overrides)
        request = job_service_pb2.UpdateJobRequest(name=job_name(job), overrides=values, update_mask=mask)
        return (await self._call(job_service_pb2.UpdateJobResponse, "UpdateJob", request)).job

    async def reset_job_overrides(self, job: str, fields: Iterable[str] = ()) -> job_pb2.Job:
        """Clears all overrides, or those of these fields, such as `timing.cron`."""
        request = job_service_pb2.ResetJobOverridesRequest(name=job_name(job))
        request.mask.paths.extend(fields)
        return (await self._call(job_service_pb2.ResetJobOverridesResponse, "ResetJobOverrides", request)).job

    async def pause_job(self, job: str) -> job_pb2.Job:
        """Holds a job: its schedules owe nothing from now on."""
        return (
            await self._call(
                job_service_pb2.PauseJobResponse, "PauseJob", job_service_pb2.PauseJobRequest(name=job_name(job))
            )
        ).job

    async def resume_job(self, job: str) -> job_pb2.Job:
        """Lets a paused job go on."""
        return (
            await self._call(
                job_service_pb2.ResumeJobResponse, "ResumeJob", job_service_pb2.ResumeJobRequest(name=job_name(job))
            )
        ).job

    async def trigger_job(
        self,
        job: str,
        payload: Mapping[str, object] | None = None,
        *,
        tenants: Iterable[str] = (),
        test: bool = False,
        origin: str = "",
        run_key: str = "",
        request_id: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[run_pb2.Run]:
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
        return list((await self._call(job_service_pb2.TriggerJobResponse, "TriggerJob", request)).runs)

    async def get_job_stats(
        self, job: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> job_service_pb2.GetJobStatsResponse:
        """Counts a job's ended runs (default: of the last 7 days)."""
        request = job_service_pb2.GetJobStatsRequest(name=job_name(job))
        _set_range(request, since, until)
        return await self._call(job_service_pb2.GetJobStatsResponse, "GetJobStats", request)

    # Schedules.

    async def get_schedule(self, job: str, *, tenant: str = "-", schedule: str = "default") -> schedule_pb2.Schedule:
        """Reads one schedule; by default the job's own."""
        request = schedule_service_pb2.GetScheduleRequest(name=schedule_name(job, tenant, schedule))
        return (await self._call(schedule_service_pb2.GetScheduleResponse, "GetSchedule", request)).schedule

    async def list_schedules(self, job: str = "-/-", *, tenant: str = "*") -> AsyncIterator[schedule_pb2.Schedule]:
        """All schedules that the caller may see, of one job, or of one tenant."""
        parent = f"{job_name(job)}/tenants/{tenant}"
        request = schedule_service_pb2.ListSchedulesRequest(parent=parent, page_size=PAGE)
        async for page in self._pages(schedule_service_pb2.ListSchedulesResponse, "ListSchedules", request):
            for schedule in page.schedules:
                yield schedule

    async def put_schedule(
        self,
        job: str,
        *,
        tenant: str,
        schedule: str = "default",
        enabled: bool | None = None,
        config: Mapping[str, object] | None = None,
        labels: Mapping[str, str] | None = None,
        **timing: Unpack[TimingOptions],
    ) -> schedule_pb2.Schedule:
        """Creates or updates a tenant's schedule. What is not named stays as it is; a new one is enabled."""
        values, mask = schedule_and_mask(timing, enabled, config, labels)
        values.name = schedule_name(job, tenant, schedule)
        request = schedule_service_pb2.PutScheduleRequest(schedule=values, update_mask=mask)
        return (await self._call(schedule_service_pb2.PutScheduleResponse, "PutSchedule", request)).schedule

    # Runs.

    async def get_run(self, run: str | uuid.UUID) -> run_pb2.Run:
        """Reads one run, live or ended."""
        return (
            await self._call(
                run_service_pb2.GetRunResponse, "GetRun", run_service_pb2.GetRunRequest(name=run_name(run))
            )
        ).run

    async def list_runs(
        self,
        job: str = "",
        *,
        tenant: str = "",
        labels: Mapping[str, str] | None = None,
        states: Iterable[str] = (),
        trigger_sources: Iterable[str] = (),
        origin: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[run_pb2.Run]:
        """Runs, newest first. states such as `FAILED`, trigger_sources such as `MANUAL`; all filters must hold."""
        request = run_service_pb2.ListRunsRequest(
            job=job_name(job) if job else "",
            tenant=tenant,
            labels=labels,
            states=[_enum(run_pb2.RunState, "RUN_STATE_", state) for state in states],
            trigger_sources=[_enum(run_pb2.TriggerSource, "TRIGGER_SOURCE_", source) for source in trigger_sources],
            origin=origin,
            page_size=PAGE,
        )
        _set_range(request, since, until)
        async for page in self._pages(run_service_pb2.ListRunsResponse, "ListRuns", request):
            for run in page.runs:
                yield run

    async def watch_runs(
        self, *, job: str = "", schedule: str = "", run: str | uuid.UUID = ""
    ) -> AsyncIterator[run_pb2.Run]:
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
        call = self._method("WatchRuns")(request, metadata=self._connection.metadata())
        try:
            async for response in call:
                yield response.run
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        finally:
            call.cancel()

    async def list_attempts(self, run: str | uuid.UUID) -> list[run_pb2.Attempt]:
        """The attempts of a run, the first one first."""
        request = run_service_pb2.ListAttemptsRequest(name=run_name(run))
        return list((await self._call(run_service_pb2.ListAttemptsResponse, "ListAttempts", request)).attempts)

    async def list_items(self, run: str | uuid.UUID, *, failed_only: bool = False) -> AsyncIterator[run_pb2.Item]:
        """The items of a run's last attempt, by key."""
        request = run_service_pb2.ListItemsRequest(name=run_name(run), failed_only=failed_only, page_size=PAGE)
        async for page in self._pages(run_service_pb2.ListItemsResponse, "ListItems", request):
            for item in page.items:
                yield item

    async def cancel_run(self, run: str | uuid.UUID, reason: str = "") -> run_pb2.Run:
        """Asks a run to stop."""
        request = run_service_pb2.CancelRunRequest(name=run_name(run), reason=reason)
        return (await self._call(run_service_pb2.CancelRunResponse, "CancelRun", request)).run

    def _method(self, name: str) -> Any:
        if self._channel is None:
            raise RuntimeError("the client is not open; use it as `async with Client(...) as client:`")
        for stub in (self._jobs, self._schedules, self._runs):
            if (method := getattr(stub, name, None)) is not None:
                return method
        raise AttributeError(name)

    async def _call(self, answer: type[R], method: str, request: Any) -> R:  # noqa: ARG002 - only for its type
        try:
            response: R = await self._method(method)(
                request, timeout=self._timeout, metadata=self._connection.metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        return response

    async def _pages(self, answer: type[R], method: str, request: Any) -> AsyncIterator[R]:
        while True:
            page: Any = await self._call(answer, method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _set_range(request: Any, since: datetime | None, until: datetime | None) -> None:
    if since is not None:
        request.since.CopyFrom(to_timestamp(since, "since"))
    if until is not None:
        request.until.CopyFrom(to_timestamp(until, "until"))


def _enum(kind: Any, prefix: str, name: str) -> Any:
    try:
        return kind.Value(prefix + name.upper())
    except ValueError:
        known = ", ".join(value.removeprefix(prefix) for value in kind.keys()[1:])
        raise ValueError(f"{name!r} is none of {known}") from None
