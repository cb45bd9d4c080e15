"""What attempts report, brought from the threads of their functions into the session's event loop, and sent at its
pace: starts and progress share messages, items and results go at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from carillon.held import HeldAttempt
from carillon.outbox import Outbox
from carillon.pace import Pace
from carillon.v1 import work_pb2, worker_service_pb2

STARTS_SECONDS = 0.1
PROGRESS_SECONDS = 1.0


class Reporting:
    """The reports of a session's attempts. `wake` is called when there is something to send."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._outbox = Outbox()
        self._starts = Pace(STARTS_SECONDS, self._starts_are_due)
        self._progress = Pace(PROGRESS_SECONDS, self._progress_is_due, at_once=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def begin(self) -> None:
        """From here on, in this event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def begin_again(self, held: Iterable[HeldAttempt]) -> None:
        """A new stream: whatever was not acknowledged is to be told again."""
        self._outbox.begin_again(held)
        self._progress.trigger()

    def next_message(self) -> worker_service_pb2.WorkRequest | None:
        """The next message to send, or None."""
        return self._outbox.next_message(time.monotonic())

    def began(self, attempt: HeldAttempt) -> None:
        """The attempt has started."""
        self._outbox.began(attempt)
        self._starts.trigger()

    def reported(self, attempt: HeldAttempt) -> None:
        """The attempt has new items or progress. From any thread."""
        if threading.get_ident() == self._thread:
            self._look_at(attempt)
        elif self._loop is not None:
            with suppress(RuntimeError):  # the loop was closed, and the function goes on in its thread
                self._loop.call_soon_threadsafe(self._look_at, attempt)

    def ended(self, attempt: HeldAttempt, result: work_pb2.AttemptResult) -> None:
        """The attempt has its result. What it reported before goes first."""
        self._outbox.reported(attempt)
        attempt.result = result
        self._outbox.ended(attempt)
        self._wake()

    def forget(self, attempt: HeldAttempt) -> None:
        """Nothing more is to be told of the attempt."""
        self._outbox.forget(attempt)

    def cancel(self) -> None:
        """Calls nothing any more."""
        self._starts.cancel()
        self._progress.cancel()

    def _look_at(self, attempt: HeldAttempt) -> None:
        attempt.reported = False
        if attempt.forgotten or attempt.result is not None:
            return
        self._outbox.reported(attempt)
        if self._outbox.has_progress:
            self._progress.trigger()
        self._wake()

    def _starts_are_due(self) -> bool:
        self._outbox.starts_are_due = True
        self._wake()
        return False

    def _progress_is_due(self) -> bool:
        if not self._outbox.has_progress:
            return False
        self._outbox.progress_is_due = True
        self._wake()
        return True
