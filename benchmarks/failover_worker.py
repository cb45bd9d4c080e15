"""The worker of `make bench-failover`, to be killed: `beat` is due each second, `hold` runs until it is let go.

HOLD_FOLDER: a run of `hold` ends once a file with its id is there. SIGTERM has it say Goodbye at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from carillon import Jobs, Run, Worker

SERVICE = "kpi-service"
BEAT = f"{SERVICE}/beat"
HOLD = f"{SERVICE}/hold"

_CONCURRENCY = 8
_LOOK = 0.01


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = Path(os.environ["HOLD_FOLDER"])
    jobs = Jobs(service=SERVICE)

    @jobs.handler("beat", cron="@every 1s", overlap="allow_all")
    async def beat(_run: Run) -> None:
        pass

    @jobs.handler("hold", timeout=600)
    async def hold(run: Run) -> None:
        while not (folder / str(run.run_id)).exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(_LOOK)

    registration = jobs.register_in_background()
    try:
        await Worker(jobs, _CONCURRENCY, grace=0.0).run(handle_signals=True)
    finally:
        await registration.stop()


if __name__ == "__main__":
    asyncio.run(main())
