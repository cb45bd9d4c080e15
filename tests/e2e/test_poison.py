"""A run that kills its worker, or does other harm, takes no other with it: real schedulers and workers, restarted when
they die as an orchestrator does."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg
import pytest
from carillon import Client, NotFound
from carillon.v1 import run_pb2
from psycopg.types.json import Jsonb

from local_stack.errors import LocalStackError
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually
from tests.e2e.poison_worker import JOB, PLAIN, TYPED

COMPLETED, FAILED, CANCELLED = run_pb2.RUN_STATE_COMPLETED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED
SHORT = {"lease_seconds": 3, "heartbeat_seconds": 0.5}
"""For tests that wait until a worker is given up. Beside other work a worker may lose such a lease that should not."""
LONGER = {"lease_seconds": 8, "heartbeat_seconds": 0.5}
"""Where the one that takes over may not be given up."""
NOT_LOST: dict[str, float] = {}
"""The default lease, where no worker is."""
LONG_ENOUGH = 90.0


@dataclass
class Fleet:
    """Workers that are started again whenever they die. `starts`: how often each was."""

    cluster: Cluster
    home: Path
    client: Client
    admin: psycopg.Connection[Any]
    environment: dict[str, str] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)

    async def keep(self, name: str, concurrency: int) -> None:
        """Starts a worker, again and again until cancelled."""
        own = {"POISON_FILE": str(self.home / f"{name}.lines"), "POISON_CONCURRENCY": str(concurrency)}
        while True:
            with suppress(LocalStackError):  # it runs
                await self.cluster.start_program(name, "tests.e2e.poison_worker", own | self.environment)
                self.starts[name] += 1
            await asyncio.sleep(0.1)

    async def ready(self) -> None:
        """Once the jobs are declared."""

        async def is_declared() -> bool:
            with suppress(NotFound):
                return bool(await self.client.get_job(JOB))
            return False

        await eventually(is_declared)

    async def trigger(self, *deeds: str, job: str = JOB) -> list[str]:
        """Has runs made that do these; answers their names."""
        made = [await self.client.trigger_job(job, {"does": does}) for does in deeds]
        return [run.name for runs in made for run in runs]

    async def all_ended(self, runs: Iterable[str]) -> dict[str, run_pb2.Run]:
        """The runs, once none is live."""

        async def live() -> int:
            query = "select count(*) from carillon.live_runs"
            row = await asyncio.to_thread(lambda: self.admin.execute(query).fetchone())
            return row[0] if row else 0

        await eventually(live, lambda left: left == 0, seconds=LONG_ENOUGH)
        return {run: await self.client.get_run(run) for run in runs}

    async def started(self, attempt: int) -> int:
        """How many live attempts of this number have reported that they started."""
        query = "select count(*) from carillon.live_runs where started_at is not null and attempt = %s"
        row = await asyncio.to_thread(lambda: self.admin.execute(query, [attempt]).fetchone())
        return row[0] if row else 0

    async def restarts(self) -> int:
        """How often workers were started again."""
        return sum(self.starts.values()) - len(self.starts)

    def peak_memory(self, name: str) -> int:
        """In bytes, the most that a process ever had in memory."""
        status = Path(f"/proc/{self.cluster.processes.pid(name)}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@asynccontextmanager
async def fleet(
    home: Path,
    urls: DatabaseUrls,
    workers: dict[str, int],
    schedulers: int = 1,
    *,
    lease: Mapping[str, float] = SHORT,
    **environment: str,
) -> AsyncIterator[Fleet]:
    """`workers`: how many runs each takes at once."""
    async with Cluster(home, urls, **lease) as cluster:
        for number in range(schedulers):
            await cluster.start_scheduler(f"scheduler-{number}")
        with psycopg.connect(urls.admin, autocommit=True) as admin:
            async with cluster.client() as client:
                made = Fleet(cluster, home, client, admin, environment)
                keeping = [asyncio.create_task(made.keep(name, number)) for name, number in workers.items()]
                try:
                    await made.ready()
                    yield made
                finally:
                    for task in keeping:
                        task.cancel()
                    await asyncio.gather(*keeping, return_exceptions=True)
                    for name in workers:  # in order, one that never stops would take its grace
                        await cluster.kill(name)


def charged(runs: Iterable[run_pb2.Run]) -> Counter[int]:
    """How many runs took how many attempts."""
    return Counter(run.attempt for run in runs)


@pytest.mark.parametrize(
    ("workers", "poisons", "schedulers"),
    [({"one": 20}, 1, 1), ({"one": 10, "two": 10}, 2, 2)],
    ids=["one worker", "two workers, two schedulers, two poisons"],
)
async def test_what_kills_its_worker_fails_alone(
    tmp_path: Path, database_urls: DatabaseUrls, workers: dict[str, int], poisons: int, schedulers: int
) -> None:
    gate = tmp_path / "may-end"
    async with fleet(tmp_path, database_urls, workers, schedulers, POISON_GATE=str(gate)) as made:
        neighbours = sum(workers.values()) - poisons
        deeds = ["work"] * neighbours
        names = await made.trigger(*deeds)
        # They have begun, and none may end before the poison has killed whoever has it.
        await eventually(lambda: made.started(1), lambda number: number == neighbours)
        more = [*("exit", "segfault")[:poisons], *["work"] * (40 - poisons - neighbours)]
        deeds += more
        names += await made.trigger(*more)
        await eventually(made.restarts, bool)
        gate.touch()
        ended = await made.all_ended(names)
        poison = [ended[name] for name, does in zip(names, deeds, strict=True) if does != "work"]
        others = [ended[name] for name, does in zip(names, deeds, strict=True) if does == "work"]
        assert [(run.state, run.attempt, run.error.code) for run in poison] == [(FAILED, 3, "WORKER_LOST")] * poisons
        for run in poison:  # lost once more, at no charge, if the worker died before it could say that it had begun
            assert re.fullmatch(
                f"worker {run.worker} was lost while it held attempt 3 of 3; the run was lost [34] times in all;"
                " it may itself be the cause, and is kept apart from other runs as far as can be",
                run.error.message,
            )
        assert Counter(run.state for run in others) == {COMPLETED: 40 - poisons}
        assert max(charged(others)) <= 3, "two attempts are lost to whatever others do, and no more"
        assert max(charged(others)) > 1, "no neighbour was hit: the test shows nothing"
        assert sum(made.starts.values()) >= 3 + len(workers)


async def test_what_a_killed_worker_had_goes_on_together_and_not_one_after_the_other(
    tmp_path: Path, database_urls: DatabaseUrls
) -> None:
    gate = tmp_path / "may-end"
    async with fleet(tmp_path, database_urls, {"one": 40}, lease=LONGER, POISON_GATE=str(gate)) as made:
        names = await made.trigger(*["work"] * 40)
        await eventually(lambda: made.started(1), lambda number: number == 40)
        await made.cluster.kill("one")
        # None may end, so that one after the other would be one for good.
        await eventually(lambda: made.started(2), lambda number: number == 40)
        gate.touch()
        ended = await made.all_ended(names)
        assert {(run.state, run.attempt) for run in ended.values()} == {(COMPLETED, 2)}
        assert made.starts["one"] == 2


# What each comes to: its state, the error's code, attempts.
ENDS: dict[str, tuple[str, str, int]] = {
    "SystemExit": ("FAILED", "HANDLER_ERROR", 3),
    "KeyboardInterrupt": ("FAILED", "HANDLER_ERROR", 3),
    "GeneratorExit": ("FAILED", "HANDLER_ERROR", 3),
    "MemoryError": ("FAILED", "HANDLER_ERROR", 3),
    "RecursionError": ("FAILED", "HANDLER_ERROR", 3),
    "StopIteration": ("FAILED", "HANDLER_ERROR", 3),
    "BaseException": ("FAILED", "HANDLER_ERROR", 3),
    "large": ("FAILED", "BAD_RESULT", 1),
}


@pytest.mark.parametrize("job", [JOB, PLAIN], ids=["async", "plain"])
async def test_what_a_handler_raises_or_returns_ends_its_own_run(
    tmp_path: Path, database_urls: DatabaseUrls, job: str
) -> None:
    async with fleet(tmp_path, database_urls, {"one": 10}, lease=NOT_LOST) as made:
        bad = await made.trigger(*ENDS, job=job)
        good = await made.trigger(*["work"] * 20, job=job)
        undecodable = await made.trigger("not a number", job=TYPED)
        ended = await made.all_ended([*bad, *good, *undecodable])
        ends = {}
        for name, does in zip(bad, ENDS, strict=True):
            run = ended[name]
            ends[does] = (run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_"), run.error.code, run.attempt)
        assert ends == ENDS
        assert {(ended[name].state, ended[name].attempt) for name in good} == {(COMPLETED, 1)}
        [run] = [ended[name] for name in undecodable]
        assert (run.state, run.error.code, run.attempt) == (FAILED, "BAD_PAYLOAD", 1)
        assert made.starts["one"] == 1


async def test_a_handler_that_does_not_stop_keeps_its_slot_and_nothing_else(
    tmp_path: Path, database_urls: DatabaseUrls
) -> None:
    async with fleet(tmp_path, database_urls, {"one": 4}, lease=NOT_LOST) as made:
        [stubborn] = await made.trigger("never stop")
        running = await eventually(
            lambda: made.client.get_run(stubborn), lambda run: run.state == run_pb2.RUN_STATE_RUNNING
        )
        assert running.attempt == 1
        await made.client.cancel_run(stubborn)
        good = await made.trigger(*["work"] * 12)
        ended = await made.all_ended([stubborn, *good])
        assert ended[stubborn].state == CANCELLED
        assert {(ended[name].state, ended[name].attempt) for name in good} == {(COMPLETED, 1)}
        assert made.starts["one"] == 1


async def test_a_handler_that_blocks_its_worker_past_the_lease_harms_no_other_for_good(
    tmp_path: Path, database_urls: DatabaseUrls
) -> None:
    async with fleet(tmp_path, database_urls, {"one": 10}, POISON_BLOCKS="5") as made:
        deeds = ["work"] * 20
        deeds[4] = "block"
        names = await made.trigger(*deeds)
        ended = await made.all_ended(names)
        others = [ended[name] for name, does in zip(names, deeds, strict=True) if does == "work"]
        assert Counter(run.state for run in others) == {COMPLETED: 19}
        assert max(charged(others)) <= 2
        assert (ended[names[4]].state, ended[names[4]].attempt, ended[names[4]].error.code) == (
            FAILED,
            3,
            "WORKER_LOST",
        )
        assert made.starts["one"] == 1


async def test_what_is_large_is_carried_out_and_does_not_pile_up_in_the_scheduler(
    tmp_path: Path, database_urls: DatabaseUrls
) -> None:
    async with fleet(tmp_path, database_urls, {"one": 500}, lease=NOT_LOST) as made:
        text = token_hex(127_500)
        row = made.admin.execute("select job_id, route from carillon.jobs where job = 'poisonous'").fetchone()
        assert row is not None
        before = made.peak_memory("scheduler-0")
        made.admin.execute(_LARGE, [*row, Jsonb({"does": "work", "text": text})])
        made.admin.execute("select pg_notify('carillon', 'pending')")
        await made.all_ended([])
        rows = made.admin.execute("select state::text, attempt, count(*) from carillon.runs group by 1, 2").fetchall()
        assert rows == [("COMPLETED", 1, 500)]
        grown = made.peak_memory("scheduler-0") - before
        assert grown < 64 * 1024 * 1024, f"500 runs of 256 KiB took {grown:,} bytes"


_LARGE = """
insert into carillon.live_runs (run_id, job_id, tenant_id, route, trigger, exclusive, scheduled_for, run_after,
  created_at, payload, max_attempts, attempt_timeout, run_timeout, cancel_grace)
select overlay(gen_random_uuid()::text placing left(carillon.id_floor(now())::text, 13) from 1)::uuid, %s, '-', %s,
  'MANUAL', false, now(), now(), now(), %s, 3, '1 h', '1 d', '30 s'
from generate_series(1, 500)"""
