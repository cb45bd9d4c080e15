"""What tests share: one real PostgreSQL for each test process, and a migrated database for each test that asks."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.database import Database
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, give_login
from tests import canary

pytest_plugins = ("tests.canary_hooks",)

MIGRATIONS = Path(__file__).parent.parent / "migrations"
_PASSWORD = canary.secret("database")
_numbers = itertools.count()
# What a shell starts in the background ignores SIGINT, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, repr=False)
class DatabaseUrls:
    """Where a test's own database is, for each login role. `admin` is a superuser's."""

    api: str
    engine: str
    admin: str


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server of this test process's own, with a migrated template database."""
    home = Path(tempfile.gettempdir()) / f"carillon-tests-{os.getuid()}-{os.getpid()}"
    server = EmbeddedPostgres(home, version=int(os.environ.get("CARILLON_TEST_POSTGRES", "18")))
    server.start()
    try:
        server.create_database("template_carillon")
        with psycopg.connect(server.url("carillon_admin", database="template_carillon"), autocommit=True) as admin:
            for file in sorted(MIGRATIONS.glob("*.sql")):
                admin.execute(file.read_bytes())
            for role in (API_ROLE, ENGINE_ROLE):
                give_login(admin, Login(role, server.url(role, _PASSWORD)))
        yield server
        canary.check(canary.leaks_in_files([server.log_path]), "the server's log")
    finally:
        server.remove()


@pytest.fixture
def database_urls(postgres: EmbeddedPostgres) -> Iterator[DatabaseUrls]:
    """A fresh migrated database."""
    name = f"test_{next(_numbers)}"
    postgres.create_database(name, template="template_carillon")
    urls = DatabaseUrls(
        api=postgres.url("carillon_api", _PASSWORD, name),
        engine=postgres.url("carillon_engine", _PASSWORD, name),
        admin=postgres.url("carillon_admin", database=name),
    )
    yield urls
    leaks = canary.leaks_in_database(urls.admin)
    postgres.drop_database(name)
    canary.check(leaks, "the database")


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """The fresh database, through the same roles that the scheduler uses."""
    database = Database(database_urls.api, database_urls.engine, pool_size=4)
    yield database
    await database.close()
