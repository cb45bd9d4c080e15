"""Credentials are looked at again while a stream is open: it ends when its caller's stops to count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from scheduler_service.domain.access import Principal
from scheduler_service.domain.errors import Unauthenticated

LOOK_SECONDS = 1.0

Holds = Callable[[Principal], bool]
Abort = Callable[[Unauthenticated], Coroutine[Any, Any, Any]]


class Watch:
    """One stream's credential. `is_sending`: gRPC has a message of the stream, and may wait for its reader."""

    def __init__(self, principal: Principal, holds: Holds, abort: Abort, limit: asyncio.Timeout, every: float) -> None:
        self.is_sending = False
        self.problem: Unauthenticated | None = None
        self._principal = principal
        self._holds = holds
        self._abort = abort
        self._limit = limit
        self._every = every
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_later(every, self._look)
        self._aborting: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        self._next.cancel()

    def _look(self) -> None:
        sentence = _problem(self._principal, self._holds)
        if sentence is None:
            self._next = self._loop.call_later(self._every, self._look)
            return
        self.problem = Unauthenticated(sentence, reason="CREDENTIALS_INVALID")
        if self.is_sending:
            # What interrupts gRPC's own waiting for a reader that does not read never comes back here, and the reader
            # would not be told why.
            self._aborting = self._loop.create_task(self._abort(self.problem))
            self._aborting.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._limit.reschedule(self._loop.time())


@asynccontextmanager
async def ending_with(
    principal: Principal, holds: Holds, abort: Abort, *, every: float = LOOK_SECONDS
) -> AsyncIterator[Watch]:
    """What is done inside is interrupted with Unauthenticated (`CREDENTIALS_INVALID`) once the principal's credential
    has expired or `holds` no more, which is looked at `every` so many seconds. `abort` ends the call where it cannot be
    raised, because gRPC is sending."""
    watch: Watch | None = None
    try:
        async with asyncio.timeout(None) as limit:
            watch = Watch(principal, holds, abort, limit, every)
            try:
                yield watch
            finally:
                watch.stop()
    except TimeoutError:
        if watch is None or watch.problem is None:
            raise
        raise watch.problem from None


def _problem(principal: Principal, holds: Holds) -> str | None:
    if principal.expires_at is not None and datetime.now(UTC) >= principal.expires_at:
        return "the credential of this stream has expired; open another one with a new one"
    if not holds(principal):
        return (
            "the credential of this stream was revoked, says something else now, or cannot be looked up; open another"
            " one"
        )
    return None
