"""The months' partitions of the record."""

from __future__ import annotations

from datetime import timedelta

from psycopg.errors import CheckViolation, DeadlockDetected, LockNotAvailable

from scheduler_service.store.connection import Connection


def lacks_partition(error: Exception) -> bool:
    """Whether something could not be written for want of its month: a check that has no name."""
    return isinstance(error, CheckViolation) and error.diag.constraint_name is None


async def create_partitions(connection: Connection) -> int:
    """Makes those that are missing, three months ahead; answers how many."""
    row = await (await connection.execute("select carillon.create_partitions()")).fetchone()
    assert row is not None
    made: int = row[0]
    return made


async def drop_partitions(connection: Connection, *, older_than: timedelta) -> int:
    """Drops the months that ended longer ago, but for those that live runs need; answers how many tables those were.
    While somebody reads or writes the records for long, it leaves the rest for another time."""
    dropped = 0
    try:
        # A month for each statement, since it keeps everyone out of the records until it ends.
        while some := await _drop_a_month(connection, older_than):
            dropped += some
    except (LockNotAvailable, DeadlockDetected):
        pass
    return dropped


async def _drop_a_month(connection: Connection, older_than: timedelta) -> int:
    row = await (await connection.execute("select carillon.drop_partitions(%s)", [older_than])).fetchone()
    assert row is not None
    dropped: int = row[0]
    return dropped
