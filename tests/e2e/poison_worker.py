"""A service whose handlers do what kills or stops a worker. A run's payload says what it does: `does`, one of those
below.

POISON_FILE names a file for people who look into a failure: a line `run attempt does` for each attempt, synced before
anything happens, and a line `run attempt done` when it has done that. POISON_CONCURRENCY: how many runs at once.
POISON_GATE: "work" does not end before this file is there.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import time
from pathlib import Path
from typing import Any

from carillon import Completed, Jobs, Run, Worker

SERVICE = "kpi-service"
JOB = f"{SERVICE}/poisonous"
PLAIN = f"{SERVICE}/plain"
TYPED = f"{SERVICE}/typed"
WORK_SECONDS = 0.3
GATE = os.environ.get("POISON_GATE", "")


async def _work() -> None:
    await asyncio.sleep(WORK_SECONDS)
    while GATE and not Path(GATE).exists():  # noqa: ASYNC110, ASYNC240 - nothing of this process opens it
        await asyncio.sleep(0.02)


async def _exit() -> None:
    os._exit(3)


async def _segfault() -> None:
    ctypes.string_at(0)


async def _block() -> None:
    time.sleep(float(os.environ["POISON_BLOCKS"]))  # noqa: ASYNC251 - what it is for


async def _large() -> Completed:
    return Completed(metadata={"text": "x" * 100_000_000})


async def _never_stop() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def _raise(error: BaseException) -> None:
    raise error


async def _recurse() -> None:
    def deeper() -> None:
        deeper()

    deeper()


_DEEDS: dict[str, Any] = {
    "work": _work,
    "exit": _exit,
    "segfault": _segfault,
    "block": _block,
    "large": _large,
    "never stop": _never_stop,
    "SystemExit": lambda: _raise(SystemExit(7)),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "MemoryError": lambda: _raise(MemoryError()),
    "RecursionError": _recurse,
    "StopIteration": lambda: _raise(StopIteration()),
    "BaseException": lambda: _raise(BaseException("of its own")),
}


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    file = os.open(os.environ["POISON_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    concurrency = int(os.environ["POISON_CONCURRENCY"])
    jobs = Jobs(service=SERVICE)

    def note(run: Run, does: str) -> None:
        os.write(file, f"{run.run_id} {run.attempt} {does}\n".encode())
        os.fdatasync(file)

    @jobs.handler("poisonous", overlap="allow_all", timeout=60, cancel_grace=1, retry_delay=0.1)
    async def poisonous(run: Run, payload: dict[str, Any]) -> Any:
        note(run, payload["does"])
        result = await _DEEDS[payload["does"]]()
        note(run, "done")
        return result

    @jobs.handler("plain", overlap="allow_all", timeout=60, cancel_grace=1, retry_delay=0.1)
    def plain(run: Run, payload: dict[str, Any]) -> Any:
        note(run, payload["does"])
        return asyncio.run(_DEEDS[payload["does"]]())

    @jobs.handler("typed", overlap="allow_all", timeout=60, retry_delay=0.1)
    async def typed(run: Run, payload: dict[str, int]) -> None:
        note(run, str(payload))

    registration = jobs.register_in_background()
    try:
        await Worker(jobs, concurrency).run(handle_signals=True)
    finally:
        await registration.stop()


if __name__ == "__main__":
    asyncio.run(main())
