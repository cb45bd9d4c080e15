"""The months' partitions of the record."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

Connection = psycopg.AsyncConnection[TupleRow]


async def create_partitions(connection: Connection) -> int:
    """Makes those that are missing, three months ahead; answers how many."""
    row = await (await connection.execute("select carillon.create_partitions()")).fetchone()
    assert row is not None
    made: int = row[0]
    return made
