"""Reading the audit trail by the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text

from scheduler_service.domain.audit import Event, EventFilter
from scheduler_service.store.database import Transaction
from scheduler_service.store.documents import read_document

_MAX_PAGE_BYTES = 3_500_000
_FIXED_BYTES = 700
# A digit and a comma become eleven bytes of a Struct.
_STRUCT_FACTOR = 6
_ROWS_AT_A_TIME = 25


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, the newest first, and whether older ones follow."""

    events: Sequence[Event]
    more: bool


_COLUMNS = """
select e.event_id, e.event_at, e.principal, e.action, e.resource, e.tenant_id, e.before::text as before,
  e.after::text as after, e.request_id, e.address, coalesce(s.position, 0) as position
from carillon.audit_events e left join carillon.audit_seals s using (event_id)"""
# Byte by byte, as the index has it: what lies below `services/a` begins with `services/a/`, and `0` follows `/`.
_BELOW = "(e.resource = :resource or (e.resource ~>=~ (:resource || '/') and e.resource ~<~ (:resource || '0')))"
# No principal's name is empty: what ends in a colon is a kind, with all of its principals.
_OF_A_KIND = "starts_with(e.principal, :principal)"
_CONDITIONS = {
    "principal": "e.principal = :principal",
    "action": "e.action = :action",
    "resource": _BELOW,
    "tenant": "e.tenant_id = :tenant and e.tenant_id <> ''",
    "request_id": "e.request_id = :request_id",
    "since": "e.event_at >= :since",
    "until": "e.event_at < :until",
}


async def list_events(tx: Transaction, wanted: EventFilter, *, before: int | None, limit: int) -> EventPage:
    """The newest events before an id. A page ends early rather than grow beyond what a client accepts."""
    values = {name: value for name in _CONDITIONS if (value := getattr(wanted, name))}
    conditions = [_CONDITIONS[name] for name in values]
    if wanted.of_a_kind:
        conditions[conditions.index(_CONDITIONS["principal"])] = _OF_A_KIND
    if before is not None:
        conditions.append("e.event_id < :before")
        values["before"] = before
    where = f" where {' and '.join(conditions)}" if conditions else ""
    statement = text(f"{_COLUMNS}{where} order by e.event_id desc limit :limit")
    events: list[Event] = []
    room = _MAX_PAGE_BYTES
    cautiously = statement.execution_options(max_row_buffer=_ROWS_AT_A_TIME)
    async with tx.connection.stream(cautiously, {**values, "limit": limit + 1}) as rows:
        async for row in rows:
            room -= _FIXED_BYTES + _STRUCT_FACTOR * (len(row.before or "") + len(row.after or ""))
            if len(events) == limit or (events and room < 0):
                return EventPage(events, more=True)
            events.append(_event_of(row))
    return EventPage(events, more=False)


def _event_of(row: Row[Any]) -> Event:
    return Event(
        event_id=row.event_id,
        event_at=row.event_at,
        principal=row.principal,
        action=row.action,
        resource=row.resource,
        tenant=row.tenant_id,
        before=None if row.before is None else read_document(row.before),
        after=None if row.after is None else read_document(row.after),
        request_id=row.request_id,
        address=row.address,
        position=row.position,
    )
