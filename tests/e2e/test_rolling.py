"""Deploys under load: replicas and workers are replaced one after the other, and releases run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local_stack.postgres import EmbeddedPostgres
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, Scheduler, eventually
from tests.e2e.rolling_load import MANY, Callers, Load, is_passing, readiness
from tests.migrations.releases import CONTRACTING, EXPANDING, NEXT, next_release

SCHEDULERS = ("scheduler-1", "scheduler-2")
WORKERS = ("worker-1", "worker-2")
SCHEDULES = 50
ROUNDS = 3


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls, **MANY) as cluster:
        yield cluster


async def started(cluster: Cluster, home: Path) -> Load:
    for name in SCHEDULERS:
        await cluster.start_scheduler(name)
    load = Load(cluster, home)
    for name in WORKERS:
        await load.start_worker(name)
    return load


async def test_replacing_every_replica_and_worker_thrice_disturbs_no_run(cluster: Cluster, tmp_path: Path) -> None:
    load = await started(cluster, tmp_path)
    await load.begin(SCHEDULES)
    for _ in range(ROUNDS):
        for name in SCHEDULERS:
            assert await cluster.terminate(name) == 0
            await cluster.start_scheduler(name)
            await load.moves_on()
        for name in WORKERS:
            assert await cluster.terminate(name) == 0
            await load.start_worker(name)
            await load.moves_on()
    await load.end_undisturbed()


async def test_a_release_that_only_adds_to_the_schema_is_rolled_out_and_back_beside_this_one(
    cluster: Cluster, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Each of two new replicas migrates when it starts, while an old one works and answers."""
    tree = await asyncio.to_thread(next_release, tmp_path, EXPANDING, postgres)
    load = await started(cluster, tmp_path)
    await load.begin(SCHEDULES)
    old, callers = cluster.schedulers["scheduler-1"], Callers(cluster)
    assert await cluster.terminate("scheduler-2") == 0
    async with callers.calling(old):
        cluster.trees |= {"scheduler-2": tree, "scheduler-3": tree}
        new, newer = await asyncio.gather(
            *(
                cluster.start_scheduler(name, migration_url=cluster.urls.admin)
                for name in ("scheduler-2", "scheduler-3")
            )
        )
        assert await load.count("select max(number) from carillon.migrations") == NEXT
        await said(cluster, old, "a newer release has migrated the schema")
        await callers.answers(old)
        await load.moves_on()
        await eventually(lambda: readiness(old), lambda answer: answer == (200, "serving\n"))
    assert [refusal for refusal in callers.refusals if not is_passing(refusal)] == []
    # The whole of the new release, and back: the old one starts on what the new one made.
    assert await cluster.terminate("scheduler-1") == 0
    async with callers.calling(new, newer):
        await callers.answers(new)
        await callers.answers(newer)
        await load.moves_on()
    await cluster.start_scheduler("scheduler-1")
    for name in ("scheduler-2", "scheduler-3"):
        assert await cluster.terminate(name) == 0
    await load.moves_on()
    await load.end_undisturbed()


async def test_a_release_that_takes_from_the_schema_ends_the_readiness_of_this_one(
    cluster: Cluster, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    tree = await asyncio.to_thread(next_release, tmp_path, CONTRACTING, postgres)
    old = await cluster.start_scheduler("scheduler-1")
    cluster.trees["scheduler-2"] = tree
    await cluster.start_scheduler("scheduler-2", migration_url=cluster.urls.admin)
    sentence = f"since the migration `bells` only schedulers that know {NEXT} can work with it"
    code, _ = await eventually(lambda: readiness(old), lambda answer: sentence in answer[1])
    assert code == 503
    # Started again it says the same, and so does one that may migrate; the new one goes on.
    assert await cluster.terminate("scheduler-1") == 0
    again = await cluster.start_scheduler("scheduler-1", ready=False, migration_url=cluster.urls.admin)
    code, _ = await eventually(lambda: readiness(again), lambda answer: "bells" in answer[1])
    assert code == 503
    await eventually(lambda: readiness(cluster.schedulers["scheduler-2"]), lambda answer: answer[0] == 200)


async def said(cluster: Cluster, scheduler: Scheduler, event: str) -> None:
    """Returns once the scheduler has logged it."""

    async def lines() -> str:
        return cluster.processes.tail(scheduler.name, 10_000)

    await eventually(lines, lambda text: event in text)
