"""The two roles see what they should before anything is stored."""

from __future__ import annotations

from sqlalchemy import text

from scheduler_service.domain.access import ANONYMOUS, Kind, Principal
from scheduler_service.store.database import Database


async def test_a_transaction_acts_for_its_principal_only(database: Database) -> None:
    who = text("select current_setting('carillon.kind', true), current_setting('carillon.principal', true)")
    async with database.acting_for(Principal(Kind.ADMIN, name="alice")) as tx:
        assert (await tx.connection.execute(who)).one() == ("admin", "admin:alice")
    async with database.acting_for(ANONYMOUS) as tx:
        assert (await tx.connection.execute(who)).one() == ("anonymous", "anonymous:")


async def test_the_hot_connection_never_scans_sequentially(database: Database) -> None:
    connection = await database.hot_connection()
    async with connection:
        cursor = await connection.execute("show enable_seqscan")
        assert await cursor.fetchone() == ("off",)
