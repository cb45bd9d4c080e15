"""One attempt in a test's hands: the worker's slot and handler, with reports and stops going to the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from carillon.handlers import Handler, HandlerExecutor
from carillon.held import HeldAttempt, Stop
from carillon.run import Assignment, Run
from carillon.session import CLEAN_UP_SECONDS
from carillon.slots import Slots
from carillon.testing.outcome import Outcome, Progress, read_outcome
from carillon.v1 import work_pb2

Condition = Callable[[Run], object]

_HAND_OVER_SECONDS = 5.0


class _ObservedAttempt(HeldAttempt):
    """Keeps each progress report, where a session keeps the newest."""

    def __init__(self, assignment: Assignment, look: Callable[[], None]) -> None:
        super().__init__(assignment, lambda _: None)
        self.progress: list[Progress] = []
        self._look = look

    def progressed(self) -> None:
        if self.result is None:
            self.progress.append(Progress(*self.run.progress_made))
        self._look()

    def item_done(self, key: str, error: str | None) -> None:
        super().item_done(key, error)
        self._look()


class RunUnderTest:
    """An attempt that goes on while the test looks at it and steers it. Made by `testing.running`."""

    def __init__(
        self,
        assignment: Assignment,
        handler: Handler,
        cancel_when: Condition | None,
        time_out_when: Condition | None,
    ) -> None:
        self._payload: Any = None
        self._executor = HandlerExecutor(assignment.service, {assignment.job: self._seeing_payload(handler)}, 1)
        self._slots = Slots(
            {assignment.route: self._executor},
            1,
            on_begin=lambda _: None,
            on_result=self._on_result,
            on_free=lambda: None,
        )
        self._attempt = _ObservedAttempt(assignment, self._look)
        self._stops = [(cancel_when, Stop.CANCEL), (time_out_when, Stop.TIMEOUT)]
        self._awaited: list[tuple[Condition, asyncio.Event]] = []
        self._settled = asyncio.Event()
        self._fault: BaseException | None = None
        self._stopped = False
        self._went_on = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    @property
    def run(self) -> Run:
        """What the handler sees of it."""
        return self._attempt.run

    async def begin(self) -> None:
        """Starts the handler; returns when an async one waits for the first time, or a plain one has its thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._slots.submit(self._attempt)
        await asyncio.sleep(0)
        self._look()

    async def until(self, is_so: Condition) -> None:
        """Waits until that holds of the run; it is looked at after each progress and item.

        Raises AssertionError if the attempt ends without it.
        """
        if is_so(self.run):
            return
        seen = asyncio.Event()
        self._awaited.append((is_so, seen))
        waits = [asyncio.ensure_future(event.wait()) for event in (seen, self._settled)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._awaited = [each for each in self._awaited if each[1] is not seen]
        if not seen.is_set():
            outcome = await self.outcome()
            raise AssertionError(f"the run ended before that: {outcome}")

    def cancel(self) -> None:
        """Asks the run to stop, as the scheduler does when somebody cancels it."""
        self._stop(Stop.CANCEL)

    def time_out(self) -> None:
        """Puts the attempt out of time, as its timer does when `timeout` has passed."""
        self._stop(Stop.TIMEOUT)

    async def outcome(self) -> Outcome:
        """Waits until the attempt has ended, or has not stopped within its grace, and says how."""
        await self._settled.wait()
        if self._fault is not None:
            raise self._fault
        attempt = self._attempt
        assert attempt.result is not None
        return read_outcome(
            attempt.result,
            payload=self._payload,
            progress=attempt.progress,
            items=attempt.items,
            exception=self._exception(),
            went_on=self._went_on,
        )

    async def close(self) -> None:
        """Stops what still goes on, and waits for it as a worker would that shuts down."""
        self._attempt.forgotten = True
        self._slots.abandon(self._attempt)
        # What did not stop within its grace is not asked again, but given up.
        await self._slots.ended(0 if self._went_on else CLEAN_UP_SECONDS)
        self._executor.close()

    def _on_result(self, attempt: HeldAttempt, result: work_pb2.AttemptResult) -> None:
        attempt.result = result
        self._went_on = attempt.task is not None and not attempt.task.done()
        self._settled.set()

    def _exception(self) -> BaseException | None:
        task = self._attempt.task
        return task.exception() if task is not None and task.done() and not task.cancelled() else None

    def _seeing_payload(self, handler: Handler) -> Handler:
        decode = handler.decode
        if decode is None:
            return handler

        def decoded(text: str) -> Any:
            self._payload = decode(text)
            return self._payload

        return replace(handler, decode=decoded)

    def _look(self) -> None:
        """Looks at the run where it reports, in its thread, so that no state is missed."""
        try:
            for is_so, seen in list(self._awaited):
                if is_so(self.run):
                    self._in_loop(seen.set)
            for condition, why in self._stops:
                if condition is not None and not self._stopped and condition(self.run):
                    self._stop(why)
        except Exception as error:  # the test's fault; the handler must not take it for its own
            self._fault = self._fault or error
            self._stop(Stop.CANCEL)

    def _stop(self, why: Stop) -> None:
        if self._stopped:  # the first counts, as in a worker
            return
        self._stopped = True
        if self._loop is None or self._attempt.task is None or not self._is_in_handler():
            self._in_loop(lambda: self._slots.stop(self._attempt, why))
        else:
            # `run.check()` sees it at once; to interrupt the handler it must wait for something, as in a worker, where
            # nothing arrives in the middle of a step.
            self.run.cancelled = True
            self._loop.call_soon(self._stop_after_step, why)

    def _stop_after_step(self, why: Stop) -> None:
        self.run.cancelled = False  # else it would count as interrupted already
        self._slots.stop(self._attempt, why)

    def _is_in_handler(self) -> bool:
        return threading.get_ident() == self._thread and asyncio.current_task() is self._attempt.task

    def _in_loop(self, act: Callable[[], None]) -> None:
        """Does it in the loop's thread, and returns when it is done: a handler's next line may depend on it."""
        if self._loop is None or threading.get_ident() == self._thread:
            act()
            return
        done = threading.Event()

        def act_and_tell() -> None:
            act()
            done.set()

        with suppress(RuntimeError):  # the loop was closed, and the function goes on in its thread
            self._loop.call_soon_threadsafe(act_and_tell)
            done.wait(_HAND_OVER_SECONDS)
