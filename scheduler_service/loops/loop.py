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

import structlog

from scheduler_service.store.connection import Connection, PatientConnection
from scheduler_service.store.errors import is_database_away, is_read_only
from scheduler_service.usecases.wakeups import Wakeup

POLL = 1.0
"""Seconds after which a loop looks by itself: wake-ups may be lost."""

_SHORTEST_BACKOFF = 0.2
_LONGEST_BACKOFF = 5.0
_log = structlog.get_logger()

Connect = Callable[[], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class Health:
    """How a loop fares. `idle_seconds`: since its last step that went well (None: none did yet)."""

    name: str
    running: bool
    idle_seconds: float | None
    error: str | None


class HotConnection:
    """A connection that a loop keeps, opened when it is asked for, and again after it was lost or is outdated."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    async def get(self) -> Connection:
        if isinstance(self._connection, PatientConnection) and self._connection.outdated:
            await self.drop()
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def drop(self) -> None:
        """Another is opened when it is asked for next: of this one nobody knows how it stands."""
        with suppress(Exception):
            await self.close()
        self._connection = None


class Loop(ABC):
    """A loop around `step`, as a task of its own. `wakeup` ends its wait early. `failures`: steps that failed.
    `essential`: without it, its replica does not do its work.

    It ends when it is asked to, and with its process (SystemExit, KeyboardInterrupt, its task cancelled): nothing else
    ends it. Even what is no Exception, such as a cancellation that strays out of a library, is got over, with a new
    connection."""

    essential = True

    def __init__(self, name: str, wakeup: Wakeup, connect: Connect) -> None:
        self.name = name
        self.failures = 0
        self.wakeup = wakeup
        self._hot = HotConnection(connect)
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
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
        self.hurry()
        self.wakeup.set()
        if (task := self._task) is None:
            return
        self._task = None
        if not task.cancelled():  # by somebody else, which is not for who stops it to get over
            with suppress(TimeoutError):
                await asyncio.wait_for(task, within)
        await self._hot.close()

    def hurry(self) -> None:
        """What was in the way is gone: a loop that waits to try again tries now."""
        self._hurried.set()

    def health(self) -> Health:
        running = self._task is not None and not self._task.done()
        idle = None if self._succeeded_at is None else time.monotonic() - self._succeeded_at
        return Health(self.name, running, idle, self._error)

    async def _run(self) -> None:
        while True:
            try:
                if self._stopping.is_set() and self.is_finished():
                    return
                await self._turn()
            except Exception as error:  # a loop goes on whatever happened
                await self._get_over(error)
            except BaseException as error:
                if _ends_the_task(error):
                    raise
                _log.critical("the loop was struck and goes on", loop=self.name, error=_said(error), exc_info=True)
                await self._hot.drop()
                await self._get_over(error)

    async def _turn(self) -> None:
        found_work = await self.step(await self._hot.get())
        self._went_well()
        if not found_work:
            await self.wakeup.wait(self.seconds_to_next())

    def _went_well(self) -> None:
        self._succeeded_at = time.monotonic()
        if self._error is not None:
            _log.info("the loop works again", loop=self.name)
        self._error = None
        self._failures_in_a_row = 0

    async def _get_over(self, error: BaseException) -> None:
        """Says what happened, once, and waits longer after each failure."""
        said = _said(error)
        if self._error is None:
            away = is_database_away(error)
            _log.error("the loop failed and tries again", loop=self.name, error=said, exc_info=not away)
        self._error = said
        longest = min(_LONGEST_BACKOFF, _SHORTEST_BACKOFF * 2 ** min(self._failures_in_a_row, 10))
        self._failures_in_a_row += 1
        self.failures += 1
        if is_read_only(error):
            # The wrong server: the address may lead to another by now.
            await self._hot.drop()
        if self._stopping.is_set():
            await asyncio.sleep(_SHORTEST_BACKOFF)
            return
        self._hurried.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), longest * random.uniform(0.5, 1))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _ends_the_task(error: BaseException) -> bool:
    """Whether somebody wants it to end: the process, or who cancelled it."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return True
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
