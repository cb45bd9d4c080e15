"""A commit is done, and the answer is lost: whoever asks again finds what was done, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from carillon.v1 import job_service_pb2, registry_service_pb2

from scheduler_service.store.database import Database
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import eventually
from tests.e2e.database_away.conftest import Links
from tests.e2e.database_away.place import MARK, Place, is_told_to_wait, placed
from tests.faults.proxy import Direction, FaultProxy
from tests.rpc.test_definitions import ADMIN, JOB, Stubs, digest, stubs

__all__ = ["stubs"]

COMMITTED = b"COMMIT\0"


@pytest.fixture
async def database(links: Links, database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    urls = links.urls(database_urls)
    database = Database(urls.api, urls.engine, pool_size=4)
    yield database
    await database.close()


def count(urls: DatabaseUrls, what: str) -> int:
    with connect(urls.admin) as admin:
        [(found,)] = admin.execute(f"select count(*) from carillon.{what}".encode()).fetchall()
    return int(found)


async def test_a_trigger_with_a_request_id_makes_one_run(
    stubs: Stubs, links: Links, database_urls: DatabaseUrls
) -> None:
    await stubs.register(digest())
    request = job_service_pb2.TriggerJobRequest(name=JOB, request_id="once")
    links.api.cut_after(Direction.DOWN, containing=COMMITTED)
    await is_told_to_wait(stubs.jobs.TriggerJob(request, metadata=ADMIN), "the database cannot be reached")
    assert not links.api.is_to_cut
    assert count(database_urls, "live_runs") == 1
    first = await stubs.jobs.TriggerJob(request, metadata=ADMIN)
    again = await stubs.jobs.TriggerJob(request, metadata=ADMIN)
    assert first == again
    assert count(database_urls, "live_runs") == 1


async def test_a_manifest_that_is_registered_again_is_unchanged(
    stubs: Stubs, links: Links, database_urls: DatabaseUrls
) -> None:
    links.api.cut_after(Direction.DOWN, containing=COMMITTED)
    await is_told_to_wait(stubs.register(digest()), "the database cannot be reached")
    events = count(database_urls, "audit_events")
    assert (count(database_urls, "jobs"), events) == (1, 1)
    answer = await stubs.register(digest())
    assert [each.kind for each in answer.changes] == [registry_service_pb2.CHANGE_KIND_UNCHANGED]
    assert count(database_urls, "audit_events") == events


@pytest.fixture
async def place(links: Links, database_urls: DatabaseUrls) -> AsyncIterator[Place]:
    async with placed(links.urls(database_urls), lambda: database_urls.admin) as place:
        yield place


@pytest.mark.parametrize(
    "answer", [COMMITTED, MARK.encode(), b"INSERT 0", b"SELECT 1\0"], ids=["commit", "claim", "insert", "select"]
)
async def test_what_the_engine_wrote_is_neither_doubled_nor_stranded(place: Place, links: Links, answer: bytes) -> None:
    """Ticks, claims and results, whichever comes first: what was claimed, and not sent, comes back by the list of
    what the worker's heartbeat says it holds."""
    for _ in range(4):
        await lost(links.engine, answer)
        await place.goes_on(1)
    await place.is_whole()


async def lost(link: FaultProxy, answer: bytes) -> None:
    link.cut_after(Direction.DOWN, containing=answer)

    async def is_done() -> Any:
        return not link.is_to_cut

    await eventually(is_done)
