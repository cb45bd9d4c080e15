"""A month of the record without partitions: whoever meets it makes them."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import structlog

from scheduler_service.domain.repairs import Repair, Repaired
from scheduler_service.engine.repairs import Repairs
from scheduler_service.store.connection import Connection
from scheduler_service.store.partitions import create_partitions, lacks_partition

log = structlog.get_logger()

_EACH = 60.0


class MissingPartitions:
    """`repairs` is told what was made. `clock` is monotonic, in seconds."""

    def __init__(self, repairs: Repairs, clock: Callable[[], float]) -> None:
        self._repairs = repairs
        self._clock = clock
        self._again_at = float("-inf")

    async def mend(self, connection: Connection, error: Exception) -> bool:
        """Makes those of these months, if it was for want of one that something failed; asks at most once a minute.
        Answers whether one was missing."""
        if not lacks_partition(error) or self._clock() < self._again_at:
            return False
        self._again_at = self._clock() + _EACH
        try:
            async with connection.transaction():
                tables = await create_partitions(connection)
                repaired = [Repaired(Repair.PARTITION_MISSING, ("partitions/-",), details={"tables": tables})]
                if tables:
                    await self._repairs.record(connection, repaired)
        except (psycopg.DatabaseError, ValueError) as cause:
            log.error("the record's partitions cannot be made", error=str(cause))
            return False
        if tables:
            self._repairs.tell(repaired)
        return tables > 0
