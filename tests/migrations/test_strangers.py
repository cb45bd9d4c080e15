"""Migrating where others have been first: roles of theirs, tables of theirs, and transactions that do not end."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.errors import MigrationRefused
from scheduler_service.store.logins import Login
from scheduler_service.store.migrations import FOLDER, Patience, expected_version, migrate
from tests.builders import connect
from tests.migrations.catalogue import catalogue
from tests.security.sql_case import Connection

ROLES = [f"carillon_{name}" for name in ("owner", "engine", "api", "auditor", "backup", "retention")]
HASTY = Patience(turn=0.2, table=0.2, tries=2, pause=0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A server without any role of Carillon's."""
    own = EmbeddedPostgres(Path(tmp_path_factory.mktemp("own")) / "own", version=postgres.version)
    own.start()
    yield own
    own.remove()


@pytest.fixture
def url(server: EmbeddedPostgres) -> Iterator[str]:
    """A superuser's, of an empty database. The roles go with it."""
    server.create_database("fresh")
    yield server.url("carillon_admin", database="fresh")
    server.drop_database("fresh")
    server.drop_database("another")
    with connect(server.url("carillon_admin", database="postgres")) as admin:
        strangers = "select rolname from pg_roles where rolname !~ '^pg_' and rolname <> 'carillon_admin'"
        for (role,) in admin.execute(strangers).fetchall():
            admin.execute(f"drop owned by {role}".encode())
        for (role,) in admin.execute(strangers).fetchall():
            admin.execute(f"drop role {role}".encode())


@pytest.fixture
def admin(url: str) -> Iterator[Connection]:
    with connect(url) as connection:
        yield connection


def up_to(admin: Connection, number: int) -> None:
    for file in sorted(FOLDER.glob("*.sql")):
        if int(file.name[:4]) <= number:
            admin.execute(file.read_bytes())


def is_untouched(admin: Connection) -> bool:
    return admin.execute("select to_regnamespace('carillon') is null").fetchone() == (True,)


def told(refused: pytest.ExceptionInfo[MigrationRefused]) -> list[str]:
    """The SQL that the sentence ends with."""
    return str(refused.value).partition("as a superuser: ")[2].split("; ")


@pytest.mark.parametrize(
    ("attribute", "fault"),
    [
        ("superuser", "is a superuser"),
        ("bypassrls", "may bypass row level security"),
        ("createrole", "may create roles"),
        ("createdb", "may create databases"),
        ("replication", "may replicate"),
        ("login", "may log in"),
    ],
)
def test_roles_that_were_there_first_and_may_more_are_refused(
    url: str, admin: Connection, attribute: str, fault: str
) -> None:
    for role in ROLES:
        admin.execute(f"create role {role} {attribute}".encode())
    at_fault = [role for role in ROLES if (role, attribute) != ("carillon_backup", "bypassrls")]
    with pytest.raises(MigrationRefused) as refused:
        migrate(url)
    assert is_untouched(admin)
    for role in ROLES:
        assert (f"{role} {fault}" in str(refused.value)) == (role in at_fault)
    assert set(told(refused)) == {f"alter role {role} no{attribute}" for role in at_fault}
    for statement in told(refused):
        admin.execute(statement.encode())
    assert migrate(url) == expected_version()


def test_roles_that_somebody_else_may_give_away_are_refused_and_it_says_how_to_end_that(
    server: EmbeddedPostgres, url: str, admin: Connection
) -> None:
    """Who makes a role keeps the right to grant it, to itself too, at any time."""
    admin.execute("create role squatter login createrole password 'squatter'")
    with psycopg.connect(server.url("squatter", "squatter", "postgres"), autocommit=True) as squatter:
        squatter.execute("set createrole_self_grant = 'set, inherit'")
        for role in ROLES:
            squatter.execute(f"create role {role}".encode())
    with pytest.raises(MigrationRefused) as refused:
        migrate(url)
    assert is_untouched(admin)
    for role in ROLES:
        assert f"squatter may grant {role} to anybody" in str(refused.value)
    for statement in told(refused):
        admin.execute(statement.encode())
    assert migrate(url) == expected_version()
    for role in ROLES:
        assert admin.execute("select pg_has_role('squatter', %s, 'member')", [role]).fetchone() == (False,)


@pytest.mark.parametrize("role", ["carillon_owner", "carillon_retention"])
def test_nobody_is_a_member_of_the_owner_or_of_who_clears(url: str, admin: Connection, role: str) -> None:
    admin.execute(f"create role {role}".encode())
    admin.execute(f"create role jane login in role {role}".encode())
    with pytest.raises(MigrationRefused, match=f"jane is a member of {role}"):
        migrate(url)
    assert is_untouched(admin)


def test_several_databases_of_a_server_share_the_roles_their_logins_and_their_people(
    server: EmbeddedPostgres, url: str, admin: Connection
) -> None:
    logins = [Login("carillon_api", server.url("carillon_api", "a")), Login("carillon_engine", server.url("mine", "e"))]
    migrate(url, logins)
    admin.execute("create role jane login in role carillon_auditor")
    server.create_database("another")
    another = server.url("carillon_admin", database="another")
    assert migrate(another, logins) == expected_version()
    assert catalogue(another) == catalogue(url)


def test_psql_refuses_strange_roles_too(server: EmbeddedPostgres, admin: Connection) -> None:
    admin.execute("create role carillon_retention login")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="carillon_retention may log in"):
        up_to(admin, 1)


def test_tables_views_and_functions_of_others_in_the_schema_are_let_be(
    server: EmbeddedPostgres, url: str, admin: Connection
) -> None:
    up_to(admin, 5)
    admin.execute("create role jane login password 'jane'")
    admin.execute("grant usage, create on schema carillon to jane")
    for owner in ("jane", "carillon_owner"):
        admin.execute(f"set role {owner}".encode())
        admin.execute(f"create table carillon.notes_of_{owner} (id bigint generated always as identity)".encode())
        admin.execute(f"alter table carillon.notes_of_{owner} enable row level security".encode())
        admin.execute(f"create policy mine on carillon.notes_of_{owner} using (true)".encode())
        admin.execute(f"grant select on carillon.notes_of_{owner} to carillon_api, carillon_engine".encode())
        admin.execute(f"create view carillon.seen_by_{owner} as select 1 as one".encode())
        admin.execute(f"create sequence carillon.counted_by_{owner}".encode())
        admin.execute(f"create function carillon.ask_{owner}() returns int return 1".encode())
        admin.execute("reset role")

    def theirs() -> list[str]:
        return [line for line in catalogue(url) if re.search("_(jane|carillon_owner)", line)]

    before = theirs()
    assert len(before) > 12
    assert migrate(url) == expected_version()
    assert theirs() == before


def test_a_long_reader_is_named_and_nobody_waits_behind_the_migration(
    server: EmbeddedPostgres, url: str, admin: Connection
) -> None:
    up_to(admin, 5)
    refused: list[str] = []

    def try_to_migrate() -> None:
        with pytest.raises(MigrationRefused) as refusal:
            migrate(url, patience=HASTY)
        refused.append(str(refusal.value))

    with psycopg.connect(url, application_name="pg_dump") as reader:
        reader.execute("select count(*) from carillon.jobs")
        trying = threading.Thread(target=try_to_migrate)
        trying.start()
        admin.execute("set lock_timeout = '30 s'")
        while trying.is_alive():
            admin.execute("select count(*) from carillon.jobs")
        trying.join()
        (sentence,) = refused
        assert f"pid {reader.info.backend_pid} (login carillon_admin, pg_dump) uses carillon.jobs" in sentence
        assert "gave up after 2 tries" in sentence
        assert "pg_terminate_backend" in sentence
    assert migrate(url, patience=HASTY) == expected_version()


def test_a_reader_that_ends_in_time_only_delays_it(url: str, admin: Connection) -> None:
    up_to(admin, 5)
    with psycopg.connect(url) as reader:
        reader.execute("select count(*) from carillon.jobs")
        migrating = threading.Thread(target=migrate, args=[url], kwargs={"patience": Patience(pause=0.1, tries=600)})
        migrating.start()
        waiting = "select count(*) from pg_locks where not granted and relation = 'carillon.jobs'::regclass"
        while admin.execute(waiting).fetchone() == (0,):
            assert migrating.is_alive()
    migrating.join()
    assert admin.execute("select max(number) from carillon.migrations").fetchone() == (expected_version(),)


def test_whoever_holds_the_migrations_lock_is_named(url: str, admin: Connection) -> None:
    admin.execute("set application_name = 'stuck'")
    admin.execute("select pg_advisory_lock(hashtext('carillon.migrate'))")
    mine = rf"pid {admin.info.backend_pid} \(login carillon_admin, stuck\) has been migrating this database"
    with pytest.raises(MigrationRefused, match=mine):
        migrate(url, patience=HASTY)


def test_the_logins_may_connect_where_the_public_may_not(server: EmbeddedPostgres, url: str, admin: Connection) -> None:
    admin.execute("revoke connect, temporary on database fresh from public")
    admin.execute("create role stranger login password 'stranger'")
    migrate(url, [Login("carillon_engine", server.url("mine", "secret", "fresh"))])
    psycopg.connect(server.url("mine", "secret", "fresh")).close()
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(server.url("stranger", "stranger", "fresh"))
