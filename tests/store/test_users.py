"""What operators say of the subjects of JWTs: the command, the table, the audit trail, and the replicas' look-ups."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from scheduler_service.__main__ import cli
from scheduler_service.domain.access import Kind, Origin, Principal
from scheduler_service.domain.errors import Forbidden, InvalidInput, NotFound
from scheduler_service.domain.user import Role, User
from scheduler_service.identity.users import UserDirectory
from scheduler_service.store.database import Database
from scheduler_service.usecases.users import list_users, remove_user, set_user
from tests.builders import ADMIN
from tests.conftest import DatabaseUrls

OPERATOR = Principal(Kind.OPERATOR, name="root", origin=Origin("host-1", "request-1", "users set"))
ALICE = User("auth0|alice", Role.ADMIN)
BOB = User("bob", Role.USER, "acme")


def told(users: list[User]) -> list[tuple[str, Role, str]]:
    return [(user.subject, user.role, user.tenant) for user in users]


def events(admin: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return admin.execute(
        "select principal, action, resource, tenant_id, before, after, request_id, address"
        " from carillon.audit_events order by event_id"
    ).fetchall()


async def test_users_are_set_listed_and_removed(database: Database) -> None:
    await set_user(database, OPERATOR, BOB)
    await set_user(database, OPERATOR, ALICE)
    assert told(await list_users(database, OPERATOR)) == [
        ("auth0|alice", Role.ADMIN, ""),
        ("bob", Role.USER, "acme"),
    ]
    await set_user(database, OPERATOR, User("bob", Role.ADMIN))
    await remove_user(database, OPERATOR, "auth0|alice")
    assert told(await list_users(database, OPERATOR)) == [("bob", Role.ADMIN, "")]
    with pytest.raises(NotFound, match=r"'auth0\|alice'"):
        await remove_user(database, OPERATOR, "auth0|alice")


async def test_each_change_is_in_the_audit_trail(database: Database, admin: psycopg.Connection[Any]) -> None:
    await set_user(database, OPERATOR, BOB)
    await set_user(database, OPERATOR, BOB)
    await set_user(database, OPERATOR, User("bob", Role.ADMIN))
    await remove_user(database, OPERATOR, "bob")
    who, where = ("operator:root", "users set", "users/bob"), ("request-1", "host-1")
    user = {"role": "user", "tenant": "acme"}
    assert events(admin) == [
        (*who, "acme", None, user, *where),
        (*who, "acme", user, {"role": "admin"}, *where),
        (*who, "", {"role": "admin"}, None, *where),
    ]


@pytest.mark.parametrize(
    ("user", "field"),
    [
        (User("", Role.ADMIN), "subject"),
        (User("x" * 256, Role.ADMIN), "subject"),
        (User("a\0b", Role.ADMIN), "subject"),
        (User("alice ", Role.ADMIN), "subject"),
        (User("\u202ealice", Role.ADMIN), "subject"),
        (User("ali\x1b[2Jce", Role.ADMIN), "subject"),
        (User("bob", Role.USER), "tenant"),
        (User("bob", Role.USER, "-"), "tenant"),
        (User("bob", Role.USER, "a b"), "tenant"),
        (User("bob", Role.ADMIN, "acme"), "tenant"),
    ],
)
async def test_who_cannot_be_one_is_refused(database: Database, user: User, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await set_user(database, OPERATOR, user)
    assert [violation.field for violation in refused.value.violations] == [field]


async def test_only_the_deployments_operators_manage_users(database: Database, admin: psycopg.Connection[Any]) -> None:
    for caller in (ADMIN, Principal(Kind.USER, name="u", tenant="acme")):
        for call in (
            set_user(database, caller, ALICE),
            list_users(database, caller),
            remove_user(database, caller, "a"),
        ):
            with pytest.raises((Forbidden, NotFound)):
                await call
    await set_user(database, OPERATOR, ALICE)
    async with database.acting_for(ADMIN) as tx:
        rows = await tx.connection.exec_driver_sql("select count(*) from carillon.users")
        assert rows.scalar_one() == 0


async def test_a_replica_knows_what_the_table_says(database: Database) -> None:
    directory = UserDirectory.of(database)
    await set_user(database, OPERATOR, BOB)
    found = await directory.find("bob")
    assert found is not None
    assert (found.role, found.tenant) == (Role.USER, "acme")
    assert await directory.find("nobody") is None


def run(monkeypatch: pytest.MonkeyPatch, urls: DatabaseUrls, *arguments: str) -> Result:
    monkeypatch.delenv("CARILLON_ENGINE_URL", raising=False)
    monkeypatch.setenv("CARILLON_DATABASE_URL", urls.api)
    return CliRunner().invoke(cli, ["users", *arguments])


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, admin: psycopg.Connection[Any]
) -> None:
    made = run(monkeypatch, database_urls, "set", "[bob]", "--role", "user", "--tenant", "acme")
    assert (made.exit_code, made.stdout) == (0, "")
    assert made.stderr == "[bob] is a user of tenant acme.\n"
    assert "[bob]" in run(monkeypatch, database_urls, "list").stdout
    [listed] = json.loads(run(monkeypatch, database_urls, "list", "--json").stdout)
    assert (listed["subject"], listed["role"], listed["tenant"]) == ("[bob]", "user", "acme")
    assert run(monkeypatch, database_urls, "remove", "[bob]").exit_code == 0
    assert json.loads(run(monkeypatch, database_urls, "list", "--json").stdout) == []
    assert [(event[1], event[2]) for event in events(admin)] == [
        ("users set", "users/[bob]"),
        ("users remove", "users/[bob]"),
    ]


def test_a_list_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, admin: psycopg.Connection[Any]
) -> None:
    admin.execute(
        "insert into carillon.users values (%s, 'admin', null, now(), now(), 'by\u202ehand')", ["\x1b]0;x\x07\u202eeve"]
    )
    shown = run(monkeypatch, database_urls, "list").stdout
    assert "\ufffd]0;x\ufffd\ufffdeve" in shown
    assert "by\ufffdhand" in shown
    removed = run(monkeypatch, database_urls, "remove", "\x1b]0;x\x07\u202eeve")
    assert (removed.exit_code, removed.stderr.isascii(), "\x1b" in removed.stderr) == (0, False, False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["set", "bob", "--role", "user"], "cannot name a tenant"),
        (["set", "bob", "--role", "admin", "--tenant", "acme"], "an admin has none"),
        (["set", "bob", "--role", "root"], "root"),
        (["set", "bob"], "--role"),
        (["remove", "nobody"], "there is no user 'nobody'"),
    ],
)
def test_a_wrong_command_says_what_to_write(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, arguments: list[str], sentence: str
) -> None:
    refused = run(monkeypatch, database_urls, *arguments)
    assert refused.exit_code == 2
    assert sentence in refused.stderr
