"""Who may do what to which table, by SQL: every role, every table and partition of the catalogue, every verb."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.security.sql_case import CALLERS, FORGERS, POWERLESS, Caller, Connection, acting, fill, logins

VERBS = ("select", "insert", "update", "delete", "truncate")
# What comes of each verb, in that order. `.` permission denied; `0` allowed, and policies leave no row; `o` some rows,
# the caller's own; `*` all rows, or done; `!` refused by the trigger that keeps records. `nobody`: POWERLESS.
EXPECTED = """\
#                  owner engine admin service user operator auditor backup retention nobody
alembic_version    ***** ..... ..... ..... ..... ..... *.... *.... ..... .....
attempts           00!!! **... *.... o.... o.... 0.... *.... *.... *.!.. 0....
attempts_*         00!!! ..... ..... ..... ..... ..... ..... *.... ..... .....
audit_events       00!!! **... *o... 0o... 0o... *o... *.... *.... .0... 00...
audit_seals        00!!! **... *.... 0.... 0.... *.... *.... *.... ..... 0....
audit_unsealed     0*00* **.*. *0... 00... 00... *0... *.... *.... .*... 00...
backfills          0000! ..... ***.. 000.. 000.. 000.. *.... *.... ..... 000..
gaps               00!!! **... **... oo... oo... 00... *.... *.... ..... 00...
items              00!!! **... *.... o.... o.... 0.... *.... *.... *..!. 0....
items_*            00!!! ..... ..... ..... ..... ..... ..... *.... ..... .....
job_changes        00!!! *.... **... oo... o0... 00... *.... *.... ..... 00...
job_stats          0000* **.*. *0... o0... 00... 00... *.... *.... ..... 00...
jobs               0000! *.... *0*.. ooo.. o00.. 000.. *.... *.... *.... 000..
live_runs          *000* ****. ****. oooo. oooo. 0000. *.... *.... *.... 0000.
migrations         **00* *.... *.... *.... *.... *.... *.... *.... ..... *....
pulses             0000* ****. ..... ..... ..... ..... *.... *.... ..... .....
remedies           00!!! ..... **... oo... oo... 00... *.... *.... ..... 00...
requests           0000* *..*. oo... oo... oo... oo... *.... *.... ..... 00...
retries            00!!! ..... **... o0... o0... 00... *.... *.... ..... 00...
run_keys           0000* ..... **... oo... 00... 00... *.... *.... ..... 00...
runs               00!!! **... **... oo... oo... 00... *.... *.... *.!.. 00...
runs_*             00!!! ..... ..... ..... ..... ..... ..... *.... ..... .....
schedule_revisions 00!!! *.... **... oo... oo... 00... *.... *.... ..... 00...
schedules          0000! *.*.. ***.. ooo.. ooo.. 000.. *.... *.... ..... 000..
service_tokens     0000* *.*.. 000.. 000.. 000.. ***.. *.... *.... ..... 000..
services           0000! *.... *00.. ooo.. 000.. 000.. *.... *.... ..... 000..
sessions           0000* ****. *.... o.... o.... 0.... *.... *.... ..... 0....
tenants            0000* ..... ****. *000. ooo0. 0000. *.... *.... ..... 0000.
time_zone_rules    0000* ***.. ..... ..... ..... ..... *.... *.... ..... .....
users              0000* *.... 0000. 0000. 0000. ****. *.... *.... ..... 0000.
"""
NOBODY = "nobody"


def expected() -> dict[str, dict[str, str]]:
    """For each kind of table, what each caller meets."""
    header, *lines = [line.lstrip("# ").split() for line in EXPECTED.splitlines()]
    return {kind: dict(zip(header, met, strict=True)) for kind, *met in lines}


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[Connection]:
    with connect(database_urls.admin) as connection, logins(connection):
        fill(connection)
        yield connection


class Table:
    """A table or partition. `kind` is its name, or `runs_*` for a partition of runs."""

    def __init__(self, admin: Connection, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.full_name = sql.Identifier("carillon", name)
        rows = admin.execute(sql.SQL("select to_jsonb(t)::text from {} t").format(self.full_name))
        self.rows: list[str] = [row[0] for row in rows]

    def columns(self, admin: Connection, verb: str) -> list[sql.Identifier]:
        """Those that the role of this moment may read, write or change."""
        names = admin.execute(
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
            " and (attidentity = '' or %s = 'insert') and has_column_privilege(attrelid, attnum, %s) order by attnum",
            [f"carillon.{self.name}", verb, verb],
        )
        return [sql.Identifier(name) for (name,) in names]


def tables_of(admin: Connection) -> list[Table]:
    found = admin.execute(
        "select c.relname, coalesce(p.relname || '_*', c.relname) from pg_class c"
        " left join pg_inherits i on i.inhrelid = c.oid left join pg_class p on p.oid = i.inhparent"
        " where c.relnamespace = 'carillon'::regnamespace and c.relkind in ('r', 'p', 'f') order by 1"
    ).fetchall()
    return [Table(admin, name, kind) for name, kind in found]


def attempt(admin: Connection, table: Table, verb: str, row: str = "") -> int | str:
    """How many rows a verb reaches, or the letter for why it does not."""
    try:
        with admin.transaction(force_rollback=True):
            return _do(admin, table, verb, row)
    except psycopg.errors.InsufficientPrivilege as error:
        said = str(error)
        return "!" if "record of what happened" in said else 0 if "row-level security" in said else "."
    except psycopg.errors.IntegrityError:
        return 1  # rights and policies are asked before keys are


def _do(admin: Connection, table: Table, verb: str, row: str) -> int:
    name = table.full_name
    if verb == "select":
        return len(admin.execute(sql.SQL("select {} from {}").format(_some(admin, table, verb), name)).fetchall())
    if verb == "insert":
        columns = sql.SQL(", ").join(table.columns(admin, verb) or [_first(admin, table)])
        statement = "insert into {0} ({1}) overriding system value select {1} from jsonb_populate_record(null::{0}, %s)"
        return admin.execute(sql.SQL(statement).format(name, columns), [row]).rowcount
    if verb == "update":
        column = (table.columns(admin, "update") or [_first(admin, table)])[0]
        return admin.execute(sql.SQL("update {0} set {1} = {1}").format(name, column)).rowcount
    if verb == "delete":
        return admin.execute(sql.SQL("delete from {}").format(name)).rowcount
    admin.execute(sql.SQL("truncate {} cascade").format(name))
    return len(table.rows)


def _some(admin: Connection, table: Table, verb: str) -> sql.Composable:
    columns = table.columns(admin, verb)
    return sql.SQL(", ").join(columns) if columns else sql.SQL("*")


def _first(admin: Connection, table: Table) -> sql.Identifier:
    row: Any = admin.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and attidentity = ''"
        " order by attnum limit 1",
        [f"carillon.{table.name}"],
    ).fetchone()
    return sql.Identifier(row[0])


def cell(admin: Connection, table: Table, verb: str) -> str:
    if verb == "insert":
        reached = [attempt(admin, table, verb, row) for row in table.rows or ["{}"]]
        letters = {each for each in reached if isinstance(each, str)}
        assert len(letters) <= 1, (table.name, reached)
        outcome: int | str = letters.pop() if letters else sum(int(each) for each in reached)
    else:
        outcome = attempt(admin, table, verb)
    if isinstance(outcome, str):
        return outcome
    return "0" if outcome == 0 else "*" if outcome == len(table.rows) else "o"


def cells(admin: Connection, caller: Caller, table: Table) -> str:
    with acting(admin, caller):
        return "".join(cell(admin, table, verb) for verb in VERBS)


def met(admin: Connection, caller: Caller) -> dict[str, str]:
    return {table.name: cells(admin, caller, table) for table in tables_of(admin)}


def wanted(admin: Connection, caller: str) -> dict[str, str]:
    """As the table above says it. Of no rows, all are none."""
    known = expected()
    return {
        table.name: known[table.kind][caller] if table.rows else known[table.kind][caller].replace("*", "0")
        for table in tables_of(admin)
    }


def test_every_table_has_its_line_and_rows_that_tell(admin: Connection) -> None:
    tables = tables_of(admin)
    assert {table.kind for table in tables} == set(expected())
    assert [table.name for table in tables if not table.rows and not table.kind.endswith("*")] == []
    assert {table.kind for table in tables if table.rows} == set(expected())


@pytest.mark.parametrize("caller", CALLERS)
def test_a_role_does_what_its_column_says_and_nothing_else(admin: Connection, caller: str) -> None:
    assert met(admin, CALLERS[caller]) == wanted(admin, caller)


@pytest.mark.parametrize("caller", POWERLESS)
def test_a_caller_that_is_nobody_reaches_no_row(admin: Connection, caller: str) -> None:
    assert met(admin, POWERLESS[caller]) == wanted(admin, NOBODY)


def test_what_a_person_says_to_be_gives_no_rights(admin: Connection) -> None:
    assert set(met(admin, FORGERS["stranger"]).values()) == {"....."}
    assert met(admin, FORGERS["auditor who says admin"]) == wanted(admin, "auditor")


def test_a_user_sees_its_tenants_rows_and_a_service_its_jobs(admin: Connection) -> None:
    for caller, column, own in (("user", "tenant_id", "acme"), ("service", "service", "email")):
        with acting(admin, CALLERS[caller]):
            for table in ("schedules", "live_runs", "runs", "attempts", "items"):
                query = f"select distinct {column} from carillon.{table} join carillon.jobs using (job_id)"
                assert admin.execute(query.encode()).fetchall() == [(own,)], (caller, table)


@pytest.mark.parametrize("caller", ["admin", "operator", "auditor", "service", "retention"])
def test_hashes_of_secrets_are_for_the_engine_and_backups(admin: Connection, caller: str) -> None:
    query = b"select secret_hash from carillon.service_tokens"
    with acting(admin, CALLERS[caller]), pytest.raises(psycopg.errors.InsufficientPrivilege):
        admin.execute(query)
    for allowed in ("engine", "backup"):
        with acting(admin, CALLERS[allowed]):
            assert len(admin.execute(query).fetchall()) == 1


FUNCTIONS = {
    "carillon.create_partitions(integer)": {"engine"},
    "carillon.drop_partitions(interval)": {"engine"},
    "carillon.clear_payloads(text,timestamp with time zone)": {"engine", "retention"},
    "carillon.record_as_login(text,text,jsonb)": {"retention"},
    "carillon.job_named(text)": {"auditor"},
    "carillon.rows_asked_for(text,integer)": {"auditor"},
    "carillon.get_job_execution_history(text,integer,integer)": {"auditor"},
    "carillon.get_job_execution_stats(text,timestamp with time zone)": {"auditor"},
    "carillon.id_floor(timestamp with time zone)": {"engine", "admin", "auditor", "retention"},
    "carillon.caller_is(text)": {"admin"},
    "carillon.caller_service()": {"admin"},
    "carillon.caller_tenant()": {"admin"},
    "carillon.caller_jobs()": {"admin"},
}
"""Who may call what, beside the owner; `admin` stands for the API's role. Triggers' functions are nobody's to call."""


@pytest.mark.parametrize("caller", ["engine", "admin", "auditor", "backup", "retention"])
def test_a_role_calls_its_functions_and_no_others(admin: Connection, caller: str) -> None:
    callable_by_role = admin.execute(
        "select oid::regprocedure::text from pg_proc where pronamespace = 'carillon'::regnamespace"
        " and has_function_privilege(%s, oid, 'execute')",
        [CALLERS[caller].login],
    )
    assert {name for (name,) in callable_by_role} == {name for name, who in FUNCTIONS.items() if caller in who}


def test_three_functions_have_their_owners_rights_and_say_where_they_look(admin: Connection) -> None:
    found = admin.execute(
        "select oid::regprocedure::text, pg_get_userbyid(proowner)::text, proconfig[1] from pg_proc"
        " where prosecdef and pronamespace = 'carillon'::regnamespace order by 1"
    ).fetchall()
    pinned = "search_path=pg_catalog, pg_temp"
    assert found == [
        ("carillon.clear_payloads(text,timestamp with time zone)", "carillon_retention", pinned),
        ("carillon.create_partitions(integer)", "carillon_owner", pinned),
        ("carillon.drop_partitions(interval)", "carillon_owner", pinned),
    ]


def test_policies_are_named_by_table_verb_and_whom_they_are_for_and_say_why(admin: Connection) -> None:
    policies = admin.execute(
        "select p.polname, c.relname, p.polcmd, obj_description(p.oid), p.polqual is not null,"
        " p.polwithcheck is not null from pg_policy p join pg_class c on c.oid = p.polrelid"
    ).fetchall()
    assert len(policies) > 100
    who = "engine|admin|service|user|operator|caller|owner|auditor|retention"
    forms = {
        "r": ("select", True, False),
        "a": ("insert", False, True),
        "w": ("update", True, True),
        "d": ("delete", True, False),
    }
    for name, table, command, says, using, check in policies:
        verb, *clauses = forms[command]
        assert re.fullmatch(f"{table}_{verb}_({who})", name), name
        assert says, name
        assert [using, check] == clauses, name
