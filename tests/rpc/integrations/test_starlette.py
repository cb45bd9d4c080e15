"""Jobs in FastAPI and Starlette apps, under a real uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from carillon import Jobs
from carillon.integrations.starlette import lifespan, verified
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2e.cluster import eventually
from tests.ports import lasting_port
from tests.rpc.client.conftest import ScriptedScheduler, run_to_assign, soon
from tests.rpc.integrations.conftest import NOBODY, Programs, post, registered
from tests.signed import KEY, signed

RUN = json.dumps(
    {"run": "r-1", "service": "kpi-service", "job": "count", "attempt": 1, "payload": {"words": 1}}
).encode()
OTHER = RUN.replace(b"count", b"other")


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Where uvicorn serves the app. Its lifespan is over when the block is."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    socket = server.config.bind_socket()
    serving = asyncio.create_task(server.serve([socket]))

    async def listens() -> bool:
        return server.started

    try:
        await eventually(listens)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        await soon(serving)
        socket.close()


async def test_the_fastapi_example_registers_and_its_route_is_the_jobs_endpoint(
    scheduler: ScriptedScheduler, programs: Programs
) -> None:
    await programs.start("-m", "examples.fastapi_service", FASTAPI_SERVICE_PORT=str(lasting_port()))
    manifest = await registered(scheduler)
    [job] = manifest.jobs
    assert (manifest.service, job.job, job.timing.cron) == ("fastapi-service", "count-words", "@hourly")
    await programs.says("Uvicorn running")
    await post(f"{manifest.base_url}/notes", b'{"text": "one bell, two bells, one clock"}')
    status, answer = await post(manifest.base_url + job.target.http.endpoint, RUN)
    assert (status, json.loads(answer)["metrics"]) == (200, {"words": 6})


async def test_an_app_starts_and_ends_in_order_without_a_scheduler(programs: Programs) -> None:
    port = str(lasting_port())
    await programs.start("-m", "examples.fastapi_service", CARILLON_TARGET=NOBODY, FASTAPI_SERVICE_PORT=port)
    await programs.says("are not registered: UNAVAILABLE")
    await programs.says("Uvicorn running")
    await programs.processes.end("program")
    assert "Application shutdown complete" in (written := await programs.says("Finished server process"))
    assert "Traceback" not in written


async def test_handlers_run_between_the_beginning_and_end_of_the_apps_own_lifespan(
    scheduler: ScriptedScheduler,
) -> None:
    seen: list[str] = []

    class Noted(Jobs):
        async def __aenter__(self) -> Jobs:
            seen.append("jobs opened")
            return await super().__aenter__()

        async def __aexit__(self, *error: Any) -> None:
            await super().__aexit__(*error)
            seen.append("jobs closed")

    jobs = Noted("kpi-service", target=scheduler.target, token="t.secret", base_url="http://kpi")

    @jobs.handler("sync")
    async def sync() -> None:
        seen.append("handled")

    @asynccontextmanager
    async def inside(_app: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append("opened")
        yield {"state": "kept"}
        seen.append("closed")

    async def count(request: Request) -> JSONResponse:
        return JSONResponse({"state": request.state.state, "seen": len(seen)})

    route = Route(jobs.endpoint("count", "/jobs/count"), count, methods=["POST"])
    app = Starlette(routes=[route], lifespan=lifespan(jobs, inside))
    async with served(app) as url:
        stream = await scheduler.next_stream()
        stream.welcome()
        await stream.credit(1)
        stream.assign(run_to_assign())
        stream.acknowledge(await stream.next("results"))
        assert [job.job for job in (await registered(scheduler)).jobs] == ["sync", "count"]
        assert json.loads((await post(f"{url}/jobs/count"))[1]) == {"state": "kept", "seen": 3}
        leaving = asyncio.create_task(stream.next("goodbye"))
    await soon(leaving)
    assert seen == ["opened", "jobs opened", "handled", "jobs closed", "closed"]


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
async def test_an_app_without_a_lifespan_of_its_own_needs_none(
    scheduler: ScriptedScheduler, kind: type[FastAPI] | type[Starlette]
) -> None:
    jobs = Jobs("kpi-service", target=scheduler.target, token="t.secret")
    jobs.endpoint("count", "http://kpi/jobs/count")
    async with served(kind(lifespan=lifespan(jobs))):
        assert (await registered(scheduler)).service == "kpi-service"


def test_the_route_of_a_url_is_its_path() -> None:
    assert Jobs("kpi-service").endpoint("count", "https://kpi:8080/jobs/count?full=1") == "/jobs/count"


async def test_the_lifespan_imports_no_framework(programs: Programs) -> None:
    foreign = "print(sorted({'fastapi', 'starlette', 'django'} & set(sys.modules)))"
    assert await programs.run("-c", f"import sys, carillon.integrations.starlette; {foreign}") == "[]\n"


def fastapi_app(jobs: Jobs) -> FastAPI:
    app = FastAPI()

    @app.post(jobs.endpoint("count", "http://kpi/jobs/count"), dependencies=[Depends(verified(jobs, "count"))])
    async def count(run: dict[str, Any]) -> dict[str, Any]:
        return {"metrics": run["payload"]}

    return app


def starlette_app(jobs: Jobs) -> Starlette:
    check = verified(jobs, "count")

    async def count(request: Request) -> Response:
        await check(request)
        return JSONResponse({"metrics": (await request.json())["payload"]})

    return Starlette(routes=[Route(jobs.endpoint("count", "http://kpi/jobs/count"), count, methods=["POST"])])


@pytest.mark.parametrize("app", [fastapi_app, starlette_app])
async def test_only_calls_that_the_worker_signed_reach_the_endpoint(app: Callable[[Jobs], Any]) -> None:
    async with served(app(Jobs("kpi-service", signing_keys=[KEY]))) as url:
        status, answer = await post(f"{url}/jobs/count", RUN, signed(RUN))
        assert (status, json.loads(answer)) == (200, {"metrics": {"words": 1}})
        for body, headers, sentence in (
            (RUN, {}, b"is not signed"),
            (RUN, signed(RUN + b" "), b"the signature is wrong"),
            (OTHER, signed(OTHER), b"the call is for another job than count"),
        ):
            status, answer = await post(f"{url}/jobs/count", body, headers)
            assert status == 401
            assert sentence in answer


@pytest.mark.parametrize("app", [fastapi_app, starlette_app])
async def test_without_keys_nothing_reaches_the_endpoint(app: Callable[[Jobs], Any]) -> None:
    async with served(app(Jobs("kpi-service"))) as url:
        assert (await post(f"{url}/jobs/count", RUN, signed(RUN)))[0] == 500
