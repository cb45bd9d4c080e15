"""Fixtures of the tests about streams that lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from tests.builders import connect, make_job
from tests.conftest import DatabaseUrls
from tests.e2e.streams.house import LONG_LEASE, House, a_house


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_urls.admin) as admin:
        yield admin


@pytest.fixture
def lease() -> float:
    """In seconds. A test that waits for the end of one, or for a third of it, has another."""
    return LONG_LEASE


@pytest.fixture
async def house(database_urls: DatabaseUrls, admin: psycopg.Connection[Any], lease: float) -> AsyncIterator[House]:
    """Two replicas."""
    async with a_house(database_urls, admin, make_job(admin)) as house:
        for _ in range(2):
            await house.open_replica(lease_seconds=lease)
        yield house
