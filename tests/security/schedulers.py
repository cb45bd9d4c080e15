"""A whole scheduler in the test's process, on free ports, with the settings of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from local_stack.secrets import admin_jwt
from scheduler_service.app import App
from scheduler_service.settings import read_settings
from tests import canary
from tests.conftest import DatabaseUrls
from tests.security.authority import Pair

JWT_SECRET = "a-secret-of-these-tests-of-32-or-more-characters"
WORKER_TOKEN = canary.token("worker")
EMAIL_TOKEN = canary.token("email")


def admin() -> str:
    return admin_jwt(JWT_SECRET)


def tls(pair: Pair) -> dict[str, Any]:
    """The settings that name this pair."""
    return {"tls_certificate_file": pair.certificate, "tls_key_file": pair.key}


@asynccontextmanager
async def scheduler(urls: DatabaseUrls, **settings: Any) -> AsyncIterator[App]:
    given = {
        "database_url": urls.api,
        "engine_url": urls.engine,
        "port": 0,
        "metrics_port": 0,
        "drain_seconds": 1,
        "service_tokens": f"*={WORKER_TOKEN},email-service={EMAIL_TOKEN}",
        "development_jwt_secret": JWT_SECRET,
    }
    app = App(read_settings(**(given | settings)))
    try:
        await app.start()
        try:
            yield app
        finally:
            await app.drain()
    finally:
        await app.close()
