"""The methods of JobService that fill ranges of the past."""

from __future__ import annotations

from datetime import datetime

from carillon.v1 import backfill_pb2
from carillon.v1 import job_service_pb2 as pb

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.backfill import Backfill, origin_of
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import BackfillName, JobName
from scheduler_service.domain.run import EPOCH
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import instant, request_digest
from scheduler_service.rpc.strict import refuse_unknown_fields
from scheduler_service.rpc.structs import read_struct
from scheduler_service.rpc.values import write_time
from scheduler_service.store.database import Database
from scheduler_service.usecases import backfill
from scheduler_service.usecases.backfill import BackfillRequest
from scheduler_service.usecases.wakeups import Wakeups


class BackfillMethods:
    """BackfillJob and what follows it; the servicer of JobService inherits them."""

    _database: Database
    _wakeups: Wakeups

    async def BackfillJob(self, request: pb.BackfillJobRequest, context: Context) -> pb.BackfillJobResponse:
        refuse_unknown_fields(request)
        answer = await backfill.backfill_job(
            self._database, self._wakeups, caller(), _backfill_request(request), _encode_answer
        )
        return pb.BackfillJobResponse.FromString(answer)

    async def GetBackfill(self, request: pb.GetBackfillRequest, context: Context) -> pb.GetBackfillResponse:
        refuse_unknown_fields(request)
        found = await backfill.get_backfill(self._database, caller(), BackfillName.parse(request.name))
        return pb.GetBackfillResponse(backfill=_encode(found))

    async def ListBackfills(self, request: pb.ListBackfillsRequest, context: Context) -> pb.ListBackfillsResponse:
        refuse_unknown_fields(request)
        page, token = await backfill.list_backfills(
            self._database,
            caller(),
            JobName.parse(request.parent, "parent"),
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListBackfillsResponse(backfills=[_encode(each) for each in page], next_page_token=token)

    async def CancelBackfill(self, request: pb.CancelBackfillRequest, context: Context) -> pb.CancelBackfillResponse:
        refuse_unknown_fields(request)
        cancelled = await backfill.cancel_backfill(
            self._database, self._wakeups, caller(), BackfillName.parse(request.name), request.reason
        )
        return pb.CancelBackfillResponse(backfill=_encode(cancelled))


def _backfill_request(request: pb.BackfillJobRequest) -> BackfillRequest:
    wrong = Violations()
    since, until = _bound(request, "since", wrong), _bound(request, "until", wrong)
    payload = read_struct(request.payload, "payload", wrong)
    wrong.refuse_if_any()
    return BackfillRequest(
        job=JobName.parse(request.name),
        since=since,
        until=until,
        tenant=request.tenant or SYSTEM_TENANT,
        schedule=request.schedule,
        payload=payload,
        validate_only=request.validate_only,
        request_id=request.request_id,
        digest=request_digest(request),
    )


def _bound(request: pb.BackfillJobRequest, field: str, wrong: Violations) -> datetime:
    found_before = len(wrong)
    bound = instant(request, field, wrong)
    if bound is None and len(wrong) == found_before:
        wrong.add(
            field, "it is missing; a backfill is about a range of time, such as 2026-11-01T00:00:00Z to a day later"
        )
    return bound or EPOCH


def _encode_answer(made: Backfill) -> bytes:
    return pb.BackfillJobResponse(backfill=_encode(made)).SerializeToString()


def _encode(found: Backfill) -> backfill_pb2.Backfill:
    return backfill_pb2.Backfill(
        name=str(found.name) if found.name else "",
        since=write_time(found.since),
        until=write_time(found.until),
        tenant=found.tenant,
        schedule=found.schedule,
        origin=origin_of(found.name.backfill_id) if found.name else "",
        occurrences=found.occurrences,
        passed_over=found.passed_over,
        runs=found.runs,
        pending=found.counts.pending,
        running=found.counts.running,
        completed=found.counts.completed,
        failed=found.counts.failed,
        cancelled=found.counts.cancelled,
        create_time=write_time(found.created_at),
        created_by=found.created_by,
        cancel_time=write_time(found.cancelled_at),
        cancelled_by=found.cancelled_by,
    )
