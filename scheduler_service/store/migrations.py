"""The schema: applied from `migrations/*.sql` with the migrator's credential, and checked by everyone else.

The SQL files are the source of truth and guard themselves, so that psql or Alembic may go first; Alembic keeps the
books. Whoever migrates holds an advisory lock, so that replicas that start together do not race, and waits for a table
only briefly, since everyone who wants it then waits behind the migration.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import alembic.command
import psycopg
from alembic.config import Config
from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable, ObjectNotInPrerequisiteState
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from scheduler_service.store.errors import MigrationRefused
from scheduler_service.store.logins import Login, give_login

FOLDER = Path(__file__).parent.parent.parent / "migrations"

_LOCK = "select pg_advisory_lock(hashtext('carillon.migrate'))"
_GROUPS = ("carillon_engine", "carillon_api", "carillon_auditor", "carillon_backup")
_WHO = (
    "'pid ' || pid || ' (login ' || coalesce(usename, '?') || coalesce(', ' || nullif(application_name, ''), '') || ')'"
)
_HAS_THE_LOCK = f"""
select {_WHO} from pg_locks l join pg_stat_activity a using (pid)
where locktype = 'advisory' and granted and objsubid = 1 and datname = current_database()
  and l.database = (select oid from pg_database where datname = current_database())
  and (classid::bigint << 32) | objid::bigint = hashtext('carillon.migrate')"""
# The oldest transactions first; of whose a migrator that is no superuser sees no times.
_USE_TABLES = f"""
select {_WHO} || ' uses ' || min(relation::regclass::text)
  || case when count(*) > 1 then ' and ' || count(*) - 1 || ' more' else '' end
  || coalesce(', for ' || extract(epoch from clock_timestamp() - xact_start)::bigint || ' s', '')
from (select distinct pid, relation from pg_locks join pg_class c on c.oid = relation
      where relnamespace = to_regnamespace('carillon') and relkind in ('r', 'p') and granted
        and database = (select oid from pg_database where datname = current_database())) held
  join pg_stat_activity a using (pid)
where pid <> pg_backend_pid()
group by pid, usename, application_name, xact_start order by xact_start nulls last limit 3"""

# The newest migration, and which one asks for the newest schedulers. Before 8 no migration said what it asks for.
_BOOKS = text("""
select coalesce(max(number), 0), coalesce((array_agg(name order by needed desc, number))[1], ''),
  coalesce(max(needed), 0)
from (select number, name, coalesce((to_jsonb(m) ->> 'compatible_from')::int, number) as needed
      from carillon.migrations m) books""")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long migrating waits, in seconds: for another that migrates; for a table that somebody uses, at each of some
    tries; and from one try to the next."""

    turn: float = 300.0
    table: float = 3.0
    tries: int = 5
    pause: float = 2.0


def expected_version() -> int:
    """The number of the newest migration file that this code comes with."""
    return max(int(file.name[:4]) for file in FOLDER.glob("[0-9]*.sql"))


def migrate(migration_url: str, logins: Iterable[Login] = (), patience: Patience = Patience()) -> int:
    """Brings the schema to this code's version and gives the logins; answers the version. Safe to repeat, and while
    others do the same. Errors: MigrationRefused; psycopg and SQLAlchemy errors as they come."""
    with psycopg.connect(migration_url, autocommit=True) as guard:
        _take_turn(guard, patience)
        _claim_roles(guard)
        # First of all by itself: it makes the book that Alembic writes in.
        guard.execute(_file("0001_foundation.sql"))
        _let_connect(guard)
        for login in logins:
            give_login(guard, login)
        row = guard.execute("select max(number) from carillon.migrations").fetchone()
        version = int(row[0]) if row else 0
        if version > expected_version():
            return version  # a newer release was here: nothing of it is undone
        _upgrade_patiently(guard, migration_url, patience)
    return expected_version()


def apply_file(connection: Connection, name: str) -> None:
    """Runs one migration file as it stands: no parameters, no escapes."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute(_file(name))


def _file(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def _wait_at_most(seconds: float) -> str:
    return f"set lock_timeout = {max(1, round(seconds * 1000))}"


def _take_turn(guard: psycopg.Connection, patience: Patience) -> None:
    guard.execute(_wait_at_most(patience.turn).encode())
    try:
        guard.execute(_LOCK)
    except LockNotAvailable:
        raise MigrationRefused(
            f"{_listed(guard, _HAS_THE_LOCK)} has been migrating this database for over {patience.turn:g} s, or holds"
            " the lock for it; let it end, or end it (select pg_terminate_backend(pid)), and migrate again"
        ) from None
    guard.execute(_wait_at_most(patience.table).encode())


def _claim_roles(guard: psycopg.Connection) -> None:
    try:
        guard.execute(_file("0000_roles.sql"))
    except ObjectNotInPrerequisiteState as error:
        raise MigrationRefused(f"{error.diag.message_primary}. {error.diag.message_hint}") from None


def _let_connect(guard: psycopg.Connection) -> None:
    """Also where the public may not. Without the right to say so, it is as the database's owner has it."""
    database = sql.Identifier(guard.info.dbname)
    groups = sql.SQL(", ").join(map(sql.Identifier, _GROUPS))
    guard.execute(sql.SQL("grant connect on database {} to {}").format(database, groups))


def _upgrade_patiently(guard: psycopg.Connection, migration_url: str, patience: Patience) -> None:
    """Tries again while others use the tables. Between two tries nobody waits for us."""
    in_the_way = ""
    for attempt in range(patience.tries):
        time.sleep(patience.pause if attempt else 0)
        try:
            return _upgrade(migration_url, patience)
        except (LockNotAvailable, DeadlockDetected):
            in_the_way = _listed(guard, _USE_TABLES) or in_the_way
    raise MigrationRefused(
        f"Carillon's tables are in use, and migrating gave up after {patience.tries} tries:"
        f" {in_the_way or 'nobody is seen there any more'}. Let it end, or end it (select pg_terminate_backend(pid)),"
        " and migrate again; schedulers go on meanwhile"
    )


def _listed(guard: psycopg.Connection, query: str) -> str:
    return "; ".join(row[0] for row in guard.execute(query.encode()).fetchall())


def _upgrade(migration_url: str, patience: Patience) -> None:
    engine = create_engine(make_url(migration_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("set role carillon_owner"))
        connection.execute(text(_wait_at_most(patience.table)))
        connection.commit()
        config = Config()
        config.set_main_option("script_location", str(FOLDER / "alembic"))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


@dataclass(frozen=True, slots=True)
class Schema:
    """The database's schema, as this code finds it. `version`: of its newest migration, 0 without any. `problem`: why
    this code cannot work with it; None if it can."""

    version: int
    problem: str | None

    @property
    def is_newer(self) -> bool:
        """Whether a newer release has migrated it."""
        return self.version > expected_version()


async def look_at_schema(connection: AsyncConnection) -> Schema:
    there = await connection.execute(text("select to_regclass('carillon.migrations') is not null"))
    if not there.scalar_one():
        return Schema(0, "the database has no carillon schema; run `python -m scheduler_service migrate`")
    version, name, needed = (await connection.execute(_BOOKS)).one()
    return Schema(version, _mismatch(version, name, needed))


def _mismatch(version: int, name: str, needed: int) -> str | None:
    own = expected_version()
    if version < own:
        return f"the schema is at {version}, this scheduler needs {own}; migrate it"
    if needed > own:
        return (
            f"the schema is at {version}, newer than this scheduler knows ({own}), and since the migration `{name}`"
            f" only schedulers that know {needed} can work with it; start a newer release, or restore the backup from"
            " before that migration"
        )
    return None
