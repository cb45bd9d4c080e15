"""A scheduler whose reaper hangs for as long as there is a file: HANGING_REAPER names it. HANGING_SECONDS: after how
many a loop counts as dead; replicas tell each other six times as often. Everything else is
`python -m scheduler_service`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from scheduler_service.__main__ import cli
from scheduler_service.engine import pulses
from scheduler_service.loops.reaper import ReaperLoop


def install(file: Path, seconds: float) -> None:
    step = ReaperLoop.step

    async def hanging(self: ReaperLoop, connection: Any) -> bool:
        while file.exists():  # noqa: ASYNC110, ASYNC240 - nothing announces it
            await asyncio.sleep(0.05)
        return await step(self, connection)

    setattr(ReaperLoop, "step", hanging)  # noqa: B010 - mypy knows it for a method
    pulses.IDLE_SECONDS = seconds
    pulses.PERIOD = seconds / 6


if __name__ == "__main__":
    install(Path(os.environ["HANGING_REAPER"]), float(os.environ["HANGING_SECONDS"]))
    cli()
