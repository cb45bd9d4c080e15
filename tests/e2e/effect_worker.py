"""A service that a test kills: its handler's only effect is a line in a file, written durably before the run ends.

EFFECT_FILE names the file: a line `run attempt` for each attempt. EFFECT_CONCURRENCY: how many runs at once.
EFFECT_HOLD: while a file of this name is there, no run that wrote its line ends.
SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from carillon import Jobs, Run, Worker

SERVICE = "kpi-service"
JOB = f"{SERVICE}/count"
WORK_SECONDS = 0.1  # so that a kill hits runs between their effect and their result


class EffectFile:
    """Lines appended in batches: whatever has piled up is written and synced together."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._pending: list[tuple[str, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def append(self, line: str) -> None:
        """Returns once the line would survive a power cut."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((line, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_pending())
        await written

    async def _write_pending(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            await asyncio.to_thread(self._write, "".join(f"{line}\n" for line, _ in batch).encode())
            for _, written in batch:
                if not written.done():
                    written.set_result(None)
        self._writing = None

    def _write(self, lines: bytes) -> None:
        os.write(self._descriptor, lines)
        os.fdatasync(self._descriptor)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    effects = EffectFile(Path(os.environ["EFFECT_FILE"]))
    concurrency = int(os.environ["EFFECT_CONCURRENCY"])
    hold = os.environ.get("EFFECT_HOLD")
    jobs = Jobs(service=SERVICE)

    @jobs.handler("count", tenant_schedules=True, overlap="allow_all", timeout=30, retries=5, retry_delay=1)
    async def count(run: Run) -> None:
        await effects.append(f"{run.run_id} {run.attempt}")
        await asyncio.sleep(WORK_SECONDS)
        while hold and os.path.exists(hold):  # noqa: ASYNC110, ASYNC240, PTH110 - nothing announces it
            await asyncio.sleep(0.02)

    registration = jobs.register_in_background()
    try:
        await Worker(jobs, concurrency, prefetch=concurrency).run(handle_signals=True)
    finally:
        await registration.stop()


if __name__ == "__main__":
    asyncio.run(main())
