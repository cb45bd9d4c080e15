"""Sealing the audit trail, and how far that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import psycopg
import structlog

from scheduler_service.store.audit_seals import Standing, seal, standing
from scheduler_service.store.connection import Connection

_PERIOD = 5.0
_SHOWN_FOR = 120.0
_TRIED_AGAIN = 600.0
_log = structlog.get_logger()


class Sealing:
    """What one replica does of it, and what it last saw. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._standing: Standing | None = None
        self._seen_at = 0.0
        self._look_at = clock()
        self._set_aside: Mapping[int, float] = {}

    @property
    def standing(self) -> Standing | None:
        """What was seen last; None if that was too long ago to act upon."""
        return self._standing if self._clock() - self._seen_at < _SHOWN_FOR else None

    @property
    def set_aside(self) -> int:
        """How many events this replica could not seal when it tried last. Each is tried again every ten minutes."""
        return len(self._set_aside)

    async def step(self, connection: Connection) -> bool:
        """Seals a batch of what waits, unless another replica is at it. Answers whether more may wait."""
        try:
            more = await self._seal(connection)
        except Exception:
            # How far the chain is matters most where it does not get on.
            with suppress(psycopg.Error):
                await self._look(connection)
            raise
        await self._look(connection)
        return more

    async def _seal(self, connection: Connection) -> bool:
        now = self._clock()
        skipped = {event_id: again for event_id, again in self._set_aside.items() if again > now}
        batch = await seal(connection, without=skipped.keys())
        if batch is None:
            return False
        for event_id, error in batch.set_aside.items():
            _log.error("an audit event cannot be sealed; others go on without it", event_id=event_id, error=error)
        self._set_aside = skipped | dict.fromkeys(batch.set_aside, now + _TRIED_AGAIN)
        return batch.more

    async def _look(self, connection: Connection) -> None:
        if self._clock() >= self._look_at:
            self._standing = await standing(connection)
            self._seen_at = self._clock()
            self._look_at = self._seen_at + _PERIOD
