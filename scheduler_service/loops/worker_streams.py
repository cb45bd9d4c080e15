"""The loops that write what workers say on their streams: heartbeats, and what they report while attempts run.
(Results have a loop of their own, the completer.)"""

from __future__ import annotations

from scheduler_service.engine.leases import Leases
from scheduler_service.engine.report import Reports
from scheduler_service.loops.loop import Connect, Loop
from scheduler_service.store.connection import Connection


class LeaseLoop(Loop):
    """Extends leases, and ends silent streams."""

    def __init__(self, connect: Connect, leases: Leases) -> None:
        super().__init__("leases", leases.wakeup, connect)
        self._leases = leases

    async def step(self, connection: Connection) -> bool:
        return await self._leases.step(connection)


class ReportLoop(Loop):
    """Writes starts and progress."""

    def __init__(self, connect: Connect, reports: Reports) -> None:
        super().__init__("reports", reports.wakeup, connect)
        self._reports = reports

    async def step(self, connection: Connection) -> bool:
        return await self._reports.step(connection)

    def seconds_to_next(self) -> float:
        wait = self._reports.seconds_to_next
        return super().seconds_to_next() if wait is None else wait
