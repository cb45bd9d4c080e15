"""Uses the installed client once, against a scheduler in this process; prints what came of it as JSON.

Run by the environments under test, also with Python 3.10, so it needs nothing but the client.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import carillon
import google.protobuf
import grpc
import grpc.aio
from carillon import blocking, testing
from carillon.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    work_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

SERVER_PARTS = ("scheduler_service", "worker_service", "operations", "local_stack", "sqlalchemy", "psycopg", "aiohttp")

PATIENCE = 60.0


@dataclass
class Sync:
    brands: list[str]


class Scheduler(
    worker_service_pb2_grpc.WorkerServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    job_service_pb2_grpc.JobServiceServicer,
):
    """Welcomes a worker, hands it one run, and keeps the result."""

    def __init__(self) -> None:
        self.registered: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self.result: asyncio.Future[work_pb2.AttemptResult] = asyncio.get_running_loop().create_future()

    async def RegisterJobs(self, request: Any, context: Any) -> Any:
        self.registered.set_result([job.job for job in request.jobs])
        return registry_service_pb2.RegisterJobsResponse(generation=request.generation)

    async def GetJob(self, request: Any, context: Any) -> Any:
        return job_service_pb2.GetJobResponse(job=job_pb2.Job(name=request.name))

    async def Work(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            if kind == "hello":
                yield welcome()
                yield one_run()
            elif kind == "results":
                [result] = request.results.results
                self.result.set_result(result)
                acks = [work_pb2.ResultAck(attempt=result.attempt, verdict=work_pb2.RESULT_VERDICT_ACCEPTED)]
                yield worker_service_pb2.WorkResponse(result_acks=work_pb2.ResultAcks(acks=acks))


def welcome() -> worker_service_pb2.WorkResponse:
    message = work_pb2.Welcome(replica="in-process")
    message.lease.FromSeconds(30)
    message.heartbeat_interval.FromSeconds(5)
    return worker_service_pb2.WorkResponse(welcome=message)


def one_run() -> worker_service_pb2.WorkResponse:
    run = work_pb2.Assignment(run_id=bytes(15) + b"\1", attempt=1, max_attempts=3, tenant="-")
    run.job = "services/kpi-service/jobs/sync"
    run.payload_json = '{"brands": ["acme", "umbrella"]}'
    run.attempt_timeout.FromSeconds(60)
    return worker_service_pb2.WorkResponse(assignments=work_pb2.Assignments(claim_id=1, assignments=[run]))


def ask_blocking(target: str) -> str:
    with blocking.Client(target) as client:
        return client.get_job("kpi-service/sync").name


async def left_over() -> list[str]:
    """The tasks that do not end by themselves, as gRPC's own do in a moment."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=PATIENCE)
    return [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]


async def use() -> dict[str, object]:
    # asyncio's own warnings of callbacks that take long (-X dev) say how busy the machine is, and no more.
    asyncio.get_running_loop().slow_callback_duration = math.inf
    scheduler = Scheduler()  # type: ignore[abstract]  # it answers what is asked here
    server = grpc.aio.server()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(scheduler, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(scheduler, server)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(scheduler, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    jobs = carillon.Jobs("kpi-service", target=target, token="kpi.secret")

    @jobs.handler("sync", cron="@daily")
    async def sync(payload: Sync, run: carillon.Run) -> dict[str, int]:
        for brand in run.track(payload.brands):
            with run.item(brand):
                pass
        return {"brands": len(payload.brands)}

    async with jobs:
        registered = await asyncio.wait_for(scheduler.registered, PATIENCE)
        result = await asyncio.wait_for(scheduler.result, PATIENCE)
    async with carillon.Client(target) as client:
        name = (await client.get_job("kpi-service/sync")).name
    blocking_name = await asyncio.get_running_loop().run_in_executor(None, ask_blocking, target)
    await server.stop(None)
    tested = await testing.run(jobs, "sync", {"brands": []})
    return {
        "registered": registered,
        "outcome": work_pb2.AttemptOutcome.Name(result.outcome),
        "metrics": json.loads(result.metrics_json),
        "items": result.items.succeeded,
        "names": [name, blocking_name],
        "tested": tested.state,
        "tasks": await left_over(),
        "threads": [thread.name for thread in threading.enumerate() if "carillon" in thread.name],
    }


if __name__ == "__main__":
    used = asyncio.run(use())
    used["python"] = "{}.{}".format(*sys.version_info)
    used["protobuf"] = google.protobuf.__version__
    used["from"] = carillon.__file__
    used["server_parts"] = [name for name in SERVER_PARTS if name in sys.modules]
    sys.stdout.write(json.dumps(used))
