"""`make soak`: two schedulers and two workers under load, also while one of each is killed.

Every occurrence of every schedule must become exactly one run that completes; `verdict` says how that is checked.
Schedules are put through the API, so that what is armed is what users' calls arm; the job is paused meanwhile, and
resuming it starts all of them together.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import typer
from carillon import Client, NotFound

from local_stack.postgres import ADMIN, EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login
from scheduler_service.store.migrations import migrate
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually
from tests.e2e.effect_worker import JOB
from tests.faults.verdict import Verdict, judge

SCHEDULERS = ("scheduler-1", "scheduler-2")
WORKERS = ("worker-1", "worker-2")
_HELD = "select run_id, worker from carillon.live_runs join carillon.sessions using (session_id)"
_PUTS_AT_ONCE = 16
_DRAINED_WITHIN = 120.0
_PASSWORD = "only-for-this-soak"


@dataclass(frozen=True)
class Plan:
    """How many schedules, each due every second, for how long, and whether a worker and a scheduler are killed."""

    schedules: int
    seconds: float
    kill: bool
    lease_seconds: float = 30.0
    heartbeat_seconds: float = 5.0


@dataclass
class Soak:
    """One soak. `run` it once; `say` gets lines of progress."""

    home: Path
    urls: DatabaseUrls
    plan: Plan
    say: Callable[[str], None]
    _admin: psycopg.Connection[Any] = field(init=False)
    _pids: dict[str, int] = field(default_factory=dict)

    async def run(self) -> Verdict:
        """Errors: LocalStackError if a process does not start; AssertionError if the runs do not drain."""
        plan = self.plan
        leases = {"lease_seconds": plan.lease_seconds, "heartbeat_seconds": plan.heartbeat_seconds}
        async with Cluster(self.home, self.urls, changes_per_second=100_000, **leases) as cluster:
            for name in SCHEDULERS:
                await cluster.start_scheduler(name)
            with psycopg.connect(self.urls.admin, autocommit=True) as self._admin:
                await self._start_workers(cluster)
                async with cluster.client() as client:
                    killed = await self._load(cluster, client)
                return await asyncio.to_thread(judge, self._admin, self._effect_files(), killed)

    async def _start_workers(self, cluster: Cluster) -> None:
        for name, file in self._effect_files().items():
            environment = {
                "EFFECT_FILE": str(file),
                "EFFECT_CONCURRENCY": "500",
                "EFFECT_HOLD": str(self._hold(name)),
            }
            self._pids[name] = await cluster.start_program(name, "tests.e2e.effect_worker", environment)
        await eventually(self._replicas, lambda replicas: len(replicas) == len(WORKERS))
        self.say(f"{len(SCHEDULERS)} schedulers and {len(WORKERS)} workers are up")

    async def _load(self, cluster: Cluster, client: Client) -> list[str]:
        """Lets the schedules owe for the time of the plan, and everything end. Answers which workers were killed."""
        await eventually(lambda: self._paused(client), bool)
        await self._put_schedules(client)
        await client.resume_job(JOB)
        self.say(f"{self.plan.schedules} schedules are due each second, for {self.plan.seconds:g} s")
        began = time.monotonic()
        killed: list[str] = []
        if self.plan.kill:
            await self._until(began + 0.4 * self.plan.seconds)
            half_done = await self._kill_half_done(cluster, WORKERS[0])
            self.say(f"killed {WORKERS[0]}, in the middle of {half_done} runs")
            killed = [WORKERS[0]]
            await self._until(began + 0.6 * self.plan.seconds)
            await self._kill_scheduler(cluster)
        await self._until(began + self.plan.seconds)
        await client.pause_job(JOB)
        self.say("paused; waiting for what is live")
        await eventually(self._live, lambda live: live == 0, seconds=_DRAINED_WITHIN)
        return killed

    async def _paused(self, client: Client) -> bool:
        """Whether the job could be paused: the workers that declare it connect before they have done so."""
        with suppress(NotFound):
            await client.pause_job(JOB)
            return True
        return False

    async def _put_schedules(self, client: Client) -> None:
        numbers = iter(range(self.plan.schedules))

        async def put() -> None:
            for number in numbers:
                await client.put_schedule(JOB, tenant=f"tenant-{number}", cron="@every 1s", time_zone="UTC")

        await asyncio.gather(*(put() for _ in range(_PUTS_AT_ONCE)))

    async def _kill_half_done(self, cluster: Cluster, worker: str) -> int:
        """Kills a worker between the effects and the results of some runs, and answers of how many."""
        self._hold(worker).touch()
        before = self._done_by(worker)  # some of these may still end
        half_done = await eventually(lambda: self._half_done(worker, before))
        await cluster.kill(worker)
        return half_done

    async def _kill_scheduler(self, cluster: Cluster) -> None:
        """The one that the surviving worker is connected to: it has to find the other."""
        victim = (await self._replicas())[WORKERS[1]]
        half_done = await eventually(lambda: self._half_done(WORKERS[1]))
        await cluster.kill(victim)
        self.say(f"killed {victim}, whose worker is in the middle of {half_done} runs")

    async def _until(self, instant: float) -> None:
        """Says how it goes, each 5 s."""
        while (left := instant - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 5.0))
            self.say(f"{await self._recorded()} runs recorded, {await self._live()} live")

    async def _replicas(self) -> dict[str, str]:
        """Which replica each worker is connected to."""
        rows = await self._rows("select worker, replica from carillon.sessions")
        names = {str(pid): name for name, pid in self._pids.items()}
        return {names[worker.rpartition(":")[2]]: replica for worker, replica in rows}

    async def _half_done(self, worker: str, before: Collection[str] = ()) -> int:
        """How many runs the worker has done, but not yet reported, without those that were done before."""
        rows = await self._rows(_HELD)
        done = self._done_by(worker).difference(before)
        return sum(name.endswith(f":{self._pids[worker]}") and str(run) in done for run, name in rows)

    def _done_by(self, worker: str) -> set[str]:
        return set(self._effect_files()[worker].read_text().split())

    def _hold(self, worker: str) -> Path:
        """While this file is there, the worker reports nothing of what it does from then on."""
        return self.home / f"{worker}.hold"

    async def _live(self) -> int:
        return int((await self._rows("select count(*) from carillon.live_runs"))[0][0])

    async def _recorded(self) -> int:
        return int((await self._rows("select count(*) from carillon.runs"))[0][0])

    async def _rows(self, query: Any) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(lambda: self._admin.execute(query).fetchall())

    def _effect_files(self) -> dict[str, Path]:
        return {name: self.home / f"{name}.effects" for name in WORKERS}


def main(
    schedules: int = typer.Option(2000, help="How many schedules, each due every second."),
    seconds: float = typer.Option(60.0, help="For how long."),
    kill: bool = typer.Option(False, "--kill", help="Kill a worker and a scheduler in the middle of it."),
) -> None:
    """Exits 0 only if every occurrence became exactly one run, and each of them completed."""
    verdict = asyncio.run(_on_a_database_of_its_own(Plan(schedules, seconds, kill)))
    print(verdict.details())  # noqa: T201 - what this program is for
    print(verdict.line(seconds))  # noqa: T201
    sys.exit(not verdict.passes)


async def _on_a_database_of_its_own(plan: Plan) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="carillon-soak-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        try:
            server.start()
            server.create_database("carillon")
            urls = DatabaseUrls(
                api=server.url(API_ROLE, _PASSWORD),
                engine=server.url(ENGINE_ROLE, _PASSWORD),
                admin=server.url(ADMIN),
            )
            await asyncio.to_thread(migrate, urls.admin, [Login(API_ROLE, urls.api), Login(ENGINE_ROLE, urls.engine)])
            return await Soak(Path(folder), urls, plan, say=lambda line: print(line, flush=True)).run()  # noqa: T201
        finally:
            server.remove()


if __name__ == "__main__":
    typer.run(main)
