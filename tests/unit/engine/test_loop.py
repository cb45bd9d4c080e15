"""Loops get over errors, end when asked, and say how they fare."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from scheduler_service.loops.loop import Loop
from scheduler_service.usecases.wakeups import Wakeup


class Nothing:
    """Stands where a loop keeps its connection; this step needs none."""

    closed = False

    async def close(self) -> None:
        self.closed = True


async def connect() -> Any:
    return Nothing()


class Stepping(Loop):
    """A loop around a test's step, which has nothing to do for a minute once it found nothing."""

    def __init__(self, wakeup: Wakeup, step: Callable[[], Awaitable[bool]]) -> None:
        super().__init__("stepping", wakeup, connect)
        self._step = step

    async def step(self, _connection: object) -> bool:
        return await self._step()

    def seconds_to_next(self) -> float:
        return 60.0


async def test_a_loop_goes_on_after_an_error_and_says_so() -> None:
    steps = 0
    failed, recovered = asyncio.Event(), asyncio.Event()

    async def step() -> bool:
        nonlocal steps
        steps += 1
        if steps == 1:
            failed.set()
            raise RuntimeError("once")
        recovered.set()
        return False

    loop = Stepping(Wakeup(), step)
    assert not loop.health().running
    loop.start()
    await failed.wait()
    await asyncio.sleep(0)
    assert loop.health().error == "RuntimeError: once"
    await recovered.wait()
    await asyncio.sleep(0)
    assert (loop.health().error, loop.health().running) == (None, True)
    await loop.stop()
    assert not loop.health().running


async def test_a_wake_up_ends_the_wait() -> None:
    stepped: asyncio.Queue[None] = asyncio.Queue()

    async def step() -> bool:
        stepped.put_nowait(None)
        return False

    wakeup = Wakeup()
    loop = Stepping(wakeup, step)
    loop.start()
    await stepped.get()
    wakeup.set()
    async with asyncio.timeout(0.9):
        await stepped.get()
    await loop.stop()
