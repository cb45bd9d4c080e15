"""A scheduler whose database was weakened says where, and serves no callers until it is mended."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from scheduler_service.store.database import Database
from scheduler_service.usecases.readiness import INSPECTION_SECONDS, Readiness
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.security.sql_case import Connection

MONTH = "runs_2199_01"


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


OWN = "(tenant_id = ( SELECT carillon.caller_tenant() AS caller_tenant))"
KEPT = "BEFORE DELETE OR UPDATE OR TRUNCATE FOR EACH STATEMENT EXECUTE FUNCTION carillon.refuse_change()"
OF_USERS = f"for select to carillon_api using {OWN}"
STRANGE = "is not of Carillon's making; remove it"
WEAKENED = {
    "alter table carillon.runs no force row level security": (
        "table carillon.runs: row level security is enabled and not forced; it must be enabled and forced"
    ),
    "alter table carillon.users disable row level security": (
        "table carillon.users: row level security is not enabled; it must be enabled and forced"
    ),
    "drop policy live_runs_select_user on carillon.live_runs": (
        f"table carillon.live_runs: policy live_runs_select_user is missing; it must be {OF_USERS}"
    ),
    "alter policy live_runs_select_user on carillon.live_runs using (true)": (
        "table carillon.live_runs: policy live_runs_select_user is for select to carillon_api using true; it must be "
        + OF_USERS
    ),
    "alter policy tenants_select_user on carillon.tenants to public": (
        f"table carillon.tenants: policy tenants_select_user is for select to public using {OWN}; it must be {OF_USERS}"
    ),
    "create policy helpful on carillon.jobs for all to carillon_api using (true)": (
        f"table carillon.jobs: policy helpful (for all to carillon_api using true) {STRANGE}"
    ),
    "create policy helpful on carillon.audit_seals to public using (true) with check (true)": (
        f"table carillon.audit_seals: policy helpful (for all to public using true with check true) {STRANGE}"
    ),
    "alter table carillon.runs disable trigger never_change": (
        f"table carillon.runs: trigger never_change is disabled: {KEPT}; it must be enabled: {KEPT}"
    ),
    "drop trigger never_change on carillon.gaps": (
        f"table carillon.gaps: trigger never_change is missing; it must be enabled: {KEPT}"
    ),
    "alter table carillon.gaps rename column reason to why": (
        "table carillon.gaps: column reason is missing; it must be text"
    ),
    "alter table carillon.backfills alter column runs type bigint": (
        "table carillon.backfills: column runs is bigint; it must be integer"
    ),
    "alter table carillon.users owner to carillon_auditor": (
        "table carillon.users: owner is carillon_auditor; it must be carillon_owner"
    ),
    "drop table carillon.users": "table carillon.users is missing",
    "grant delete on carillon.runs to carillon_engine": (
        "table carillon.runs: grants to carillon_engine is DELETE, INSERT, SELECT; it must be INSERT, SELECT"
    ),
    "grant select (secret_hash) on carillon.service_tokens to public": (
        "table carillon.service_tokens: grants to public (SELECT of secret_hash) " + STRANGE
    ),
    "grant execute on function carillon.clear_payloads to carillon_api": (
        "function carillon.clear_payloads(text,timestamp with time zone): grants to carillon_api (EXECUTE) is not of "
        "Carillon's making; remove it"
    ),
    "alter function carillon.drop_partitions reset search_path": (
        "function carillon.drop_partitions(interval): settings is lock_timeout=500ms; it must be "
        "search_path=pg_catalog, pg_temp, lock_timeout=500ms"
    ),
    "alter function carillon.caller_jobs security definer": (
        "function carillon.caller_jobs(): rights is its owner's; it must be its caller's"
    ),
    "create function carillon.shortcut() returns integer language sql security definer return 1": (
        "function carillon.shortcut(): rights is its owner's; it must be its caller's"
    ),
    "create table carillon.notes (note text)": (
        "table carillon.notes: row level security is not enabled; it must be enabled and forced"
    ),
    "alter view carillon.failed_runs reset (security_invoker)": (
        "view carillon.failed_runs: options is none; it must be security_invoker=true"
    ),
    f"create table carillon.{MONTH} partition of carillon.runs for values from (carillon.id_floor('2199-01-01'))"
    " to (carillon.id_floor('2199-02-01'))": (
        f"table carillon.{MONTH}: owner is carillon_admin; it must be carillon_owner"
    ),
}


@pytest.mark.parametrize("change", WEAKENED)
async def test_what_was_weakened_is_named_in_words(readiness: Readiness, admin: Connection, change: str) -> None:
    admin.execute(change.encode())
    assert await problem(readiness) == WEAKENED[change]


async def test_another_body_of_a_function_that_policies_ask_is_seen(readiness: Readiness, admin: Connection) -> None:
    admin.execute(
        "create or replace function carillon.caller_is(kind text) returns boolean language sql stable return true"
    )
    assert str(await problem(readiness)).startswith("function carillon.caller_is(text): body is ")


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
        for mend in ("force row level security", "enable trigger never_change", "owner to carillon_owner"):
            admin.execute(f"alter table {name} {mend}".encode())
        assert await problem(Readiness(database, None)) is None


async def test_what_people_add_for_themselves_is_let_be(readiness: Readiness, admin: Connection) -> None:
    for addition in (
        "alter table carillon.runs add column cost_centre text",
        "create index on carillon.runs (finished_at)",
        "create view carillon.for_me as select 1 as one",
        "create function carillon.mine() returns integer language sql return 1",
        "revoke execute on function carillon.mine from public",
        "create table carillon.notes (note text)",
        "alter table carillon.notes enable row level security, force row level security",
        "grant select on carillon.notes to carillon_admin",
    ):
        admin.execute(addition.encode())
    assert await problem(readiness) is None


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
