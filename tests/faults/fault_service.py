"""A service that a worker calls over HTTP while both are broken: it writes its effects, waits, and answers.

EFFECT_FOLDER: where its effects go. EFFECT_WORKER: the name there of the worker that calls it. SERVICE_PORT: where it
listens. It goes on with what it was asked although its caller has hung up, as most services do.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from aiohttp import web
from carillon import Jobs

from local_stack.ports import LOCALHOST
from operations.signals import stopping_event
from tests.faults.effects import EffectFile
from tests.faults.fault_worker import options
from tests.faults.plan import ENDPOINTS, JOBS, Job

Answer = Callable[[web.Request], Awaitable[web.Response]]


def _answers(job: Job, effects: EffectFile) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        run = await request.json()
        run_id, attempt = UUID(run["run"]), run["attempt"]
        number = effects.begin(
            run_id,
            attempt,
            f"{run['service']}/{run['job']}",
            run["tenant"],
            run["payload"].get("marker", ""),
            datetime.fromisoformat(run["scheduled_time"]),
        )
        await asyncio.sleep(job.seconds(run_id, attempt))
        if job.is_to_fail(run_id, attempt):
            effects.end(number, "FAILED")
            return web.Response(status=503)
        effects.end(number, "COMPLETED")
        return web.json_response({"metadata": {"result": effects.result(attempt)}})

    return answer


async def _say_ok(_request: web.Request) -> web.Response:
    return web.Response()


async def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    stopping = stopping_event()
    effects = EffectFile(Path(os.environ["EFFECT_FOLDER"]), os.environ["EFFECT_WORKER"])
    port = int(os.environ["SERVICE_PORT"])
    jobs = Jobs(service=ENDPOINTS, base_url=f"http://{LOCALHOST}:{port}")
    app = web.Application()
    app.router.add_get("/", _say_ok)
    for job in JOBS:
        if job.service == ENDPOINTS:
            path = jobs.endpoint(job.name, f"/{job.name}", **options(job))
            app.router.add_post(path, _answers(job, effects))
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, LOCALHOST, port).start()
    registration = jobs.register_in_background()
    await stopping.wait()
    await registration.stop()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
