"""RunService: what ran, what runs, stopping it, and trying it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from carillon.v1 import run_service_pb2 as pb
from carillon.v1 import run_service_pb2_grpc

from scheduler_service.domain.record import Run
from scheduler_service.domain.run import parse_run_name
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import request_digest, run_filter, watch_target
from scheduler_service.rpc.encode_runs import encode_attempt, encode_item, encode_run
from scheduler_service.rpc.strict import refuse_unknown_fields
from scheduler_service.store.database import Database
from scheduler_service.usecases import cancel, retry_run, runs, watch
from scheduler_service.usecases.wakeups import Wakeups


class RunService(run_service_pb2_grpc.RunServiceServicer):
    """Runs, for admins, services and users, each what is theirs."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self._database = database
        self._wakeups = wakeups

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        refuse_unknown_fields(request)
        run = await runs.get_run(self._database, caller(), parse_run_name(request.name))
        return pb.GetRunResponse(run=encode_run(run))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        refuse_unknown_fields(request)
        page = await runs.list_runs(
            self._database, caller(), run_filter(request), size=request.page_size, token=request.page_token
        )
        return pb.ListRunsResponse(runs=[encode_run(run) for run in page.runs], next_page_token=page.next_page_token)

    async def WatchRuns(self, request: pb.WatchRunsRequest, context: Context) -> AsyncIterator[pb.WatchRunsResponse]:
        refuse_unknown_fields(request)
        changes = watch.watch_runs(self._database, self._wakeups, caller(), watch_target(request))
        async with aclosing(changes):
            async for run in changes:
                yield pb.WatchRunsResponse(run=encode_run(run))

    async def ListAttempts(self, request: pb.ListAttemptsRequest, context: Context) -> pb.ListAttemptsResponse:
        refuse_unknown_fields(request)
        attempts = await runs.list_attempts(self._database, caller(), parse_run_name(request.name))
        return pb.ListAttemptsResponse(attempts=[encode_attempt(attempt) for attempt in attempts])

    async def ListItems(self, request: pb.ListItemsRequest, context: Context) -> pb.ListItemsResponse:
        refuse_unknown_fields(request)
        page = await runs.list_items(
            self._database,
            caller(),
            parse_run_name(request.name),
            failed_only=request.failed_only,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListItemsResponse(
            items=[encode_item(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        refuse_unknown_fields(request)
        run = await cancel.cancel_run(
            self._database, self._wakeups, caller(), parse_run_name(request.name), request.reason
        )
        return pb.CancelRunResponse(run=encode_run(run))

    async def RetryRun(self, request: pb.RetryRunRequest, context: Context) -> pb.RetryRunResponse:
        refuse_unknown_fields(request)
        wanted = retry_run.RetryRunRequest(parse_run_name(request.name), request.request_id, request_digest(request))
        answer = await retry_run.retry_run(self._database, self._wakeups, caller(), wanted, _encode_retry)
        return pb.RetryRunResponse.FromString(answer)


def _encode_retry(run: Run) -> bytes:
    return pb.RetryRunResponse(run=encode_run(run)).SerializeToString()
