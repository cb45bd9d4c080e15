"""What tests of the audit trail share: events that are there, sealing them, and verifying the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from scheduler_service.domain.access import Kind, Origin, Principal
from scheduler_service.domain.audit import Change, Event, EventFilter, made
from scheduler_service.domain.audit_chain import EMPTY, Head
from scheduler_service.store import audit, audit_seals
from scheduler_service.store.database import Database
from scheduler_service.usecases.audit import Verdict, list_audit_events, verify_audit_trail
from tests.builders import ADMIN, rewriting_records

ORIGIN = Origin("ipv4:10.1.2.3:4711", "request-1", "JobService/PauseJob")
ALICE = Principal(Kind.ADMIN, name="alice", origin=ORIGIN)
JOB = "services/email-service/jobs/weekly-digest"


async def record(database: Database, *changes: Change, by: Principal = ALICE) -> None:
    async with database.acting_for(by) as tx:
        await audit.record(tx, changes)


async def record_many(database: Database, count: int) -> None:
    """So many events, with documents whose keys, numbers and texts are not plain."""
    changes = (
        made(f"{JOB}-{place}", {"ä": f"☃ {place}", "b": 1.50, "aa": None, "c": [place]}) for place in range(count)
    )
    await record(database, *changes)


async def seal(hot: psycopg.AsyncConnection[Any], *, limit: int = audit_seals.BATCH) -> int:
    """Seals one batch."""
    batch = await audit_seals.seal(hot, limit=limit)
    return batch.sealed if batch else 0


async def seal_all(hot: psycopg.AsyncConnection[Any]) -> int:
    sealed = 0
    while batch := await seal(hot):
        sealed += batch
    return sealed


async def verify(
    database: Database, known: Sequence[Head] = (), after: Head = EMPTY, *, limit: int = 50_000
) -> Verdict:
    """Goes on from call to call to the end, or the broken link; an event without a seal is looked at just twice."""
    while True:
        verdict = await verify_audit_trail(database, ADMIN, known, after, limit=limit, patience=0)
        if verdict.complete:
            return verdict
        assert verdict.verified.position > after.position
        after = verdict.verified


async def broken(
    database: Database, known: tuple[Head, ...] = (), after: Head = EMPTY, *, limit: int = 50_000
) -> tuple[Any, ...]:
    """What is wrong, at which position, with which event; nothing if the chain holds."""
    found = (await verify(database, known, after, limit=limit)).broken
    return (found.problem, found.position, found.event_id) if found else ()


async def events(database: Database, **wanted: Any) -> list[Event]:
    """All that match, the oldest first."""
    page, token = await list_audit_events(database, ADMIN, EventFilter(**wanted), size=1000)
    assert token == ""
    return list(reversed(page))


@contextmanager
def tampering(admin: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """A superuser past every trigger and constraint trigger. Others see it afterwards."""
    with rewriting_records(admin, "audit_events", "audit_seals"):
        yield admin


@asynccontextmanager
async def recorded(database: Database) -> AsyncIterator[list[Event]]:
    """The events that are added meanwhile, the oldest first."""
    before = await events(database)
    added: list[Event] = []
    yield added
    added += (await events(database))[len(before) :]
