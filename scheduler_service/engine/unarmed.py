"""Schedules that are enabled, and that nobody would tick: not armed, and nothing says why.

No code of ours leaves one so; a fault, or a hand in the database, does. They are looked for all the time, 2,000 rows a
second: a million schedules take 9 minutes, and as many as most deployments have take a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import structlog

from scheduler_service.domain.repairs import Repair, Repaired
from scheduler_service.domain.settling import Standing, next_start
from scheduler_service.engine.halving import apart
from scheduler_service.store import audit
from scheduler_service.store import rearming as store
from scheduler_service.store.connection import Connection
from scheduler_service.store.due import set_aside
from scheduler_service.store.errors import HOPELESS
from scheduler_service.store.rearming import UNARMED
from scheduler_service.store.schedule_names import names_of

ROWS = 2_000
"""Schedules of one look: some 2 ms."""
_EACH = 1.0
_BATCH = 200
_log = structlog.get_logger()


class Unarmed:
    """The looks of one replica. `repairs` counts what it armed. `replica` signs what it tells the audit trail."""

    def __init__(self, replica: str = "-") -> None:
        self.repairs: Counter[Repair] = Counter()
        self._replica = replica
        self._look_at = 0.0
        self._reached = 0

    async def step(self, connection: Connection, now: float) -> bool:
        """Looks at some schedules, if that is due at `now`, seconds of any clock. Answers whether it mended any."""
        if now < self._look_at:
            return False
        found, self._reached = await store.unarmed_among(connection, self._reached, ROWS)
        self._look_at = now + _EACH
        before = self.repairs.total()
        for first in range(0, len(found), _BATCH):
            await apart(
                found[first : first + _BATCH], partial(self._mend, connection), partial(self._mend_hopeless, connection)
            )
        return self.repairs.total() > before

    def next_at(self) -> float:
        return self._look_at

    async def _mend(self, connection: Connection, schedule_ids: Sequence[int]) -> None:
        """Those that somebody holds are found again at the next way through."""
        async with connection.transaction():
            locked = await store.lock_free(connection, UNARMED, schedule_ids)
            starts, reasons = _decided([standing for standing, _ in locked])
            if not starts and not reasons:
                return
            await store.arm(connection, starts)
            await set_aside(connection, reasons)
            repaired = await self._record(connection, [*starts, *reasons], set_aside=len(reasons))
        self._tell(repaired)

    async def _mend_hopeless(self, connection: Connection, schedule_id: int, error: Exception) -> None:
        """One that cannot even be read is set aside, if it can be; else it is found again at the next way through."""
        reason = str(error) or type(error).__name__
        try:
            async with connection.transaction():
                if not await store.lock_ids_free(connection, UNARMED, [schedule_id]):
                    return
                await set_aside(connection, {schedule_id: reason})
                repaired = await self._record(connection, [schedule_id], set_aside=1)
        except HOPELESS as another:
            _log.error("a schedule cannot even be set aside", schedule_id=schedule_id, error=str(another))
        else:
            self._tell(repaired)

    def _tell(self, repaired: Repaired) -> None:
        self.repairs[repaired.kind] += repaired.count
        _log.warning("repaired", kind=repaired.kind.value, count=repaired.count, names=repaired.shown)

    async def _record(self, connection: Connection, schedule_ids: Sequence[int], *, set_aside: int) -> Repaired:
        named = await names_of(connection, schedule_ids)
        tenants = frozenset(name.tenant for name in named)
        details = {"set_aside": set_aside} if set_aside else {}
        repaired = Repaired(Repair.SCHEDULE_NOT_ARMED, [str(name) for name in named], tenants, details)
        if (change := repaired.as_change()) is not None:
            await audit.record_own(connection, self._replica, change)
        return repaired


def _decided(standings: Sequence[Standing]) -> tuple[dict[int, datetime | None], dict[int, str]]:
    """When each starts next, and of those that cannot be evaluated why. One that is never due again stays as it is."""
    starts: dict[int, datetime | None] = {}
    reasons: dict[int, str] = {}
    for standing in standings:
        try:
            start = next_start(standing)
        except Exception as error:  # whatever is wrong with one schedule
            reasons[standing.schedule_id] = str(error) or type(error).__name__
        else:
            if start is not None:
                starts[standing.schedule_id] = start
    return starts, reasons
