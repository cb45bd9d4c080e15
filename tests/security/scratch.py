"""A database for the commands of this folder, which run outside pytest."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack.postgres import ADMIN, EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login
from scheduler_service.store.migrations import migrate
from tests.conftest import DatabaseUrls

# What a crash leaves is on trial elsewhere.
_SETTINGS = {"fsync": "off", "synchronous_commit": "off"}


@contextmanager
def scratch_database() -> Iterator[DatabaseUrls]:
    """A migrated database on a server of its own, gone afterwards."""
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="carillon-security-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres", settings=_SETTINGS)
        try:
            server.start()
            server.create_database("carillon")
            urls = DatabaseUrls(
                api=server.url(API_ROLE, password), engine=server.url(ENGINE_ROLE, password), admin=server.url(ADMIN)
            )
            migrate(urls.admin, [Login(API_ROLE, urls.api), Login(ENGINE_ROLE, urls.engine)])
            yield urls
        finally:
            server.remove()
