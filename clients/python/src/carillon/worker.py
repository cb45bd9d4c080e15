"""A worker inside a service: carries out the runs of its handlers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

from carillon.handlers import HandlerExecutor
from carillon.session import SessionState, WorkerSession

if TYPE_CHECKING:
    from carillon.jobs import Jobs

_log = logging.getLogger("carillon")

DRAIN_SECONDS = 25.0


class Worker:
    """Carries out the runs of the handlers that `jobs` declares, up to `concurrency` at once.

    prefetch: runs taken beyond these, so that the next one is at hand. grace: how long, in seconds, runs may go on
    when the worker stops. opens_if: asked before its stream is opened; if the answer is False, it never is. Does
    nothing before `run` or `async with`.
    """

    def __init__(
        self,
        jobs: Jobs,
        concurrency: int = 10,
        *,
        prefetch: int = 0,
        grace: float = DRAIN_SECONDS,
        opens_if: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        if not jobs.handlers:
            raise ValueError(f"{jobs.service} declares no handler; a worker would have nothing to do")
        connection = jobs.connection
        self._grace = grace
        self._opens_if = opens_if
        self._executor = HandlerExecutor(jobs.service, jobs.handlers, concurrency)
        self._session = WorkerSession(
            target=connection.target,
            token=connection.service_token,
            tls=connection.tls or False,
            plaintext=True,  # it was asked when the connection was made
            executors=[self._executor],
            name=f"{jobs.service}@{socket.gethostname()}:{os.getpid()}",
            concurrency=concurrency,
            prefetch=prefetch,
        )
        self._running: asyncio.Task[None] | None = None

    def state(self) -> SessionState:
        """How it stands now, for health checks and metrics."""
        return self._session.state()

    async def run(self, *, handle_signals: bool = False) -> None:
        """Works until `stop` is called or the task is cancelled.

        handle_signals: SIGTERM and SIGINT stop it in order, a second one at once. Only in the main thread.
        """
        serving = asyncio.ensure_future(self._serve())
        try:
            with _stopping_on_signals(self, serving) if handle_signals else nullcontext():
                await asyncio.wait({serving})
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            self._executor.close()
        if not serving.cancelled():
            serving.result()

    async def stop(self) -> None:
        """Takes nothing more, lets runs end within the grace, has their results acknowledged, and says goodbye."""
        await self._session.drain(self._grace)

    async def _serve(self) -> None:
        if self._opens_if is None or await self._opens_if():
            await self._session.run()

    async def __aenter__(self) -> Worker:
        self._running = asyncio.ensure_future(self.run())
        self._running.add_done_callback(_tell_of_a_crash)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running is None:
            return
        try:
            await self.stop()
        finally:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


def _tell_of_a_crash(running: asyncio.Task[None]) -> None:
    if not running.cancelled() and (error := running.exception()) is not None:
        _log.critical("the worker ended by a fault in the client", exc_info=error)


@contextmanager
def _stopping_on_signals(worker: Worker, serving: asyncio.Task[None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if stopping:
            serving.cancel()
        else:
            stopping.append(loop.create_task(worker.stop()))

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        for task in stopping:
            task.cancel()
