"""What goes with a login: its settings on every connection, and word of those that it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.engine.readiness import Readiness
from scheduler_service.store.database import Database
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, give_login, settings_of
from tests.builders import connect
from tests.conftest import DatabaseUrls

BY_HAND = {API_ROLE: "api_by_hand", ENGINE_ROLE: "engine_by_hand"}


@pytest.fixture
def logins(postgres: EmbeddedPostgres, database_urls: DatabaseUrls) -> Iterator[dict[str, Login]]:
    """Two logins that have rights and a password, and no more."""
    name = database_urls.api.rpartition("/")[2]
    made = {group: Login(group, postgres.url(user, "by-hand", name)) for group, user in BY_HAND.items()}
    with connect(database_urls.admin) as admin:
        for group, user in BY_HAND.items():
            role = sql.Identifier(user)
            admin.execute(
                sql.SQL("create role {} login password 'by-hand' in role {}").format(role, sql.Identifier(group))
            )
        yield made
        for user in BY_HAND.values():
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(user)))


def shown(url: str, names: list[str]) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("select n, current_setting(n) from unnest(%s::text[]) as n", [names]).fetchall())


@pytest.mark.parametrize("group", [API_ROLE, ENGINE_ROLE])
def test_a_login_that_is_given_has_its_settings_on_every_connection(
    logins: dict[str, Login], database_urls: DatabaseUrls, group: str
) -> None:
    wanted = dict(settings_of(group))
    assert shown(logins[group].url, list(wanted)) != wanted
    with connect(database_urls.admin) as admin:
        give_login(admin, logins[group])
        give_login(admin, logins[group])
    assert shown(logins[group].url, list(wanted)) == wanted


async def test_what_logins_made_by_hand_lack_is_said_as_sql_that_gives_it(
    logins: dict[str, Login], database_urls: DatabaseUrls
) -> None:
    database = Database(logins[API_ROLE].url, logins[ENGINE_ROLE].url, pool_size=1)
    api, engine = await database.what_logins_lack()
    assert 'alter role "api_by_hand" set "statement_timeout" = \'1min\'' in api
    assert "plan_cache_mode" not in api
    assert 'alter role "engine_by_hand" set "plan_cache_mode" = \'force_custom_plan\'' in engine
    with connect(database_urls.admin) as admin:
        admin.execute(f"{api}; {engine}".encode())
    await database.forget_connections()
    assert await database.what_logins_lack() == []
    await database.close()


async def test_a_replica_that_becomes_ready_has_advice_for_logins_made_by_hand(
    logins: dict[str, Login], database: Database
) -> None:
    given = Readiness(database, migrate=None)
    assert await given.look()
    assert given.advice == []
    lacking = Database(logins[API_ROLE].url, logins[ENGINE_ROLE].url, pool_size=1)
    readiness = Readiness(lacking, migrate=None)
    assert await readiness.look()
    assert (readiness.problem, len(readiness.advice)) == (None, 2)
    await lacking.close()


async def test_settings_given_by_a_migration_count_at_once(
    logins: dict[str, Login], database_urls: DatabaseUrls
) -> None:
    database = Database(logins[API_ROLE].url, logins[ENGINE_ROLE].url, pool_size=1)

    def migrate() -> None:
        with connect(database_urls.admin) as admin:
            for login in logins.values():
                give_login(admin, login)
            admin.execute("delete from carillon.migrations where number = 9999")

    with connect(database_urls.admin) as admin:
        admin.execute("insert into carillon.migrations (number, name) values (9999, 'in the way')")
    readiness = Readiness(database, migrate)
    await readiness.look()
    assert (readiness.problem, readiness.advice) == (None, [])
    await database.close()


def test_a_login_does_not_show_its_password(logins: dict[str, Login]) -> None:
    assert "by-hand" not in repr(logins)
