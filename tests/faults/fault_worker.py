"""A service with handlers that a fault run kills, stops and cuts off: they write their effects, wait, and end.

EFFECT_FOLDER: where its effects go. EFFECT_WORKER: its name there. CONNECTED_FILE: has its pid while it is connected.
SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

from carillon import Completed, Failed, Jobs, Run, Worker
from carillon.declaration import JobOptions

from tests.faults.effects import EffectFile
from tests.faults.plan import HANDLERS, JOBS, Job

CONCURRENCY = 8  # what a lost worker held is handed out run by run, each with a worker for itself


def options(job: Job) -> JobOptions:
    """How a job of a fault run is declared: to complete in the end, whatever happens, and soon."""
    return {
        "tenant_schedules": True,
        "overlap": job.overlap,
        "timeout": 20,
        "retries": job.attempts - 1,
        "retry_delay": 1,
        "catch_up": "all",
        "catch_up_window": 86_400,
        "cancel_grace": 3,
    }


def declare(jobs: Jobs, job: Job, effects: EffectFile) -> None:
    """The handler of one job."""

    @jobs.handler(job.name, **options(job))
    async def handle(run: Run) -> Completed:
        marker = json.loads(run.payload_json).get("marker", "")
        number = effects.begin(run.run_id, run.attempt, job.path, run.tenant, marker, run.scheduled_time)
        await asyncio.sleep(job.seconds(run.run_id, run.attempt))
        if job.is_to_fail(run.run_id, run.attempt):
            effects.end(number, "FAILED")
            raise Failed("ON_PURPOSE", "this attempt was to fail")
        effects.end(number, "COMPLETED")
        return Completed(metadata={"result": effects.result(run.attempt)})


async def _say_whether_connected(worker: Worker, file: Path) -> None:
    connected = False
    while True:
        if worker.state().connected is not connected:
            connected = not connected
            file.write_text(str(os.getpid()) if connected else "")  # noqa: ASYNC240 - a few bytes
        await asyncio.sleep(0.1)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    effects = EffectFile(Path(os.environ["EFFECT_FOLDER"]), os.environ["EFFECT_WORKER"])
    jobs = Jobs(service=HANDLERS)
    for job in JOBS:
        if job.service == HANDLERS:
            declare(jobs, job, effects)
    registration = jobs.register_in_background()
    worker = Worker(jobs, CONCURRENCY, prefetch=2, grace=5.0)
    saying = asyncio.create_task(_say_whether_connected(worker, Path(os.environ["CONNECTED_FILE"])))
    try:
        await worker.run(handle_signals=True)
    finally:
        saying.cancel()
        await registration.stop()


if __name__ == "__main__":
    asyncio.run(main())
