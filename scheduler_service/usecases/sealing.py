"""Sealing the audit trail, and how far that is."""

from __future__ import annotations

import time
from collections.abc import Callable

from scheduler_service.store.audit_seals import BATCH, Connection, Standing, seal, standing

_PERIOD = 5.0
_SHOWN_FOR = 120.0


class Sealing:
    """What one replica does of it, and what it last saw. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._standing: Standing | None = None
        self._seen_at = 0.0
        self._look_at = clock()

    @property
    def standing(self) -> Standing | None:
        """What was seen last; None if that was too long ago to act upon."""
        return self._standing if self._clock() - self._seen_at < _SHOWN_FOR else None

    async def step(self, connection: Connection) -> bool:
        """Seals a batch of what waits, unless another replica is at it. Answers whether more may wait."""
        sealed = await seal(connection)
        if self._clock() >= self._look_at:
            self._standing = await standing(connection)
            self._seen_at = self._clock()
            self._look_at = self._seen_at + _PERIOD
        return sealed == BATCH
