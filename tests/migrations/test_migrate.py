"""However the schema is applied, the end is the same."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.engine.readiness import Readiness
from scheduler_service.store.catalogue import FILE
from scheduler_service.store.database import Database
from scheduler_service.store.logins import Login
from scheduler_service.store.migrations import FOLDER, expected_version, migrate
from tests.migrations.catalogue import catalogue
from tests.migrations.write_catalogue import catalogue_text

if TYPE_CHECKING:
    from tests.conftest import DatabaseUrls


def file_of(url: str) -> str:
    """What migrations/catalogue.txt would be, were it made of that database."""
    return asyncio.run(catalogue_text(url))


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> Iterator[str]:
    postgres.create_database("empty")
    yield postgres.url("carillon_admin", database="empty")
    postgres.drop_database("empty")


def apply_by_hand(url: str) -> None:
    for file in sorted(FOLDER.glob("*.sql")):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(file.read_bytes())


def in_empty(urls: DatabaseUrls) -> Database:
    """The empty database, through the two logins."""
    api, engine = (f"{url.rpartition('/')[0]}/empty" for url in (urls.api, urls.engine))
    return Database(api, engine)


def test_by_hand_twice_is_as_by_migrate(empty: str, database_urls: DatabaseUrls, postgres: EmbeddedPostgres) -> None:
    apply_by_hand(empty)
    apply_by_hand(empty)
    by_hand = catalogue(empty)
    migrate(empty)
    assert catalogue(empty) == by_hand
    postgres.create_database("other")
    migrate(postgres.url("carillon_admin", database="other"))
    assert catalogue(postgres.url("carillon_admin", database="other")) == by_hand
    assert len(by_hand) > 300
    postgres.drop_database("other")


def test_the_catalogue_file_is_what_the_migrations_make(empty: str) -> None:
    migrate(empty)
    assert file_of(empty) == FILE.read_text(encoding="utf-8"), "run `make catalogue` and commit what it writes"


def test_replicas_that_start_together_all_migrate(empty: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(migrate, [empty] * 3)) == [expected_version()] * 3
    with psycopg.connect(empty) as connection:
        rows = connection.execute("select number from carillon.migrations order by 1").fetchall()
    assert [row[0] for row in rows] == list(range(1, expected_version() + 1))


def test_a_migrator_that_is_no_superuser_does_and_keeps_no_way_to_change_records(postgres: EmbeddedPostgres) -> None:
    """On a server of its own kind: the roles are the migrator's to make."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder) / "own", version=postgres.version) as own,
    ):
        own.create_database("empty")
        with psycopg.connect(own.url("carillon_admin", database="empty"), autocommit=True) as admin:
            admin.execute("create role migrator login createrole password 'migrator'")
            admin.execute("grant create on database empty to migrator")
            url = own.url("migrator", "migrator", "empty")
            migrate(url)
            assert migrate(url) == expected_version()
            row = admin.execute(
                "select rolbypassrls, pg_has_role('migrator', 'carillon_retention', 'set'),"
                " pg_has_role('migrator', 'carillon_retention', 'usage')"
                " from pg_roles where rolname = 'carillon_backup'"
            ).fetchone()
            assert row == (False, False, False)
        assert file_of(own.url("carillon_admin", database="empty")) == FILE.read_text(encoding="utf-8")
        own.remove()


def test_logins_are_given_and_work(empty: str, postgres: EmbeddedPostgres) -> None:
    url = postgres.url("my_engine", "a password: with /signs", "empty")
    migrate(empty, [Login("carillon_engine", url)])
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from carillon.live_runs").fetchone() == (0,)
        assert connection.execute("show enable_seqscan").fetchone() == ("off",)


async def test_a_replica_says_what_is_wrong_with_the_schema_and_recovers(
    empty: str, database_urls: DatabaseUrls
) -> None:
    database = in_empty(database_urls)
    readiness = Readiness(database, migrate=None)
    assert await readiness.look()
    assert "no carillon schema" in str(readiness.problem)
    migrate(empty)
    assert await readiness.look()
    assert str(readiness.problem) == "None"
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("insert into carillon.migrations (number, name) values (9999, 'from the future')")
    await readiness.look()
    assert "newer than this scheduler" in str(readiness.problem)
    await database.close()


async def test_a_replica_with_the_migrators_url_migrates_by_itself(empty: str, database_urls: DatabaseUrls) -> None:
    database = in_empty(database_urls)
    readiness = Readiness(database, migrate=lambda: migrate(empty))
    await readiness.look()
    assert readiness.problem is None
    await database.close()


async def test_a_replica_that_found_the_schema_good_tells_of_what_goes_wrong_later_and_does_not_migrate(
    database_urls: DatabaseUrls,
) -> None:
    database = Database(database_urls.api, database_urls.engine)
    migrated: list[str] = []
    clock = iter(range(0, 10_000, 100))
    readiness = Readiness(database, lambda: migrated.append("again"), lambda: float(next(clock)))
    await readiness.look()
    assert readiness.problem is None
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        admin.execute("alter table carillon.runs no force row level security")
    await readiness.look()
    assert str(readiness.problem).startswith("table carillon.runs: row level security")
    assert migrated == []
    await database.close()


@pytest.mark.parametrize("role", ["carillon_engine", "carillon_api"])
@pytest.mark.parametrize(
    "verb", ["update carillon.{} set run_id = run_id", "delete from carillon.{}", "truncate carillon.{}"]
)
@pytest.mark.parametrize("table", ["runs", "attempts", "items"])
def test_no_role_of_the_service_changes_a_record(database_urls: DatabaseUrls, role: str, verb: str, table: str) -> None:
    with psycopg.connect(database_urls.admin) as connection:
        connection.execute(f"set role {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(verb.format(table).encode())
