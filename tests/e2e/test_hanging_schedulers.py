"""A scheduler that hangs, in part or as a whole, beside one that works: somebody notices, the other does its work, and
once it goes on it undoes nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import psycopg
from aiohttp import web
from carillon.v1 import run_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_stack.ports import LOCALHOST
from tests import builders
from tests.builders import connect, make_job, make_live_run, make_session
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, Cluster, Scheduler, eventually, fetch
from tests.e2e.conftest import SERVICE, Call, Service, ended
from tests.store.engine_case import rows

Admin = psycopg.Connection[Any]
DEAD_AFTER = 6
LEASE = 12
"""The worker finds out after a third of it that its scheduler stands still, and keeps its run by finding the other."""
_REAPER = re.compile(r'^carillon_loop_idle_(seconds|everywhere_seconds)\{loop="reaper"\} (\S+)$', re.MULTILINE)


async def readyz(scheduler: Scheduler) -> tuple[int, str]:
    return await fetch(f"http://{LOCALHOST}:{scheduler.metrics_port}/readyz")


async def serves(scheduler: Scheduler) -> None:
    """Returns once it says so."""
    await eventually(lambda: readyz(scheduler), lambda said: said == (200, "serving\n"))


async def reaper_idle(scheduler: Scheduler) -> dict[str, float]:
    """Here and everywhere; empty if it does not answer."""
    _, shown = await fetch(f"http://{LOCALHOST}:{scheduler.metrics_port}/metrics")
    return {name: float(seconds) for name, seconds in _REAPER.findall(shown)}


async def health(scheduler: Scheduler) -> int:
    async with grpc.aio.insecure_channel(scheduler.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        return int(answer.status)


def lose_a_worker(admin: Admin, job: builders.MadeJob) -> UUID:
    """A started run in the hands of a session whose lease is over."""
    run_id = make_live_run(admin, job)
    session_id = make_session(admin)
    builders.claim(admin, run_id, session_id)
    admin.execute("update carillon.sessions set expires_at = now() where session_id = %s", [session_id])
    return run_id


async def is_reaped(admin: Admin, run_id: UUID) -> None:
    async def attempt() -> list[Any]:
        return rows(admin, "select attempt, session_id from carillon.live_runs where run_id = %s", run_id)

    await eventually(attempt, lambda found: found == [(2, None)])


async def test_a_reaper_that_hangs_is_noticed_and_others_reap(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    with connect(database_urls.admin) as admin:
        async with Cluster(tmp_path, database_urls) as cluster:
            for name in ("one", "two"):
                file = hangs if name == "one" else tmp_path / "never"
                cluster.environments[name] = {"HANGING_REAPER": str(file), "HANGING_SECONDS": str(DEAD_AFTER)}
                await cluster.start_scheduler(name, module="tests.e2e.hanging_scheduler")
            one, two = cluster.schedulers.values()
            hangs.touch()
            sentence = f"loop reaper of this replica has done nothing for over {DEAD_AFTER} s\n"
            await eventually(lambda: readyz(one), lambda said: said == (503, sentence))
            await eventually(lambda: health(one), lambda status: status == health_pb2.HealthCheckResponse.NOT_SERVING)
            await eventually(
                lambda: reaper_idle(one),
                lambda idle: bool(idle) and idle["seconds"] > DEAD_AFTER > idle["everywhere_seconds"],
            )
            await serves(two)
            job = make_job(admin)
            await is_reaped(admin, lose_a_worker(admin, job))
            hangs.unlink()
            await serves(one)
            await eventually(lambda: health(one), lambda status: status == health_pb2.HealthCheckResponse.SERVING)
            await cluster.terminate("two")
            await is_reaped(admin, lose_a_worker(admin, job))


async def test_a_scheduler_that_was_stopped_past_a_lease_reaps_nothing_that_lives(
    database_urls: DatabaseUrls, tmp_path: Path, service: Service
) -> None:
    may_end = asyncio.Event()

    async def answer(_call: Call) -> web.Response:
        await may_end.wait()
        return web.Response()

    service.answer = answer
    with connect(database_urls.admin) as admin:
        async with Cluster(tmp_path, database_urls, lease_seconds=LEASE, heartbeat_seconds=0.5) as cluster:
            one, two = cluster.place_scheduler("one"), cluster.place_scheduler("two")
            await cluster.start_scheduler("one")
            await cluster.start_worker_service()
            async with cluster.client() as client:
                jobs = service.jobs(cluster)
                jobs.endpoint("weekly-digest", "/run")
                await jobs.register()
                (run,) = await client.trigger_job(f"{SERVICE}/weekly-digest")
                assert (await service.next_call()).run in run.name
                await cluster.start_scheduler("two")
                assert holders(admin) == ["one"]
                os.kill(cluster.processes.pid("one"), signal.SIGSTOP)
                try:
                    stopped = now(admin)

                    async def holder() -> list[str]:
                        return holders(admin)

                    await eventually(holder, lambda found: found == ["two"])

                    async def seconds() -> float:
                        return (now(admin) - stopped).total_seconds()

                    await eventually(seconds, lambda passed: passed > LEASE + 2)
                finally:
                    os.kill(cluster.processes.pid("one"), signal.SIGCONT)
                since = now(admin)

                async def reaped_at() -> list[Any]:
                    return rows(admin, "select beat_at from carillon.pulses where (replica, loop) = ('one', 'reaper')")

                await eventually(reaped_at, lambda beats: bool(beats) and (beats[0][0] - since).total_seconds() > 1)
                await serves(one)
                await serves(two)
                assert rows(admin, "select attempt from carillon.live_runs") == [(1,)]
                assert holders(admin) == ["two"]
                may_end.set()
                done = await ended(client, run.name)
                assert (done.state, done.attempt) == (run_pb2.RUN_STATE_COMPLETED, 1)
            assert service.calls.empty(), "it was called once"
            assert rows(admin, "select action from carillon.audit_events where principal like 'engine:%%'") == []


def holders(admin: Admin) -> list[str]:
    """Which replicas workers' sessions are connected to."""
    return [name for (name,) in rows(admin, "select replica from carillon.sessions")]


def now(admin: Admin) -> datetime:
    ((at,),) = rows(admin, "select clock_timestamp()")
    assert isinstance(at, datetime)
    return at
