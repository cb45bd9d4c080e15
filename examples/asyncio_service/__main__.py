"""`python -m examples.asyncio_service`: a service that is nothing but jobs."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import dataclass, field

from carillon import Jobs, Run

jobs = Jobs("asyncio-service")


@dataclass
class Folders:
    """The job's config."""

    folders: list[str] = field(default_factory=lambda: ["/"])


@jobs.handler("disk-usage", cron="*/5 * * * *", timeout=60)
async def disk_usage(payload: Folders, run: Run) -> dict[str, float]:
    fullest = 0.0
    for folder in run.track(payload.folders):
        with run.item(folder):
            usage = await asyncio.to_thread(shutil.disk_usage, folder)
            fullest = max(fullest, usage.used / usage.total)
    return {"fullest_percent": round(100 * fullest, 1)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    asyncio.run(jobs.serve())
