"""`x-request-id` is the caller's word: what stands in the audit trail is one that can be read, or one of ours."""

from __future__ import annotations

import re

import grpc
import pytest
from carillon.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
)

from tests.conftest import DatabaseUrls
from tests.security.http2 import DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, connected
from tests.security.schedulers import admin, scheduler

PUT_TENANT = "/carillon.v1.ScheduleService/PutTenant"
OURS = re.compile(r"[0-9a-f]{16}")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"deploy-17/a:b", True),
        (b"x" * 64, True),
        (b"x" * 65, False),
        (b"a\tb", False),
        (b"a\x1b[31mred", False),
        (b"two words", False),
        ("größe".encode(), False),
        (b"\xff\xfe", False),
        (b"", False),
    ],
)
async def test_a_request_id_is_kept_if_it_is_plain_text(database_urls: DatabaseUrls, sent: bytes, kept: bool) -> None:
    tenant = schedule_pb2.Tenant(name="tenants/acme", time_zone="Europe/Berlin")
    body = schedule_service_pb2.PutTenantRequest(tenant=tenant).SerializeToString()
    authorization = f"Bearer {admin()}"
    async with scheduler(database_urls) as app:
        async with connected(app.port) as connection:
            await connection.greet()
            await connection.call(1, PUT_TENANT, (b"authorization", authorization.encode()), (b"x-request-id", sent))
            await connection.send(DATA, END_STREAM, 1, b"\0" + len(body).to_bytes(4, "big") + body)
            answered = await connection.until(HEADERS, RST_STREAM, GOAWAY)
            assert answered is not None
            assert answered.kind == HEADERS
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            audit = audit_service_pb2_grpc.AuditServiceStub(channel)
            request = audit_service_pb2.ListAuditEventsRequest()
            [event] = (await audit.ListAuditEvents(request, metadata=(("authorization", authorization),))).events
    assert (event.request_id == sent.decode(errors="replace")) == kept
    assert kept or OURS.fullmatch(event.request_id)
