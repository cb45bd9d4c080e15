"""A service's gRPC handlers, served: `JobHandlerService.Execute`, which workers call.

    @jobs.grpc_handler("weekly-digest", address="email-service:50051", cron="0 9 * * 1")
    async def weekly_digest(run: carillon.Run, digest: Digest) -> None: ...

    server = grpc.aio.server()
    server.add_insecure_port("0.0.0.0:50051")
    grpc_handlers.add_to_server(jobs, server)
    await server.start()
    await jobs.serve()

Items come back with the answer of an attempt that completed. Progress is not transported: the call has one answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from datetime import timezone
from typing import TYPE_CHECKING, NoReturn, cast

import grpc
import grpc.aio

from carillon import status_details
from carillon.execution import Assignment, Completed, Failed, Run
from carillon.handlers import HandlerExecutor
from carillon.held import TRIGGER_SOURCES
from carillon.outcome import BAD_PAYLOAD, BAD_RESULT, HANDLER_ERROR
from carillon.results import unexpected
from carillon.structs import from_struct, to_struct
from carillon.text import DETAIL_BYTES, MESSAGE_BYTES, clean, report_json
from carillon.v1 import job_handler_service_pb2, job_handler_service_pb2_grpc, run_pb2

if TYPE_CHECKING:
    from carillon.jobs import Jobs

    Context = grpc.aio.ServicerContext[job_handler_service_pb2.ExecuteRequest, job_handler_service_pb2.ExecuteResponse]

_log = logging.getLogger("carillon")

MOST_ITEMS = 10_000

_STATUS = {
    BAD_PAYLOAD: grpc.StatusCode.INVALID_ARGUMENT,
    BAD_RESULT: grpc.StatusCode.INTERNAL,
    HANDLER_ERROR: grpc.StatusCode.UNKNOWN,
}


def add_to_server(jobs: Jobs, server: grpc.aio.Server, *, concurrency: int = 10) -> None:
    """Serves the gRPC handlers that `jobs` declares. Call it once for each server, when all are declared.

    concurrency: how many plain functions run at once, each in a thread; `grpc.aio.server(maximum_concurrent_rpcs=...)`
    limits async ones too. A call that is cancelled, or out of time, stops its handler as a worker would.

    A failure is answered with its message, and in the status details its code, its detail and what it asks to follow:
    `Failed` as `FAILED_PRECONDITION`, any other exception as `UNKNOWN`, a payload that does not fit as
    `INVALID_ARGUMENT`, a result that cannot be recorded as `INTERNAL`. A job without a handler here is `NOT_FOUND`,
    which is tried again: another replica may be newer. Raises ValueError if nothing is declared.
    """
    if not jobs.grpc_handlers:
        raise ValueError(f"{jobs.service} declares no gRPC handler; there is nothing to serve")
    servicer = _JobHandlers(jobs, concurrency)
    job_handler_service_pb2_grpc.add_JobHandlerServiceServicer_to_server(servicer, server)


class _Items:
    """Collects what a run reports. See `carillon.run.Reports`."""

    def __init__(self) -> None:
        self.outcomes: list[job_handler_service_pb2.ItemOutcome] = []

    def progressed(self) -> None:
        """Progress has no way to the worker."""

    def item_done(self, key: str, error: str | None) -> None:
        """Keeps the first 10,000; the counts say how many there were."""
        if len(self.outcomes) < MOST_ITEMS:
            outcome = job_handler_service_pb2.ItemOutcome(key=key, succeeded=error is None, error=error or "")
            self.outcomes.append(outcome)


class _JobHandlers(job_handler_service_pb2_grpc.JobHandlerServiceServicer):
    """Carries out attempts with handlers."""

    def __init__(self, jobs: Jobs, concurrency: int) -> None:
        self._service = jobs.service
        self._handlers = jobs.grpc_handlers
        self._executor = HandlerExecutor(jobs.service, self._handlers, concurrency)

    async def Execute(  # noqa: N802 - gRPC's name
        self, request: job_handler_service_pb2.ExecuteRequest, context: Context
    ) -> job_handler_service_pb2.ExecuteResponse:
        """See job_handler_service.proto."""
        try:
            assignment = _read(request, context)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if assignment.service != self._service or assignment.job not in self._handlers:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{self._service} has no gRPC handler for {request.job}")
        items = _Items()
        run = Run(assignment, items)
        try:
            return _answer(await self._carry_out(assignment, run), run, items)
        except Failed as failed:
            await _fail(context, failed)

    async def _carry_out(self, assignment: Assignment, run: Run) -> Completed:
        task = asyncio.ensure_future(self._executor.execute(assignment, run))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the caller hung up, or the deadline has passed
            task.cancel()
            run.cancelled = True
            await asyncio.gather(task, return_exceptions=True)
            raise
        if task.cancelled():
            raise Failed(HANDLER_ERROR, "the handler cancelled itself")
        error = task.exception()
        if error is not None and not isinstance(error, Failed):
            _log.error("run %s failed", assignment.run_id, exc_info=error)
            raise unexpected(error)
        return task.result()


def _read(request: job_handler_service_pb2.ExecuteRequest, context: Context) -> Assignment:
    """The attempt as handlers see it. Raises ValueError if the request is malformed."""
    run, job = request.run.split("/"), request.job.split("/")
    if len(run) != 2 or len(job) != 4:
        raise ValueError(
            f"{request.run!r} of {request.job!r} must be runs/{{run}} of services/{{service}}/jobs/{{job}}"
        )
    remaining = cast("float | None", context.time_remaining())  # its stub does not know calls without a deadline
    return Assignment(
        run_id=uuid.UUID(run[1]),
        attempt=request.attempt,
        claim_id=request.claim_id,
        max_attempts=request.max_attempts,
        service=job[1],
        job=job[3],
        tenant=request.tenant,
        endpoint="",
        payload_json=json.dumps(from_struct(request.payload)),
        attempt_timeout=math.inf if remaining is None else remaining,
        cancel_grace=0.0,  # the worker keeps it, and does not say
        scheduled_time=request.scheduled_time.ToDatetime(timezone.utc),
        trigger_source=TRIGGER_SOURCES.get(request.trigger_source, str(request.trigger_source)),
        labels=dict(request.labels),
    )


def _answer(completed: Completed, run: Run, items: _Items) -> job_handler_service_pb2.ExecuteResponse:
    response = job_handler_service_pb2.ExecuteResponse(item_outcomes=items.outcomes)
    counts = completed.items
    if counts is None and run.items.processed > MOST_ITEMS:
        counts = run.items
    try:
        if counts is not None:
            response.items.CopyFrom(
                run_pb2.ItemCounts(processed=counts.processed, succeeded=counts.succeeded, failed=counts.failed)
            )
        for name in ("metrics", "metadata"):
            value = getattr(completed, name)
            if report_json(name, value):
                getattr(response, name).CopyFrom(to_struct(value, name))
    except (ValueError, TypeError) as error:
        raise Failed(BAD_RESULT, str(error)) from None
    return response


async def _fail(context: Context, failed: Failed) -> NoReturn:
    status = _STATUS.get(failed.code, grpc.StatusCode.FAILED_PRECONDITION)
    message = clean(failed.message, MESSAGE_BYTES)
    detail = clean(failed.detail, DETAIL_BYTES, keep_end=failed.code == HANDLER_ERROR)
    details = status_details.encode(
        status.value[0],
        message,
        reason=failed.code,
        detail=detail,
        retry=failed.retry,
        retry_after=failed.retry_after,
    )
    await context.abort(status, message, ((status_details.KEY, details),))
