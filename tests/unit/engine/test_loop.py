"""Loops get over errors, end when asked, and say how they fare."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler_service.loops import loop as loops
from scheduler_service.loops.loop import Loop
from scheduler_service.loops.readiness import ReadinessLoop
from scheduler_service.usecases.wakeups import Wakeup


class Nothing:
    """Stands where a loop keeps its connection; this step needs none."""

    closed = False

    async def close(self) -> None:
        self.closed = True


async def connect() -> Any:
    return Nothing()


class Stepping(Loop):
    """A loop around a test's step, which has nothing to do for an hour once it found nothing."""

    def __init__(
        self, wakeup: Wakeup, step: Callable[[], Awaitable[bool]], connect: Callable[[], Awaitable[Any]] = connect
    ) -> None:
        super().__init__("stepping", wakeup, connect)
        self._step = step

    async def step(self, _connection: object) -> bool:
        return await self._step()

    def seconds_to_next(self) -> float:
        return 3_600.0


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


async def test_a_loop_that_waits_to_try_again_is_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_SHORTEST_BACKOFF", 600.0)
    monkeypatch.setattr(loops, "_LONGEST_BACKOFF", 600.0)
    steps: asyncio.Queue[None] = asyncio.Queue()

    async def step() -> bool:
        steps.put_nowait(None)
        raise RuntimeError("always")

    loop = Stepping(Wakeup(), step)
    loop.start()
    for _ in range(3):
        await asyncio.wait_for(steps.get(), 60)
        await asyncio.sleep(0)
        loop.hurry()
    await loop.stop()


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
    async with asyncio.timeout(60):
        await stepped.get()
    await loop.stop()


class Stray(BaseException):
    """What is no Exception, out of a library."""


@pytest.mark.parametrize("stray", [Stray("out of nowhere"), asyncio.CancelledError()], ids=["stray", "cancelled"])
async def test_what_is_no_exception_is_got_over_with_a_new_connection(stray: BaseException) -> None:
    connections: list[object] = []
    went_on = asyncio.Event()

    async def step() -> bool:
        if len(connections) == 1:
            raise stray
        went_on.set()
        return False

    async def connect_anew() -> Any:
        connections.append(Nothing())
        return connections[-1]

    loop = Stepping(Wakeup(), step, connect_anew)
    with capture_logs() as logs:
        loop.start()
        async with asyncio.timeout(60):
            await went_on.wait()
    await asyncio.sleep(0)
    assert loop.health().running
    assert (len(connections), loop.failures) == (2, 1)
    assert logs[0]["log_level"] == "critical"
    await loop.stop()


async def test_an_error_while_it_finds_out_how_long_to_wait_does_not_end_it() -> None:
    waits, went_on = 0, asyncio.Event()

    async def step() -> bool:
        return False

    class Waiting(Stepping):
        def seconds_to_next(self) -> float:
            nonlocal waits
            waits += 1
            if waits == 1:
                raise ZeroDivisionError
            went_on.set()
            return 3_600.0

    loop = Waiting(Wakeup(), step)
    loop.start()
    async with asyncio.timeout(60):
        await went_on.wait()
    assert loop.health().running
    await loop.stop()


async def test_whoever_cancels_its_task_ends_it() -> None:
    stepped = asyncio.Event()

    async def step() -> bool:
        stepped.set()
        await asyncio.Event().wait()
        return False

    loop = Stepping(Wakeup(), step)
    loop.start()
    await stepped.wait()
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "stepping")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not loop.health().running


async def test_readiness_is_looked_at_on_and_on_whatever_strikes_it() -> None:
    looks = 0
    again = asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise asyncio.CancelledError  # one that strays out of a library
        if looks == 2:
            raise RuntimeError("once")
        again.set()

    loop = ReadinessLoop(look, lambda: 0.0)
    loop.start()
    async with asyncio.timeout(20):
        await again.wait()
    assert loop.health().running
    assert loop.failures == 2
    await loop.stop()
    assert not loop.health().running
