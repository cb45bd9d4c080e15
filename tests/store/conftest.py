"""The engine's own connections, for tests that step it by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from scheduler_service.store import served_routes
from scheduler_service.store.database import Database
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.store.definitions_case import Scheduler, scheduler_on
from tests.store.turns_case import Begin, Case


@pytest.fixture(autouse=True)
def _busy_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a run is pending is found out however long that takes, and not left out after a second."""
    monkeypatch.setattr(served_routes, "_PATIENCE", 60.0)


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, past every policy."""
    with connect(database_urls.admin) as connection:
        yield connection


@pytest.fixture
def somebody(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection in whose transaction what it locks stays locked."""
    with connect(database_urls.admin) as connection:
        connection.autocommit = False
        yield connection
        connection.rollback()


@pytest.fixture
async def hot(database: Database) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await database.hot_connection() as connection:
        yield connection


@pytest.fixture
async def other(database: Database) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Another replica's connection."""
    async with await database.hot_connection() as connection:
        yield connection


@pytest.fixture
async def scheduler(
    database_urls: DatabaseUrls, admin: psycopg.Connection[Any], hot: psycopg.AsyncConnection[Any]
) -> AsyncIterator[Scheduler]:
    """The use cases on a fresh database whose clock the test steps."""
    async with scheduler_on(database_urls, hot, admin) as scheduler:
        yield scheduler


@pytest.fixture
def begin(admin: psycopg.Connection[Any], hot: psycopg.AsyncConnection[Any]) -> Begin:
    """Makes a schedule whose runs take turns by a policy."""

    def begin(overlap: str, **columns: Any) -> Case:
        return Case(admin, hot, overlap, **columns)

    return begin
