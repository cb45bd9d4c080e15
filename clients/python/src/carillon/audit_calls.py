"""The calls about the audit trail, described as those in `calls` are. For admins."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from carillon.rpc import PAGE, Call, Pages, Unary
from carillon.structs import set_range
from carillon.v1 import audit_pb2, audit_service_pb2


def list_audit_events(
    resource: str = "",
    *,
    principal: str = "",
    action: str = "",
    tenant: str = "",
    request_id: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> Pages[audit_pb2.AuditEvent]:
    """Who changed what, the newest first. Filters add up.

    resource: such as `services/email-service`, with all that lies below it. principal: such as `admin:alice`, or all
    of a kind: `engine:` is what the schedulers repaired by themselves. action: such as `PauseJob`.
    """
    request = audit_service_pb2.ListAuditEventsRequest(
        resource=resource, principal=principal, action=action, tenant=tenant, request_id=request_id, page_size=PAGE
    )
    set_range(request, since, until)
    return Unary(lambda stubs: stubs.audit.ListAuditEvents).pages(request, lambda answer: answer.events)


def get_audit_head() -> Call[audit_pb2.AuditHead]:
    """The end of the chain now. Keep it outside the database: only a head from before tells of a removed tail."""
    request = audit_service_pb2.GetAuditHeadRequest()
    return Unary(lambda stubs: stubs.audit.GetAuditHead).call(request, lambda answer: answer.head)


def verify_audit_trail(
    known_heads: Iterable[audit_pb2.AuditHead] = (), *, after: audit_pb2.AuditHead | None = None
) -> Call[audit_service_pb2.VerifyAuditTrailResponse]:
    """Computes the chain again, and names the first link that does not hold: `answer.broken_link`.

    A long trail takes several calls: go on with `after=answer.verified` until `answer.complete`. known_heads: heads
    that were kept; each must be on the chain.
    """
    request = audit_service_pb2.VerifyAuditTrailRequest(known_heads=known_heads, after=after)
    return Unary(lambda stubs: stubs.audit.VerifyAuditTrail).call(request, lambda answer: answer)
