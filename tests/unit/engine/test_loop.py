"""Loops get over errors, end when asked, and say how they fare."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler_service.loops.loop import StepLoop
from scheduler_service.usecases.wakeups import Wakeup


class Nothing:
    """Stands where a loop keeps its connection; this step needs none."""

    closed = False

    async def close(self) -> None:
        self.closed = True


async def connect() -> Any:
    return Nothing()


async def test_a_loop_goes_on_after_an_error_and_says_so() -> None:
    steps = 0
    failed, recovered = asyncio.Event(), asyncio.Event()

    async def step(_connection: object) -> bool:
        nonlocal steps
        steps += 1
        if steps == 1:
            failed.set()
            raise RuntimeError("once")
        recovered.set()
        return False

    loop = StepLoop("stubborn", Wakeup(), connect, step)
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

    async def step(_connection: object) -> bool:
        stepped.put_nowait(None)
        return False

    wakeup = Wakeup()
    loop = StepLoop("sleeper", wakeup, connect, step, lambda: 60.0)
    loop.start()
    await stepped.get()
    wakeup.set()
    async with asyncio.timeout(0.9):
        await stepped.get()
    await loop.stop()
