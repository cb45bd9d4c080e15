"""A service's jobs in a thread of their own, for services without asyncio."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carillon.jobs import Jobs

_log = logging.getLogger("carillon")

STOP_SECONDS = 30.0


class Background:
    """`async with jobs:` in a daemon thread with an event loop of its own.

    `start` does not wait for the scheduler: the thread registers as soon as it answers, and carries out the handlers,
    if there are any. It ends with `stop`, with the `with` block, or with the program. Not to be started before a fork:
    the child would have no thread, and gRPC does not outlive a fork.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._changing = threading.Lock()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Starts the thread, unless it runs already."""
        with self._changing:
            if self._runs():
                return
            self._begun.clear()
            self._thread = threading.Thread(target=self._work, name="carillon", daemon=True)
            self._thread.start()
            self._begun.wait()
            atexit.register(self.stop)

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Takes on nothing more, and waits for the runs that are being carried out, for at most `timeout` seconds."""
        with self._changing:
            atexit.unregister(self.stop)
            if not self._runs() or self._thread is None or self._loop is None:
                return
            with suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout)

    def __enter__(self) -> Background:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            _log.exception("the jobs of %s are no longer served", self._jobs.service)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._begun.set()
        async with self._jobs:
            await self._stopping.wait()
