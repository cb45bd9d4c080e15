"""A whole scheduler whose JWTs are verified by a key server's set, with roles from claims and from the users' table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from carillon.v1 import job_service_pb2, job_service_pb2_grpc

from scheduler_service.app import App
from scheduler_service.domain.access import Kind, Origin, Principal
from scheduler_service.domain.user import Role, User
from scheduler_service.usecases.users import remove_user, set_user
from tests.conftest import DatabaseUrls
from tests.jwts import jwk, private_key, signed
from tests.security.key_server import KeyServer, key_server
from tests.security.schedulers import scheduler

ISSUER = "https://login.example.com"
KEY = private_key("ES256")
OPERATOR = Principal(Kind.OPERATOR, name="root", origin=Origin(method="users set"))
PATIENCE = 60.0


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    async with key_server() as server:
        server.serve(jwk(KEY, "k1"))
        yield server


def settings(keys: KeyServer, **more: Any) -> dict[str, Any]:
    return {"development_jwt_secret": "", "jwks_url": keys.url, "jwt_issuer": ISSUER, **more}


@asynccontextmanager
async def knowing(keys: KeyServer, urls: DatabaseUrls, **more: Any) -> AsyncIterator[App]:
    """A scheduler that has fetched the keys: a call would wait for them for some seconds only."""
    async with scheduler(urls, **settings(keys, **more)) as app:
        async with asyncio.timeout(PATIENCE):
            while figure(app, "jwks_age_seconds") is None:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)
        yield app


def token(**said: Any) -> str:
    return signed(KEY, "ES256", "k1", iss=ISSUER, **said)


async def removing(app: App, jwt: str) -> str:
    """What becomes of an admin's call for a thing that is not there."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        request = job_service_pb2.PauseJobRequest(name="services/nobody/jobs/nothing")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await jobs.PauseJob(request, metadata=(("authorization", f"Bearer {jwt}"),))
    return f"{refused.value.code().name}: {refused.value.details()}"


def figure(app: App, name: str) -> float | None:
    return app.registry.get_sample_value(f"carillon_{name}")


async def test_roles_come_from_claims(database_urls: DatabaseUrls, keys: KeyServer) -> None:
    path = "https://example.com/roles"
    async with knowing(keys, database_urls, jwt_role_claim=path) as app:
        assert "there is no job" in await removing(app, token(**{path: ["admin"]}))
        assert "your JWT names neither" in await removing(app, token(role="admin"))
        assert "UNAUTHENTICATED" in await removing(app, signed(private_key("ES256", 1), "ES256", "k1", iss=ISSUER))
        age = figure(app, "jwks_age_seconds")
        assert age is not None
        assert 0 <= age < PATIENCE
        assert figure(app, "jwks_failures_total") == 0


async def test_a_scheduler_without_its_key_server_starts_and_says_so(
    database_urls: DatabaseUrls, keys: KeyServer
) -> None:
    keys.say(b"", 503)
    async with scheduler(database_urls, **settings(keys)) as app:
        assert "UNAVAILABLE" in await removing(app, token(role="admin"))
        assert figure(app, "jwks_age_seconds") is None
        keys.serve(jwk(KEY, "k1"))
        async with asyncio.timeout(PATIENCE):
            while "there is no job" not in await removing(app, token(role="admin")):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.1)
        assert (figure(app, "jwks_failures_total") or 0) > 0


async def test_roles_come_from_the_users_table(database_urls: DatabaseUrls, keys: KeyServer) -> None:
    async with knowing(keys, database_urls, jwt_roles_from="users") as app:
        assert "your JWT names neither" in await removing(app, token(sub="bob", role="admin"))
        await set_user(app.database, OPERATOR, User("alice", Role.ADMIN))
        assert "there is no job" in await removing(app, token(tenant="acme"))
        await remove_user(app.database, OPERATOR, "alice")
        async with asyncio.timeout(PATIENCE):
            while "your JWT names neither" not in await removing(app, token()):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.1)
