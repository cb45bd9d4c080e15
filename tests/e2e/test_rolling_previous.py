"""The release before this one beside it, as its tag has it, on the schema that this one makes of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local_stack.postgres import EmbeddedPostgres
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually
from tests.e2e.rolling_load import MANY, Callers, Load, is_passing, readiness
from tests.migrations.releases import migrate_with, previous_release

OLD = ("old-1", "old-2", "old-worker")


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = previous_release(tmp_path_factory.mktemp("releases"))
    if isinstance(tree, str):
        pytest.skip(tree)
    return tree


@pytest.fixture
async def cluster(
    previous: Path, postgres: EmbeddedPostgres, database_urls: DatabaseUrls, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """On a database that the previous release migrated; processes of the names in OLD run its code."""
    postgres.create_database("previous")
    api, engine, admin = (
        f"{url.rpartition('/')[0]}/previous" for url in (database_urls.api, database_urls.engine, database_urls.admin)
    )
    urls = DatabaseUrls(api, engine, admin)
    try:
        migrate_with(previous, urls)
        async with Cluster(tmp_path, urls, lease_seconds=8, heartbeat_seconds=0.5, **MANY) as cluster:
            cluster.trees |= dict.fromkeys(OLD, previous)
            yield cluster
    finally:
        postgres.drop_database("previous")


async def test_it_is_rolled_forward_and_back_under_load_and_kills(cluster: Cluster, tmp_path: Path) -> None:
    load, callers = Load(cluster, tmp_path), Callers(cluster)
    old = await cluster.start_scheduler("old-1")
    await cluster.start_scheduler("old-2")
    await load.start_worker("old-worker")
    await load.begin(50)

    async with callers.calling(old):
        new = await cluster.start_scheduler("new-1", migration_url=cluster.urls.admin)
        await callers.answers(old)
        await eventually(lambda: readiness(old), lambda answer: answer[0] == 200)
    assert [refusal for refusal in callers.refusals if not is_passing(refusal)] == []

    await cluster.kill("old-2")
    await load.start_worker("new-worker")
    await cluster.kill("old-worker")
    await load.moves_on()
    async with callers.calling(new):
        await callers.answers(new)
    await cluster.kill("new-1")
    await load.moves_on()
    await cluster.start_scheduler("new-1")
    assert await cluster.terminate("old-1") == 0
    await load.moves_on()

    # And back: the old release starts on what the new one made.
    await cluster.start_scheduler("old-2")
    assert await cluster.terminate("new-1") == 0
    await load.start_worker("old-worker")
    assert await cluster.terminate("new-worker") == 0
    await load.moves_on()
    verdict = await load.end("old-worker")
    assert verdict.passes, f"{verdict.line(0)}; {verdict.details()}"
