"""Starts again what was ended by a signal after it had served, as an orchestrator would: so recovery can be seen.

What ends by itself has a reason that its log tells, such as a wrong setting, and would only end again.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

from local_stack.errors import LocalStackError
from local_stack.processes import End, Processes

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before the first, second and so on start of one that is ended again and again. After these it stays away."""
CALM_SECONDS = 60.0
"""Without an end in so many, the next one counts as the first."""


class Ends:
    """Of one process, one after the other. `in_a_row`: how many there were without a time of calm."""

    def __init__(self, pauses: Sequence[float]) -> None:
        self.in_a_row = 0
        self._pauses = pauses
        self._last = 0.0

    def pause_after(self, now: float) -> float | None:
        """It has ended at `now`, in seconds: how long to wait before it is started; None if it is to stay away."""
        self.in_a_row = 1 if now - self._last > CALM_SECONDS else self.in_a_row + 1
        self._last = now
        return self._pauses[self.in_a_row - 1] if self.in_a_row <= len(self._pauses) else None


async def keep_running(processes: Processes, say: Callable[[str], None], pauses: Sequence[float] = PAUSES) -> NoReturn:
    """Until a process ends that is not started again, or does not get ready. `say`: gets a sentence for each start.

    Errors: LocalStackError that names the process and how it ended, with its last log lines.
    """
    ends: dict[str, Ends] = defaultdict(lambda: Ends(pauses))
    tasks: set[asyncio.Task[Any]] = set()

    def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        tasks.add(task)
        return task

    try:
        ending = begin(processes.next_end())
        while True:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            tasks -= done
            for task in done:
                task.result()
            if ending in done:
                end = ending.result()
                begin(_return(processes, end, ends[end.name], say))
                ending = begin(processes.next_end())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _return(processes: Processes, end: End, ends: Ends, say: Callable[[str], None]) -> None:
    if not end.may_return:
        raise end.error
    pause = ends.pause_after(time.monotonic())
    if pause is None:
        raise LocalStackError(f"{end.error}\nIt was ended {ends.in_a_row} times in a row, and is not started again.")
    say(f"{end.name} has ended ({end.how}); it is started again in {pause:g} s")
    await asyncio.sleep(pause)
    pid = await processes.start_again(end.name)
    if pid is not None:
        say(f"{end.name} is back (pid {pid})")
