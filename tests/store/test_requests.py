"""Whom a request's id makes wait."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.store.database import Database
from scheduler_service.store.requests import lock_request
from tests.rpc.work.rig import until

_WAITING = "select count(*) from pg_locks where locktype = 'advisory' and not granted"


async def lock(database: Database, name: str, request_id: str) -> None:
    async with database.acting_for(Principal(Kind.ADMIN, name=name)) as tx:
        await lock_request(tx, request_id)


def is_waiting(admin: psycopg.Connection[Any]) -> bool:
    row = admin.execute(_WAITING).fetchone()
    return row is not None and row[0] > 0


async def test_only_the_same_id_of_the_same_caller_waits(database: Database, admin: psycopg.Connection[Any]) -> None:
    async with asyncio.timeout(60):
        async with database.acting_for(Principal(Kind.ADMIN, name="a b")) as tx:
            await lock_request(tx, "c")
            await lock(database, "a", "b c")
            await lock(database, "a b", "d")
            same = asyncio.create_task(lock(database, "a b", "c"))
            await until(lambda: is_waiting(admin))
        await same
