"""Databases to be taken away: one that tests share, behind proxies, and servers of a test's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from local_stack.ports import LOCALHOST
from local_stack.postgres import ADMIN, EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, give_login
from tests import canary
from tests.conftest import MIGRATIONS, DatabaseUrls
from tests.e2e.database_away.place import through
from tests.faults.proxy import FaultProxy
from tests.ports import lasting_port

_PASSWORD = canary.secret("database")
_numbers = itertools.count()


@dataclass(frozen=True)
class Links:
    """What is between a scheduler and its database: a proxy for each of its two logins."""

    api: FaultProxy
    engine: FaultProxy

    def urls(self, direct: DatabaseUrls) -> DatabaseUrls:
        return DatabaseUrls(through(direct.api, self.api), through(direct.engine, self.engine), direct.admin)


@pytest.fixture
def links(postgres: EmbeddedPostgres) -> Iterator[Links]:
    """To the server that all tests of this process share."""
    target = (LOCALHOST, postgres.port)
    with FaultProxy(target) as api, FaultProxy(target) as engine:
        yield Links(api, engine)


@dataclass(frozen=True)
class Taken:
    """A server that can be stopped, and a database of it, to which one proxy leads. `admin` is past the proxy."""

    server: EmbeddedPostgres
    proxy: FaultProxy
    urls: DatabaseUrls
    name: str

    def admin_url(self) -> str:
        """Past whichever server the proxy leads to now."""
        url = self.server.url(ADMIN, database=self.name)
        return url.replace(f":{self.server.port}/", f":{self.proxy.target[1]}/")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, always on the same port, with a migrated template database."""
    home = tmp_path_factory.mktemp("taken") / "data"
    version = int(os.environ.get("CARILLON_TEST_POSTGRES", "18"))
    server = EmbeddedPostgres(home, port=lasting_port(), version=version)
    server.start()
    try:
        server.create_database("template_carillon")
        with psycopg.connect(server.url(ADMIN, database="template_carillon"), autocommit=True) as admin:
            for file in sorted(MIGRATIONS.glob("*.sql")):
                admin.execute(file.read_bytes())
            for role in (API_ROLE, ENGINE_ROLE):
                give_login(admin, Login(role, server.url(role, _PASSWORD)))
        yield server
    finally:
        server.remove()


@pytest.fixture
def taken(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Taken]:
    server.start()
    name = f"taken_{next(_numbers)}"
    server.create_database(name, template="template_carillon")
    with FaultProxy((LOCALHOST, server.port)) as proxy:
        api, engine = (through(server.url(role, _PASSWORD, name), proxy) for role in (API_ROLE, ENGINE_ROLE))
        yield Taken(server, proxy, DatabaseUrls(api, engine, server.url(ADMIN, database=name)), name)
    server.start()
    server.drop_database(name)
