"""The schema: applied from `migrations/*.sql` with the migrator's credential, and checked by everyone else.

The SQL files are the source of truth and guard themselves, so that psql or Alembic may go first; Alembic keeps the
books. Whoever migrates holds an advisory lock, so that replicas that start together do not race.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import alembic.command
import psycopg
from alembic.config import Config
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from scheduler_service.store.logins import Login, give_login

FOLDER = Path(__file__).parent.parent.parent / "migrations"
_LOCK = "select pg_advisory_lock(hashtext('carillon.migrate'))"


def expected_version() -> int:
    """The number of the newest migration file that this code comes with."""
    return max(int(file.name[:4]) for file in FOLDER.glob("[0-9]*.sql"))


def migrate(migration_url: str, logins: Iterable[Login] = ()) -> int:
    """Brings the schema to this code's version and gives the logins; answers the version. Safe to repeat, and while
    others do the same. Errors: psycopg and SQLAlchemy errors as they come."""
    with psycopg.connect(migration_url, autocommit=True) as guard:
        guard.execute(_LOCK)
        # First of all by itself: it makes the roles, and the book that Alembic writes in.
        guard.execute(_file("0001_foundation.sql"))
        for login in logins:
            give_login(guard, login)
        row = guard.execute("select max(number) from carillon.migrations").fetchone()
        version = int(row[0]) if row else 0
        if version > expected_version():
            return version  # a newer release was here: nothing of it is undone
        _upgrade(migration_url)
    return expected_version()


def apply_file(connection: Connection, name: str) -> None:
    """Runs one migration file as it stands: no parameters, no escapes."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute(_file(name))


def _file(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def _upgrade(migration_url: str) -> None:
    engine = create_engine(make_url(migration_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("set role carillon_owner"))
        connection.commit()
        config = Config()
        config.set_main_option("script_location", str(FOLDER / "alembic"))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


async def schema_problem(connection: AsyncConnection) -> str | None:
    """Why this code cannot work with the schema that is there; None if it can."""
    there = await connection.execute(text("select to_regclass('carillon.migrations') is not null"))
    if not there.scalar_one():
        return "the database has no carillon schema; run `python -m scheduler_service migrate`"
    version = (await connection.execute(text("select coalesce(max(number), 0) from carillon.migrations"))).scalar_one()
    if version < expected_version():
        return f"the schema is at {version}, this scheduler needs {expected_version()}; migrate it"
    if version > expected_version():
        return f"the schema is at {version}, newer than this scheduler knows ({expected_version()}); upgrade it"
    return None
