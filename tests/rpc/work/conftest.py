"""Fixtures of the worker stream's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from scheduler_service.store.database import Database
from tests.builders import MadeJob, connect, make_job
from tests.conftest import DatabaseUrls
from tests.rpc.work.rig import (
    RawWorker,
    Replica,
    a_worker,
    serving,
)


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_urls.admin) as admin:
        yield admin


@pytest.fixture
async def replica(database: Database) -> AsyncIterator[Replica]:
    async with serving(Replica(database)) as replica:
        yield replica


@pytest.fixture
async def worker(replica: Replica) -> AsyncIterator[RawWorker]:
    async with a_worker(replica) as worker:
        yield worker


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return make_job(admin, endpoint="http://email.example/run")
