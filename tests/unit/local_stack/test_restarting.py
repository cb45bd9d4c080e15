"""What is ended is started again, until that is no use."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from local_stack.processes import LocalStackError, Probe, Processes
from local_stack.restarting import CALM_SECONDS, PAUSES, Ends, keep_running

SERVES = "import signal; print('ready', flush=True); signal.pause()"
ENDS_IN_ORDER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
"""
FAILS_THE_SECOND_TIME = """
import pathlib, signal, sys
marker = pathlib.Path(sys.argv[1])
if marker.exists():
    sys.exit("CARILLON_PORT is wrong")
marker.touch()
print("ready", flush=True)
signal.pause()
"""
FAILS_WHEN_TOLD = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
sys.exit("no luck")
"""


class Kept:
    """Processes that are kept running. `said`: the sentences of that."""

    def __init__(self, processes: Processes, pauses: Sequence[float]) -> None:
        self.processes = processes
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self.keeping = asyncio.create_task(keep_running(processes, self._said.put_nowait, pauses))

    async def says(self) -> str:
        """The next sentence. Errors: LocalStackError once there will be none."""
        saying = asyncio.create_task(self._said.get())
        await asyncio.wait({saying, self.keeping}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        if saying.done():
            return saying.result()
        saying.cancel()
        if self.keeping.done():
            self.keeping.result()
        raise AssertionError("it said nothing")

    async def error(self) -> str:
        """What ended the keeping."""
        with pytest.raises(LocalStackError) as told:
            await asyncio.wait_for(asyncio.shield(self.keeping), 20)
        return str(told.value)

    async def start(self, name: str, program: str, *arguments: str) -> None:
        await self.processes.start(name, [sys.executable, "-c", program, *arguments], ready=self.wrote_again(name))

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.processes.pid(name), how)

    def wrote_again(self, name: str) -> Probe:
        """Whether it said `ready` once more than before."""
        starts = 0

        async def probe() -> bool:
            nonlocal starts
            count = self.processes.log_path(name).read_text().count("ready")
            if count <= starts:
                return False
            starts = count
            return True

        return probe


@asynccontextmanager
async def kept(folder: Path, pauses: Sequence[float] = (0.0, 0.01, 0.02)) -> AsyncIterator[Kept]:
    async with Processes(folder / "logs") as processes:
        kept = Kept(processes, pauses)
        try:
            yield kept
        finally:
            kept.keeping.cancel()
            await asyncio.gather(kept.keeping, return_exceptions=True)


async def test_what_was_killed_is_started_again_as_it_was(tmp_path: Path) -> None:
    async with kept(tmp_path) as stack:
        await stack.start("scheduler", SERVES)
        await stack.start("worker", SERVES)
        before, worker = stack.processes.pid("scheduler"), stack.processes.pid("worker")
        stack.kill("scheduler")
        assert await stack.says() == "scheduler has ended (killed by SIGKILL); it is started again in 0 s"
        assert await stack.says() == f"scheduler is back (pid {stack.processes.pid('scheduler')})"
        assert stack.processes.pid("scheduler") != before
        assert stack.processes.pid("worker") == worker


async def test_what_was_asked_to_end_and_did_is_started_again(tmp_path: Path) -> None:
    async with kept(tmp_path) as stack:
        await stack.start("scheduler", ENDS_IN_ORDER)
        stack.kill("scheduler", signal.SIGTERM)
        assert await stack.says() == "scheduler has ended (exit code 0); it is started again in 0 s"
        assert "is back" in await stack.says()


async def test_two_that_were_killed_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """A worker is ready only once its scheduler is there."""
    async with kept(tmp_path) as stack:
        await stack.start("scheduler", SERVES)
        scheduler_is_there = stack.wrote_again("scheduler")
        command = [sys.executable, "-c", SERVES]
        await stack.processes.start("worker", command, ready=scheduler_is_there)
        stack.kill("worker")
        assert "worker has ended" in await stack.says()
        stack.kill("scheduler")
        assert "scheduler has ended" in await stack.says()
        assert {(await stack.says()).split()[0], (await stack.says()).split()[0]} == {"scheduler", "worker"}


async def test_what_is_killed_again_and_again_is_given_up_with_its_last_lines(tmp_path: Path) -> None:
    async with kept(tmp_path) as stack:
        await stack.start("scheduler", SERVES)
        for pause in ("0", "0.01", "0.02"):
            stack.kill("scheduler")
            assert await stack.says() == f"scheduler has ended (killed by SIGKILL); it is started again in {pause} s"
            assert "is back" in await stack.says()
        stack.kill("scheduler")
        error = await stack.error()
    assert "scheduler ended unexpectedly (killed by SIGKILL)" in error
    assert "  ready" in error
    assert error.endswith("It was ended 4 times in a row, and is not started again.")


async def test_what_is_killed_before_it_is_back_counts_on(tmp_path: Path) -> None:
    async with kept(tmp_path) as stack:
        may_be_ready = asyncio.Event()

        async def ready() -> bool:
            return may_be_ready.is_set()

        may_be_ready.set()
        await stack.processes.start("slow", [sys.executable, "-c", SERVES], ready=ready)
        may_be_ready.clear()
        stack.kill("slow")
        first = stack.processes.pid("slow")
        assert "again in 0 s" in await stack.says()
        async with asyncio.timeout(20):
            while stack.processes.pid("slow") == first:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        stack.kill("slow")
        assert "again in 0.01 s" in await stack.says()
        may_be_ready.set()
        assert await stack.says() == f"slow is back (pid {stack.processes.pid('slow')})"


async def test_what_fails_by_itself_ends_the_stack_with_its_last_lines(tmp_path: Path) -> None:
    async with kept(tmp_path) as stack:
        await stack.start("scheduler", FAILS_WHEN_TOLD)
        stack.kill("scheduler", signal.SIGUSR1)
        error = await stack.error()
    assert "scheduler ended unexpectedly (exit code 1)" in error
    assert error.endswith("  no luck")


async def test_what_fails_when_it_is_started_again_ends_the_stack(tmp_path: Path) -> None:
    async with kept(tmp_path) as stack:
        await stack.start("scheduler", FAILS_THE_SECOND_TIME, str(tmp_path / "marker"))
        stack.kill("scheduler")
        assert "started again" in await stack.says()
        error = await stack.error()
    assert error.endswith("  CARILLON_PORT is wrong")


def test_pauses_grow_and_begin_anew_after_a_time_of_calm() -> None:
    ends, now = Ends(PAUSES), 1000.0
    pauses = [ends.pause_after(now + second) for second in range(len(PAUSES) + 1)]
    assert pauses == [*PAUSES, None]
    assert list(PAUSES) == sorted(PAUSES)
    now += len(PAUSES) + CALM_SECONDS + 1
    assert ends.pause_after(now) == PAUSES[0]
    assert ends.pause_after(now + CALM_SECONDS) == PAUSES[1]
