"""What every loop does alike: step until there is nothing, wait, step again; get over errors; start and stop.

The step itself can be called by a test, and answers whether it found work.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from scheduler_service.usecases.wakeups import Wakeup

POLL = 1.0
"""Seconds after which a loop looks by itself: wake-ups may be lost."""

_SHORTEST_BACKOFF = 0.2
_LONGEST_BACKOFF = 5.0
_log = structlog.get_logger()

Connection = psycopg.AsyncConnection[Any]
Connect = Callable[[], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class Health:
    """How a loop fares. `idle_seconds`: since its last step that went well (None: none did yet)."""

    name: str
    running: bool
    idle_seconds: float | None
    error: str | None


class HotConnection:
    """A connection that a loop keeps, opened when it is asked for and again after it was lost."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    async def get(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


class Loop(ABC):
    """A loop around `step`, as a task of its own. `wakeup` ends its wait early. `failures`: steps that failed."""

    def __init__(self, name: str, wakeup: Wakeup, connect: Connect) -> None:
        self.name = name
        self.failures = 0
        self.wakeup = wakeup
        self._hot = HotConnection(connect)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._succeeded_at: float | None = None
        self._error: str | None = None
        self._failures_in_a_row = 0

    @abstractmethod
    async def step(self, connection: Connection) -> bool:
        """Does what there is to do now. Answers whether there was anything."""

    def seconds_to_next(self) -> float:
        """How long there is nothing to do, unless `wakeup` says otherwise."""
        return POLL

    def is_finished(self) -> bool:
        """Whether the loop may end, once it has been asked to."""
        return True

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, *, within: float = 5.0) -> None:
        """Lets the loop finish what it is at, and what `is_finished` asks for, for so many seconds. Again: nothing."""
        self._stopping.set()
        self.wakeup.set()
        if (task := self._task) is None:
            return
        self._task = None
        with suppress(TimeoutError):
            await asyncio.wait_for(task, within)
        await self._hot.close()

    def health(self) -> Health:
        running = self._task is not None and not self._task.done()
        idle = None if self._succeeded_at is None else time.monotonic() - self._succeeded_at
        return Health(self.name, running, idle, self._error)

    async def _run(self) -> None:
        while not (self._stopping.is_set() and self.is_finished()):
            try:
                found_work = await self.step(await self._hot.get())
            except Exception as error:  # a loop goes on whatever happened
                await self._get_over(error)
            else:
                self._went_well()
                if not found_work:
                    await self.wakeup.wait(self.seconds_to_next())

    def _went_well(self) -> None:
        self._succeeded_at = time.monotonic()
        if self._error is not None:
            _log.info("the loop works again", loop=self.name)
        self._error = None
        self._failures_in_a_row = 0

    async def _get_over(self, error: Exception) -> None:
        """Says what happened, once, and waits longer after each failure."""
        said = f"{type(error).__name__}: {error}"
        if self._error is None:
            away = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
            _log.error("the loop failed and tries again", loop=self.name, error=said, exc_info=not away)
        self._error = said
        longest = min(_LONGEST_BACKOFF, _SHORTEST_BACKOFF * 2 ** min(self._failures_in_a_row, 10))
        self._failures_in_a_row += 1
        self.failures += 1
        if not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), longest * random.uniform(0.5, 1))
        else:
            await asyncio.sleep(_SHORTEST_BACKOFF)
