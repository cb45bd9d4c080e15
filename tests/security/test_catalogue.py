"""A scheduler whose database was weakened says where, and serves no callers until it is mended."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.engine.readiness import INSPECTION_SECONDS, Readiness
from scheduler_service.store.database import Database
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, give_login
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.security.sql_case import Connection
from tests.security.weakenings import STRANGE, WEAKENED


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[Connection]:
    with connect(database_urls.admin) as connection:
        yield connection


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(database: Database, clock: Clock) -> Readiness:
    return Readiness(database, None, clock)


async def problem(readiness: Readiness) -> str | None:
    await readiness.look()
    return readiness.problem


@pytest.mark.parametrize("change", WEAKENED)
async def test_what_was_weakened_is_named_in_words(readiness: Readiness, admin: Connection, change: str) -> None:
    admin.execute(change.encode())
    assert await problem(readiness) == WEAKENED[change]


async def test_another_body_of_a_function_that_policies_ask_is_seen(readiness: Readiness, admin: Connection) -> None:
    admin.execute(
        "create or replace function carillon.caller_is(kind text) returns boolean language sql stable return true"
    )
    assert str(await problem(readiness)).startswith("function carillon.caller_is(text): body is ")


async def test_other_defaults_of_a_function_are_seen(readiness: Readiness, admin: Connection) -> None:
    admin.execute(
        "do $$ begin execute replace(pg_get_functiondef('carillon.get_job_execution_history'::regproc),"
        " 'DEFAULT 50,', 'DEFAULT 5000,'); end $$"
    )
    assert str(await problem(readiness)).startswith(
        "function carillon.get_job_execution_history(text,integer,integer): declaration is "
        '(job text, "limit" integer DEFAULT 5000, '
    )


async def test_another_definition_of_a_view_is_seen(readiness: Readiness, admin: Connection) -> None:
    admin.execute(
        "do $$ begin execute 'create or replace view carillon.failed_runs with (security_invoker=true) as select * from"
        " (' || trim(';' from pg_get_viewdef('carillon.failed_runs'::regclass)) || ') v where false'; end $$"
    )
    assert str(await problem(readiness)).startswith("view carillon.failed_runs: definition is ")


@pytest.mark.parametrize(
    "change", ["drop table carillon.{0}", "alter table carillon.{1} detach partition carillon.{0}"]
)
@pytest.mark.parametrize("table", ["runs", "attempts", "items"])
async def test_a_month_that_runs_end_in_is_missed(
    readiness: Readiness, admin: Connection, table: str, change: str
) -> None:
    (month,) = admin.execute("select to_char(now() at time zone 'UTC', '_YYYY_MM')").fetchone() or ("",)
    admin.execute(change.format(table + month, table).encode())
    assert await problem(readiness) == (
        f"table carillon.{table}: this month's partition is not there (carillon.{table}{month}); it must be there"
    )


@pytest.mark.parametrize("table", ["runs", "attempts", "items"])
async def test_every_partition_is_looked_at(database: Database, admin: Connection, table: str) -> None:
    (name,) = admin.execute(
        "select max(inhrelid::regclass::text) from pg_inherits where inhparent = %s::regclass", [f"carillon.{table}"]
    ).fetchone() or ("",)
    for change, said in (
        ("no force row level security", "row level security is enabled and not forced; it must be enabled and forced"),
        ("disable trigger never_change", "trigger never_change is disabled"),
        ("owner to carillon_auditor", "owner is carillon_auditor; it must be carillon_owner"),
    ):
        admin.execute(f"alter table {name} {change}".encode())
        assert str(await problem(Readiness(database, None))).startswith(f"table {name}: {said}")
        for mend in ("force row level security", "enable always trigger never_change", "owner to carillon_owner"):
            admin.execute(f"alter table {name} {mend}".encode())
        assert await problem(Readiness(database, None)) is None


async def test_what_people_add_for_themselves_is_let_be(readiness: Readiness, admin: Connection, person: str) -> None:
    for addition in (
        "alter table carillon.runs add column cost_centre text",
        "create index on carillon.runs (finished_at)",
        "create view carillon.for_me as select 1 as one",
        "create function carillon.mine() returns integer language sql return 1",
        "revoke execute on function carillon.mine from public",
        "create table carillon.notes (note text)",
        "alter table carillon.notes enable row level security, force row level security",
        "grant select on carillon.notes to carillon_admin, carillon_auditor, carillon_backup",
        "create policy mine on carillon.notes to carillon_auditor using (true)",
        "create trigger mine before update on carillon.notes for each row execute function"
        " suppress_redundant_updates_trigger()",
        "create view carillon.mine with (security_invoker = on) as select * from carillon.runs",
        "create materialized view carillon.of_mine as select note from carillon.notes with no data",
        "create schema reports authorization carillon_test_person",
        "create view reports.mine as select * from carillon.runs",
        "alter view reports.mine owner to carillon_test_person",
        "create temporary view passing as select * from carillon.runs",
        "alter table carillon.jobs add constraint no_xyz check (job <> 'xyz') not valid",
    ):
        admin.execute(addition.encode())
    assert await problem(readiness) is None


GIVEN = [
    ("grant all on carillon.runs to {0}", "table carillon.runs: grants to {0} (DELETE, INSERT, "),
    (
        "grant select (name) on carillon.migrations to {0}",
        "table carillon.migrations: grants to {0} (SELECT of name) " + STRANGE,
    ),
    ("grant usage on schema carillon to {0}", "schema carillon: grants to {0} (USAGE) " + STRANGE),
    ("grant carillon_owner to {0}", "role carillon_owner: member {0} (has its rights) " + STRANGE),
    ("grant carillon_retention to {0}", "role carillon_retention: member {0} (has its rights) " + STRANGE),
    (
        "alter role {0} createrole; grant carillon_owner to {0} with inherit false",
        "role carillon_owner: member {0} (has its rights) " + STRANGE,
    ),
    (
        "alter role {0} createrole; grant carillon_retention to {0} with admin true, inherit false, set false",
        "role carillon_retention: member {0} (may grant it) " + STRANGE,
    ),
    (
        "grant carillon_backup to {0} with admin option",
        "role carillon_backup: member {0} (has its rights and may grant it) " + STRANGE,
    ),
    (
        "grant carillon_api to {0}",
        "{0} is a member of carillon_api and no login that `migrate` gave; revoke carillon_api from it",
    ),
    (
        "grant carillon_engine to {0} with inherit false",
        "{0} is a member of carillon_engine and no login that `migrate` gave; revoke carillon_engine from it",
    ),
    ("grant pg_read_all_data to carillon_auditor", "role carillon_auditor: membership in pg_read_all_data (granted) "),
    *(
        (f"alter role {role} {attribute}", f"role {role}: attributes is {attribute.upper()}; it must be none")
        for role in ("carillon_owner", "carillon_auditor", "carillon_backup", "carillon_retention")
        for attribute in ("login", "superuser", "createrole", "createdb", "replication")
    ),
    ("alter role carillon_auditor bypassrls", "role carillon_auditor: attributes is BYPASSRLS; it must be none"),
]
TAKEN_BACK = (
    "revoke pg_read_all_data from carillon_auditor",
    *(
        f"alter role {role} nologin nosuperuser nocreaterole nocreatedb noreplication"
        for role in ("carillon_owner", "carillon_auditor", "carillon_backup", "carillon_retention")
    ),
    "alter role carillon_auditor nobypassrls",
)


@pytest.fixture
def person(admin: Connection) -> Iterator[str]:
    """Somebody's login. Roles belong to the whole server, so what a test gives them is taken back."""
    name = "carillon_test_person"
    admin.execute(f"create role {name} login".encode())
    yield name
    admin.execute(f"drop owned by {name} cascade".encode())
    admin.execute(f"drop role {name}".encode())
    for statement in TAKEN_BACK:
        admin.execute(statement.encode())


@pytest.mark.parametrize(("change", "said"), GIVEN)
async def test_whoever_was_given_rights_is_named(
    database: Database, readiness: Readiness, admin: Connection, person: str, change: str, said: str
) -> None:
    assert await problem(readiness) is None
    admin.execute(change.format(person).encode())
    assert str(await problem(Readiness(database, None))).startswith(said.format(person))


async def test_who_may_migrate_is_no_stranger(
    database: Database, readiness: Readiness, admin: Connection, person: str
) -> None:
    """A migrator that is no superuser made the roles and becomes the owner."""
    admin.execute(f"alter role {person} createrole".encode())
    admin.execute(f"do $$ begin execute format('grant create on database %I to {person}', current_database()); end $$")
    admin.execute(f"grant carillon_owner to {person}".encode())
    for role in ("engine", "api", "auditor", "backup", "retention"):
        admin.execute(f"grant carillon_{role} to {person} with admin true, inherit false, set false".encode())
    assert await problem(readiness) is None
    admin.execute(f"grant carillon_retention to {person} with set true".encode())
    assert str(await problem(Readiness(database, None))).startswith(f"role carillon_retention: member {person} ")


async def test_people_who_look_and_who_back_up_are_no_strangers(
    database: Database, readiness: Readiness, admin: Connection, person: str
) -> None:
    admin.execute(f"grant carillon_auditor, carillon_backup to {person}".encode())
    admin.execute("alter role carillon_backup nobypassrls")
    assert await problem(readiness) is None
    admin.execute("alter role carillon_backup bypassrls")
    assert await problem(Readiness(database, None)) is None


@pytest.mark.parametrize("group", [API_ROLE, ENGINE_ROLE])
async def test_logins_of_other_schedulers_are_no_strangers(
    database: Database, readiness: Readiness, admin: Connection, postgres: EmbeddedPostgres, group: str
) -> None:
    """Those of another database of this server, or the next ones of this."""
    login = Login(group, postgres.url("carillon_test_other", "other"))
    give_login(admin, login)
    try:
        assert await problem(readiness) is None
        admin.execute(f"grant {group} to carillon_test_other with admin option".encode())
        assert str(await problem(Readiness(database, None))).startswith(f"carillon_test_other is a member of {group} ")
    finally:
        admin.execute("drop role carillon_test_other")


async def test_nothing_is_said_of_what_the_migrations_made(readiness: Readiness) -> None:
    assert await problem(readiness) is None


async def test_it_is_looked_at_each_minute_and_until_it_is_mended(
    readiness: Readiness, clock: Clock, admin: Connection
) -> None:
    assert await problem(readiness) is None
    admin.execute("alter table carillon.jobs no force row level security")
    clock.now += INSPECTION_SECONDS - 1
    assert await problem(readiness) is None
    clock.now += 1
    assert "carillon.jobs" in str(await problem(readiness))
    admin.execute("alter table carillon.jobs force row level security")
    assert await problem(readiness) is None


@pytest.fixture
async def logged_in(database_urls: DatabaseUrls, admin: Connection) -> AsyncIterator[Database]:
    """Through logins of other names, each a member of its role."""
    api, engine = "carillon_test_api", "carillon_test_engine"
    for name, group in ((api, "carillon_api"), (engine, "carillon_engine")):
        admin.execute(f"create role {name} login password 'test' in role {group}".encode())
    address = database_urls.api.rpartition("@")[2]
    database = Database(f"postgresql://{api}:test@{address}", f"postgresql://{engine}:test@{address}")
    yield database
    await database.close()
    for name in (api, engine):
        admin.execute(f"drop owned by {name} cascade".encode())
        admin.execute(f"drop role {name}".encode())


@pytest.mark.parametrize("login", ["api", "engine"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("alter role {} superuser", "is a superuser"),
        ("alter role {} bypassrls", "may bypass row level security"),
        ("alter role {} createrole", "may create roles"),
        ("alter role {} createdb", "may create databases"),
        ("alter role {} replication", "may replicate"),
        ("grant carillon_owner to {}", "is a member of carillon_owner"),
        ("grant carillon_retention to {} with inherit false", "is a member of carillon_retention"),
        ("grant pg_write_all_data to {}", "is a member of pg_write_all_data"),
        ("create table carillon.own (); alter table carillon.own owner to {}", "owns carillon.own"),
    ],
)
async def test_a_login_with_other_rights_than_its_own_is_refused(
    logged_in: Database, admin: Connection, login: str, change: str, said: str
) -> None:
    group = f"carillon_{login}"
    name = f"carillon_test_{login}"
    assert await problem(Readiness(logged_in, None)) is None
    admin.execute(change.format(name).encode())
    found = await problem(Readiness(logged_in, None))
    assert found == f"the login {name} {said}; it must have the rights of {group} and no others"


@pytest.mark.parametrize("login", ["api", "engine"])
async def test_a_login_without_its_role_is_refused(logged_in: Database, admin: Connection, login: str) -> None:
    admin.execute(f"revoke carillon_{login} from carillon_test_{login}".encode())
    readiness = Readiness(logged_in, None)
    assert re.search("is not a member of carillon_engine|permission denied for schema", str(await problem(readiness)))
    admin.execute(f"grant carillon_{login} to carillon_test_{login}".encode())
    assert await problem(readiness) is None


@pytest.mark.parametrize("login", ["api", "engine"])
@pytest.mark.parametrize("attribute", ["superuser", "bypassrls", "createrole", "replication"])
async def test_the_role_of_a_login_is_looked_at_as_the_login_itself(
    logged_in: Database, admin: Connection, login: str, attribute: str
) -> None:
    admin.execute(f"alter role carillon_{login} {attribute}".encode())
    try:
        found = await problem(Readiness(logged_in, None))
    finally:
        admin.execute(f"alter role carillon_{login} no{attribute}".encode())
    assert found == f"role carillon_{login}: attributes is {attribute.upper()}; it must be none"


@pytest.mark.parametrize("login", ["api", "engine"])
@pytest.mark.parametrize(("setting", "value"), [("session_replication_role", "replica"), ("synchronous_commit", "off")])
@pytest.mark.parametrize("where", ["role {0}", "role {0} in database {1}", "database {1}"])
async def test_a_login_whose_settings_undo_what_is_kept_is_refused(
    logged_in: Database, admin: Connection, login: str, setting: str, value: str, where: str
) -> None:
    name = f"carillon_test_{login}"
    admin.execute(f"alter {where.format(name, admin.info.dbname)} set {setting} = '{value}'".encode())
    found = str(await problem(Readiness(logged_in, None)))
    # What is set for the database counts for both, and the engine's is looked at first.
    said = "carillon_test_engine" if where.startswith("database") else name
    assert found == f"the login {said} has {setting} {value}; reset it on the login and the database"
