"""Carries out held attempts, at most `concurrency` at once.

One task for each attempt and nothing else: its timeout is a timer of the loop, its end a callback. An attempt keeps
its slot until its executor has really returned, also if its result was settled before.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from carillon import results
from carillon.execution import Completed, Executor
from carillon.held import HeldAttempt, Stop
from carillon.v1 import work_pb2

_log = logging.getLogger("carillon")


class Slots:
    """The attempts that run, and those that wait for a slot.

    on_begin is called when an attempt begins, on_result when its result is settled, on_free when a slot is free.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        concurrency: int,
        *,
        on_begin: Callable[[HeldAttempt], None],
        on_result: Callable[[HeldAttempt, work_pb2.AttemptResult], None],
        on_free: Callable[[], None],
    ) -> None:
        self._executors = executors
        self._concurrency = concurrency
        self._on_begin = on_begin
        self._on_result = on_result
        self._on_free = on_free
        self._waiting: OrderedDict[HeldAttempt, None] = OrderedDict()
        self._running: set[HeldAttempt] = set()

    @property
    def running(self) -> int:
        """Attempts whose executor has not returned."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Attempts that were not started yet."""
        return len(self._waiting)

    def submit(self, attempt: HeldAttempt) -> None:
        """Starts the attempt as soon as there is a slot."""
        self._waiting[attempt] = None
        self._fill()

    def withdraw(self) -> list[HeldAttempt]:
        """Takes out all that was not started."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def stop(self, attempt: HeldAttempt, why: Stop) -> None:
        """Asks the attempt to stop. What it comes to is settled when it has stopped, or its grace is over."""
        if attempt.stop is not None or attempt.result is not None:
            return
        attempt.stop = why
        attempt.run.stop_code = why.value
        if attempt in self._waiting:
            del self._waiting[attempt]
            self._settle(attempt, results.stopped(attempt, time.monotonic()))
            self._on_free()
            return
        self._interrupt(attempt)
        loop = asyncio.get_running_loop()
        attempt.timer = loop.call_later(attempt.assignment.cancel_grace, self._grace_is_over, attempt)

    def abandon(self, attempt: HeldAttempt) -> None:
        """Stops an attempt that is not held any more; what it comes to concerns nobody."""
        self._waiting.pop(attempt, None)
        if attempt in self._running:
            self._interrupt(attempt)

    async def ended(self, seconds: float) -> None:
        """Waits until every executor has returned, and after that time cancels what is left once more."""
        tasks = [attempt.task for attempt in self._running if attempt.task is not None]
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=seconds)
        for task in left:
            task.cancel()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._concurrency:
            attempt, _ = self._waiting.popitem(last=False)
            self._begin(attempt)

    def _begin(self, attempt: HeldAttempt) -> None:
        self._running.add(attempt)
        attempt.began = time.monotonic()
        executor = self._executors[attempt.assignment.route]
        loop = asyncio.get_running_loop()
        attempt.task = loop.create_task(_carry_out(executor, attempt))
        attempt.task.add_done_callback(partial(self._task_ended, attempt))
        attempt.timer = loop.call_later(attempt.assignment.attempt_timeout, self.stop, attempt, Stop.TIMEOUT)
        self._on_begin(attempt)

    def _interrupt(self, attempt: HeldAttempt) -> None:
        # Only the first interruption cancels: a second would break the clean-up of the first.
        if not attempt.run.cancelled and attempt.task is not None:
            attempt.task.cancel()
        attempt.run.cancelled = True
        if attempt.timer is not None:
            attempt.timer.cancel()

    def _grace_is_over(self, attempt: HeldAttempt) -> None:
        if attempt.forgotten or attempt.result is not None:
            return
        _log.warning(
            "run %s of %s was asked to stop in attempt %d (%s) and goes on; it keeps its slot until it ends",
            attempt.assignment.run_id,
            attempt.assignment.job,
            attempt.assignment.attempt,
            attempt.run.stop_code,
        )
        self._settle(attempt, results.stopped(attempt, time.monotonic()))

    def _task_ended(self, attempt: HeldAttempt, task: asyncio.Task[object]) -> None:
        self._running.discard(attempt)
        if attempt.timer is not None:
            attempt.timer.cancel()
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain about one that concerns nobody
        if not attempt.forgotten and attempt.result is None:
            self._settle(attempt, results.ended(attempt, task, time.monotonic()))
        self._fill()
        self._on_free()

    def _settle(self, attempt: HeldAttempt, result: work_pb2.AttemptResult) -> None:
        attempt.result = result
        self._on_result(attempt, result)


async def _carry_out(executor: Executor, attempt: HeldAttempt) -> Completed:
    """A task that ends with one of these two ends its loop: the worker, and every run beside this one."""
    try:
        return await executor.execute(attempt.assignment, attempt.run)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, KeyboardInterrupt) and _may_be_ctrl_c():
            raise
        raise results.unexpected(error) from error


def _may_be_ctrl_c() -> bool:
    """Whether Ctrl-C comes as an exception, in whatever the main thread is at; else it was the run's own doing."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
