"""The engine of one replica: its loops, put together, started, and stopped in the right order."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from scheduler_service.domain.repairs import Repair
from scheduler_service.engine.backlog import Backlog
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.sessions import Sessions
from scheduler_service.loops.completer import CompleterLoop
from scheduler_service.loops.housekeeper import Housekeeper
from scheduler_service.loops.loop import Health, Loop
from scheduler_service.loops.notifier import Listener, Teller
from scheduler_service.loops.ticker import SecondTicker, Ticker
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups, direct_connection


class Engine:
    """Ticks, dispatches and completes for this replica. `listen_url`: a direct connection for LISTEN, where the
    engine's own goes through PgBouncer; empty uses the engine's. `retention`: how long records are kept; None: all."""

    def __init__(
        self,
        database: Database,
        sessions: Sessions,
        wakeups: Wakeups,
        replica: str,
        listen_url: str = "",
        retention: timedelta | None = None,
    ) -> None:
        self.replica = replica
        self.backlog = Backlog()
        self.completer = Completer(wakeups, replica=replica)
        self.dispatcher = Dispatcher(sessions, wakeups)
        self._second_ticker = SecondTicker(database.hot_connection, self.dispatcher, wakeups, replica)
        self.ticks = self._second_ticker.totals
        self._ticker = Ticker(database.hot_connection, self.dispatcher, wakeups, self._second_ticker)
        sessions.on_credit = self._ticker.wakeup.set
        teller = Teller(database.hot_connection, wakeups)

        async def connect_directly() -> Connection:
            return await (direct_connection(listen_url) if listen_url else database.hot_connection())

        self._completing = CompleterLoop(database.hot_connection, self.completer)
        self.housekeeper = Housekeeper(database.hot_connection, self.backlog, retention, replica)
        self._others: list[Loop] = [
            teller,
            Listener(connect_directly, wakeups, teller),
            self.housekeeper,
        ]

    @property
    def loops(self) -> tuple[Loop, ...]:
        return (self._ticker, self._second_ticker, self._completing, *self._others)

    @property
    def repairs(self) -> Counter[Repair]:
        """What its loops mended, by kind."""
        return self._second_ticker.repairs.counts + self.completer.repairs + self.housekeeper.repairs

    async def start(self) -> None:
        """Starts every loop. A database that is away keeps none of them from starting."""
        for loop in self.loops:
            loop.start()

    async def stop_handing_out(self) -> None:
        """Stops ticking and claiming: the first thing to do when this replica goes. Results are still taken."""
        await asyncio.gather(self._ticker.stop(), self._second_ticker.stop())

    async def drain(self, *, within: float = 10.0) -> None:
        """Ends the loops: what makes work first, completion last, once all that was reported is committed."""
        await self.stop_handing_out()
        await self._completing.stop(within=within)
        # Cut short: the listener sits in a wait of its own.
        await asyncio.gather(*(loop.stop(within=0) for loop in self._others))

    def health(self) -> dict[str, dict[str, Any]]:
        """How each loop fares, by its name."""
        return {health.name: asdict(health) for health in map(_health, self.loops)}


def _health(loop: Loop) -> Health:
    return loop.health()
