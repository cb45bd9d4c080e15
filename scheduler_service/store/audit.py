"""The audit trail's events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg.types.json import Jsonb
from sqlalchemy import text

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.audit import Change
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Transaction

_RECORD = text("""
insert into carillon.audit_events
  (principal, action, resource, tenant_id, before, after, request_id, address)
select :principal, c.action, c.resource, c.tenant_id, c.before, c.after, :request_id, :address
from unnest(cast(:actions as text[]), cast(:resources as text[]), cast(:tenants as text[]),
            cast(:befores as jsonb[]), cast(:afters as jsonb[]))
  with ordinality c (action, resource, tenant_id, before, after, place)
order by c.place""")


async def record(tx: Transaction, changes: Iterable[Change]) -> None:
    """Writes what was changed, in the changes' own transaction, in the name of its caller."""
    listed = list(changes)
    if not listed:
        return
    origin = tx.principal.origin
    await tx.connection.execute(
        _RECORD,
        {
            "principal": str(tx.principal),
            "request_id": origin.request_id,
            "address": origin.address,
            "actions": [change.action or origin.method.rpartition("/")[2] for change in listed],
            "resources": [change.resource for change in listed],
            "tenants": [change.tenant for change in listed],
            "befores": [None if change.before is None else Jsonb(dict(change.before)) for change in listed],
            "afters": [None if change.after is None else Jsonb(dict(change.after)) for change in listed],
        },
    )


_RECORD_OWN: LiteralString = """
insert into carillon.audit_events (principal, action, resource, tenant_id, after, request_id, address)
values (%(principal)s, %(action)s, %(resource)s, %(tenant)s, %(after)s, '', '')"""


async def record_own(connection: Connection, replica: str, change: Change) -> None:
    """Writes what a replica mended by itself, in that transaction. Nobody called, so there is no request and no
    address."""
    values = {
        "principal": str(Principal(Kind.ENGINE, name=replica)),
        "action": change.action,
        "resource": change.resource,
        "tenant": change.tenant,
        "after": Jsonb(dict(change.after or {})),
    }
    await connection.execute(_RECORD_OWN, values)
