"""The calls of the clients about the audit trail: what each sends, and what it returns for an answer."""

from __future__ import annotations

from carillon.rpc import PAGE
from carillon.v1 import audit_pb2, audit_service_pb2

from tests.unit.client.call_cases import SINCE, UNTIL, Case, stamp

_HEAD = audit_pb2.AuditHead(position=7, hash=bytes(32))
_VERDICT = audit_service_pb2.VerifyAuditTrailResponse(verified=_HEAD, complete=True)
_EVENT = audit_pb2.AuditEvent(event_id=3, action="PauseJob")

UNARY = [
    Case(
        "get_audit_head",
        (),
        ("AuditService", "GetAuditHead"),
        audit_service_pb2.GetAuditHeadRequest(),
        audit_service_pb2.GetAuditHeadResponse(head=_HEAD),
        _HEAD,
    ),
    Case(
        "verify_audit_trail",
        ([_HEAD],),
        ("AuditService", "VerifyAuditTrail"),
        audit_service_pb2.VerifyAuditTrailRequest(known_heads=[_HEAD], after=_HEAD),
        _VERDICT,
        _VERDICT,
        {"after": _HEAD},
    ),
]
PAGES = [
    Case(
        "list_audit_events",
        ("services/kpi",),
        ("AuditService", "ListAuditEvents"),
        audit_service_pb2.ListAuditEventsRequest(
            resource="services/kpi",
            principal="admin:alice",
            action="PauseJob",
            tenant="acme",
            request_id="r",
            since=stamp(SINCE),
            until=stamp(UNTIL),
            page_size=PAGE,
        ),
        audit_service_pb2.ListAuditEventsResponse(events=[_EVENT]),
        [_EVENT],
        {
            "principal": "admin:alice",
            "action": "PauseJob",
            "tenant": "acme",
            "request_id": "r",
            "since": SINCE,
            "until": UNTIL,
        },
    ),
]
