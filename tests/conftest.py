"""What tests share: one real PostgreSQL for each test process, and a migrated database for each test that asks."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from local_stack.errors import LocalStackError
from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.database import Database
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, give_login
from tests import canary

pytest_plugins = ("tests.canary_hooks",)

MIGRATIONS = Path(__file__).parent.parent / "migrations"
_PASSWORD = canary.secret("database")
_numbers = itertools.count()
# Each test that asks has a database of some 900 files made and dropped: in memory that is a fifth of the work.
_MEMORY = Path("/dev/shm")
_ROOM = 4 * 2**30
# How long an example takes says how busy the machine is, and no more.
settings.register_profile("carillon", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("carillon")
# What a shell starts in the background ignores SIGINT, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, repr=False)
class DatabaseUrls:
    """Where a test's own database is, for each login role. `admin` is a superuser's."""

    api: str
    engine: str
    admin: str


# Of xdist's processes the one that is free takes the next file: what takes longest must not begin last.
_TESTS = Path(__file__).parent
LONGEST_FIRST = (
    *("faults/test_faults.py", "e2e/test_poison.py", "e2e/test_rolling.py", "e2e/test_secrets_stay.py"),
    *("e2e/test_bench_failover.py", "compat/test_installed.py", "deploy/test_entry_points.py"),
    *("e2e/test_local_stack.py", "docs/test_operations.py", "simulation/test_simulation.py"),
    *("e2e", "time_oracle", "faults", "deploy", "docs", "store", "migrations", "security", "rpc"),
)
"""Files and folders; what is not named comes last."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    if not path.is_relative_to(_TESTS):
        return len(LONGEST_FIRST)
    name = path.relative_to(_TESTS).as_posix()
    of_it = (rank for rank, which in enumerate(LONGEST_FIRST) if name == which or name.startswith(f"{which}/"))
    return next(of_it, len(LONGEST_FIRST))


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server of this test process's own, with a migrated template database."""
    kin = f"carillon-tests-{os.getuid()}-"
    _remove_leftovers(_MEMORY, kin)
    home = _roomy_folder() / f"{kin}{os.getpid()}"
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


def _roomy_folder() -> Path:
    """In memory if there is plenty of it, so that also several test processes fill it only to a part."""
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free > _ROOM:
        return _MEMORY
    return Path(tempfile.gettempdir())


def _remove_leftovers(folder: Path, kin: str) -> None:
    """Data of test processes that were killed would stay in memory. Who lives holds the lock of its own."""
    for lock in folder.glob(f"{kin}*.lock"):
        with suppress(LocalStackError, OSError):
            EmbeddedPostgres(lock.with_suffix("")).remove()


@contextmanager
def fresh_database(postgres: EmbeddedPostgres) -> Iterator[DatabaseUrls]:
    """A migrated database, for as long as this lasts."""
    name = f"test_{next(_numbers)}"
    postgres.create_database(name, template="template_carillon")
    urls = DatabaseUrls(
        api=postgres.url("carillon_api", _PASSWORD, name),
        engine=postgres.url("carillon_engine", _PASSWORD, name),
        admin=postgres.url("carillon_admin", database=name),
    )
    try:
        yield urls
        leaks = canary.leaks_in_database(urls.admin)
    finally:
        postgres.drop_database(name)
    canary.check(leaks, "the database")


@pytest.fixture
def database_urls(postgres: EmbeddedPostgres) -> Iterator[DatabaseUrls]:
    """A fresh migrated database."""
    with fresh_database(postgres) as urls:
        yield urls


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """The fresh database, through the same roles that the scheduler uses."""
    database = Database(database_urls.api, database_urls.engine, pool_size=4)
    yield database
    await database.close()
