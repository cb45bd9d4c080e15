"""AuditService: who changed what, and that nobody changed the trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carillon.v1 import audit_pb2, audit_service_pb2_grpc
from carillon.v1 import audit_service_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from scheduler_service.domain.audit import Event, EventFilter
from scheduler_service.domain.audit_chain import BrokenLink, Head, Problem
from scheduler_service.domain.fields import Violations
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import instant
from scheduler_service.rpc.strict import refuse_unknown_fields
from scheduler_service.rpc.structs import to_struct
from scheduler_service.rpc.values import write_time
from scheduler_service.store.database import Database
from scheduler_service.usecases import audit

PROBLEMS = {problem: audit_pb2.AuditProblem.Value(f"AUDIT_PROBLEM_{problem.name}") for problem in Problem}
# One event must fit into the 4 MiB that a client accepts, whatever stands in a job's config.
_MAX_DOCUMENT_BYTES = 1_500_000


class AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    """The servicer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, context: Context) -> pb.ListAuditEventsResponse:
        refuse_unknown_fields(request)
        wrong = Violations()
        wanted = EventFilter(
            principal=request.principal,
            action=request.action,
            resource=request.resource,
            tenant=request.tenant,
            request_id=request.request_id,
            since=instant(request, "since", wrong),
            until=instant(request, "until", wrong),
        )
        wrong.refuse_if_any()
        events, token = await audit.list_audit_events(
            self._database, caller(), wanted, size=request.page_size, token=request.page_token
        )
        return pb.ListAuditEventsResponse(events=map(write_event, events), next_page_token=token)

    async def GetAuditHead(self, request: pb.GetAuditHeadRequest, context: Context) -> pb.GetAuditHeadResponse:
        refuse_unknown_fields(request)
        return pb.GetAuditHeadResponse(head=_write_head(await audit.get_audit_head(self._database, caller())))

    async def VerifyAuditTrail(
        self, request: pb.VerifyAuditTrailRequest, context: Context
    ) -> pb.VerifyAuditTrailResponse:
        refuse_unknown_fields(request)
        verdict = await audit.verify_audit_trail(
            self._database, caller(), _read_heads(request.known_heads), _read_head(request.after)
        )
        return pb.VerifyAuditTrailResponse(
            broken_link=_write_broken(verdict.broken),
            verified=_write_head(verdict.verified),
            complete=verdict.complete,
            unsealed=verdict.unsealed,
        )


def write_event(event: Event) -> audit_pb2.AuditEvent:
    return audit_pb2.AuditEvent(
        event_id=event.event_id,
        event_time=write_time(event.event_at),
        principal=event.principal,
        action=event.action,
        resource=event.resource,
        tenant=event.tenant,
        before=_write_document(event.before),
        after=_write_document(event.after),
        request_id=event.request_id,
        address=event.address,
        position=event.position,
    )


def _write_document(document: Mapping[str, Any] | None) -> Struct | None:
    if document is None:
        return None
    struct = to_struct(document)
    if (size := struct.ByteSize()) > _MAX_DOCUMENT_BYTES:
        return to_struct({"too_large_to_show": f"{size:,} bytes; carillon.audit_events has it"})
    return struct


def _write_head(head: Head) -> audit_pb2.AuditHead:
    return audit_pb2.AuditHead(position=head.position, hash=head.hash, seal_time=write_time(head.sealed_at))


def _write_broken(broken: BrokenLink | None) -> audit_pb2.BrokenLink | None:
    if broken is None:
        return None
    return audit_pb2.BrokenLink(
        position=broken.position,
        event_id=broken.event_id,
        problem=PROBLEMS[broken.problem],
        description=broken.description,
    )


def _read_heads(heads: Sequence[audit_pb2.AuditHead]) -> list[Head]:
    return [_read_head(head) for head in heads]


def _read_head(head: audit_pb2.AuditHead) -> Head:
    return Head(head.position, head.hash)
