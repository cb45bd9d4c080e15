"""Whatever goes wrong, nobody is shown a secret: every setting, credential and place of output, provoked."""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import carillon
import grpc
import jwt
import psycopg
import pytest
from carillon.v1 import job_service_pb2, job_service_pb2_grpc
from pydantic import SecretStr

from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.engine.readiness import Readiness
from scheduler_service.settings import Settings, SettingsError, read_settings
from scheduler_service.store.database import Database
from scheduler_service.store.logins import Login
from tests import canary
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import ROOT, Cluster, environment_without_carillon, eventually, fetch
from tests.ports import lasting_port
from worker_service import settings as worker_settings

SECRET = canary.secret("provoked")
SHORT = canary.MARKER
CHARACTERS = "%\\{}\n'\"\x7f"

SHAPES = {
    "bare": SECRET,
    "short": SHORT,
    "odd": f"{SECRET}{CHARACTERS}",
    "url of another kind": f"mysql://alice:{SECRET}@localhost/x",
    "url without a port": f"postgresql://alice:{SECRET}@localhost:port/x",
    "url of a wrong shape": f"postgresql://alice:{SECRET}@[::1/x",
    "url": f"postgresql://alice:{SECRET}@localhost:1/x",
    "token": f"email-service=t1.{SECRET}",
    "token without an id": f"email-service={SECRET}",
    "token twice": f"email-service=t1.{SECRET},kpi-service=t1.{SECRET}",
    "short token": f"email-service=t1.{SHORT}",
    "key": f"email-service=whsec_{base64.b64encode(SECRET.encode()).decode()}",
    "wrong key": f"email-service=whsec_{SECRET}!",
}


def secret_fields(settings: type[Any], *more: str) -> list[str]:
    """The settings whose values are secrets."""
    fields = settings.model_fields.items()
    return sorted({name for name, f in fields if SecretStr in (f.annotation, *get_args(f.annotation))} | {*more})


def shown(said: str) -> None:
    """What somebody was shown: something, and no secret."""
    assert said.strip()
    canary.check(canary.leaks(said), "what was shown")


@pytest.fixture
def scheduler_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_DATABASE_URL", f"postgresql://api:{SECRET}@localhost/x")
    monkeypatch.setenv("CARILLON_ENGINE_URL", f"postgresql://engine:{SECRET}@localhost/x")


@pytest.mark.usefixtures("scheduler_environment")
@pytest.mark.parametrize("name", secret_fields(Settings))
@pytest.mark.parametrize("shape", SHAPES)
def test_no_setting_of_the_scheduler_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, shape: str
) -> None:
    (tmp_path / "secret").write_text(SHAPES[shape])
    for variable, value in ((name, SHAPES[shape]), (f"{name}_file", str(tmp_path / "secret"))):
        with monkeypatch.context() as context:
            context.delenv(f"CARILLON_{name.upper()}", raising=False)
            context.setenv(f"CARILLON_{variable.upper()}", value)
            try:
                settings = read_settings()
            except SettingsError as error:
                shown(f"{error} {error!r} {error.__cause__}")
            else:
                shown(f"{settings} {settings!r} {settings.model_dump()}")
                shown(f"{settings.logins()} {settings.tokens()} {settings.jwt_rules()}")


@pytest.mark.parametrize("name", secret_fields(worker_settings.Settings, "signing_keys"))
@pytest.mark.parametrize("shape", SHAPES)
def test_no_setting_of_the_worker_shows_a_secret(monkeypatch: pytest.MonkeyPatch, name: str, shape: str) -> None:
    monkeypatch.setenv("CARILLON_WORKER_TOKEN", f"t1.{SECRET}")
    monkeypatch.setenv(f"CARILLON_{name.upper()}", SHAPES[shape])
    try:
        settings = worker_settings.load()
    except worker_settings.SettingsError as error:
        shown(f"{error} {error!r} {error.__cause__}")
    else:
        shown(f"{settings} {settings!r}")


def test_nothing_that_holds_a_secret_shows_it(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, database_urls)
    tokens = parse_service_tokens(f"email-service=t1.{SECRET}")
    jobs = carillon.Jobs("email-service", target="127.0.0.1:1", token=f"t1.{SECRET}")
    client = carillon.Client("127.0.0.1:1", token=SECRET)
    with psycopg.connect(database_urls.api) as connection:
        holders = (
            *(cluster, cluster.secrets, database_urls, Login("carillon_api", database_urls.api)),
            *(tokens, tokens[0].principal, JwtRules(secret=SECRET), Settings(**urls(database_urls))),
            *(Database(database_urls.api, database_urls.engine), connection, connection.info, connection.pgconn),
            *(jobs, jobs.connection, client, connection.info.dsn),
        )
        for holder in holders:
            shown(f"{holder!r} {holder!s}")


def urls(urls: DatabaseUrls, **replaced: str) -> dict[str, Any]:
    return {"database_url": SecretStr(urls.api), "engine_url": SecretStr(urls.engine), **replaced}


def wrong_urls(url: str) -> Iterator[tuple[str, str]]:
    """A URL that does not work, in each of its parts."""
    scheme, rest = url.split("://")
    login, place = rest.split("@")
    user, _ = login.split(":")
    host, database = place.split("/")
    yield "password", f"{scheme}://{user}:{SECRET}@{place}"
    yield "login", f"{scheme}://nobody-of-that-name:{SECRET}@{place}"
    yield "database", f"{scheme}://{login}@{host}/no-such-database"
    yield "port", f"{scheme}://{login}@127.0.0.1:1/{database}"
    yield "host", f"{scheme}://{login}@no-such-host.invalid/{database}"


@pytest.mark.parametrize("part", ["password", "login", "database", "port", "host"])
async def test_a_database_that_refuses_shows_no_password(
    database_urls: DatabaseUrls, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = dict(wrong_urls(database_urls.api))[part]
    database = Database(wrong, wrong, pool_size=1)
    with caplog.at_level(logging.DEBUG):
        readiness = Readiness(database, migrate=None)
        await readiness.look()
        shown(str(readiness.problem))
        with pytest.raises(psycopg.Error) as refused:
            await database.hot_connection()
        shown(f"{refused.value} {refused.value!r} {refused.getrepr(showlocals=False)}")
    await database.close()


def bearer(secret: str, algorithm: str = "HS256", **claims: object) -> tuple[tuple[str, str], ...]:
    now = int(time.time())
    fixed = {"sub": "alice", "role": "admin", "iss": "carillon", "aud": "carillon", "iat": now, "exp": now + 600}
    merged = {name: value for name, value in (fixed | claims).items() if value is not None}
    return (("authorization", f"Bearer {jwt.encode(merged, secret, algorithm=algorithm)}"),)


def credentials(cluster: Cluster) -> dict[str, tuple[tuple[str, str], ...]]:
    """Credentials that do not count, each with something secret in it."""
    right = cluster.secrets.jwt_secret
    token_id = cluster.secrets.email_service_token.partition(".")[0]
    whole = bearer(right)[0][1]
    return {
        "a token's id with another secret": (("x-service-token", f"{token_id}.{SECRET}"),),
        "no token's id": (("x-service-token", f"nobody.{SECRET}"),),
        "no id": (("x-service-token", SECRET),),
        "two tokens": (("x-service-token", f"{token_id}.{SECRET}"), ("x-service-token", f"a.{SECRET}")),
        "a long token": (("x-service-token", f"{token_id}.{SECRET * 20}"),),
        "a token as a bearer": (("authorization", f"Bearer {cluster.secrets.email_service_token}"),),
        "a JWT as a token": (("x-service-token", whole.removeprefix("Bearer ")),),
        "a token that may not": (("x-service-token", cluster.secrets.worker_token),),
        "both": (("x-service-token", f"{token_id}.{SECRET}"), ("authorization", whole)),
        "basic": (("authorization", f"Basic {base64.b64encode(f'alice:{SECRET}'.encode()).decode()}"),),
        "no scheme": (("authorization", SECRET),),
        "the JWT secret itself": (("authorization", f"Bearer {right}"),),
        "no JWT": (("authorization", f"Bearer {SECRET}"),),
        "half a JWT": (("authorization", whole[:-20]),),
        "another secret": bearer(SECRET),
        "another algorithm": bearer(right * 2, "HS512"),
        "expired": bearer(right, exp=1),
        "not yet": bearer(right, nbf=int(time.time()) + 1000),
        "no expiry": bearer(right, exp=None),
        "no subject": bearer(right, sub=None),
        "another issuer": bearer(right, iss=SECRET),
        "another audience": bearer(right, aud=SECRET),
        "a secret as the kind of token": (("authorization", f"{SECRET} {SECRET}"),),
    }


async def test_a_scheduler_that_refuses_credentials_shows_none(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    async with Cluster(tmp_path, database_urls, log_level="debug") as cluster:
        scheduler = await cluster.start_scheduler()
        async with grpc.aio.insecure_channel(scheduler.target) as channel:
            jobs = job_service_pb2_grpc.JobServiceStub(channel)
            for metadata in credentials(cluster).values():
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await jobs.GetJob(job_service_pb2.GetJobRequest(name="services/a/jobs/b"), metadata=metadata)
                error = refused.value
                shown(f"{error} {error.details()} {error.debug_error_string()} {error.trailing_metadata()}")
        for path in ("metrics", "readyz", "livez"):
            shown((await fetch(f"http://127.0.0.1:{scheduler.metrics_port}/{path}"))[1])


WRONG = {
    "scheme": {"database_url": f"mysql://a:{SECRET}@localhost/x"},
    "port": {"migration_url": f"postgresql://a:{SECRET}@localhost:port/x"},
    "option": {"database_url": f"postgresql://a:{SECRET}@localhost/x?no_such_option=1"},
    "escape": {"engine_url": f"postgresql://a:%{SECRET}@localhost/x"},
    "tokens": {"service_tokens": f"email-service={SECRET}"},
    "jwt": {"development_jwt_secret": SHORT},
    "log": {"log_format": "xml"},
    "key": {"signing_keys": f"email-service=whsec_{SECRET}!"},
    "worker token": {"worker_token": f"{SECRET}\x7f"},
}


# A wrong setting, or none, and a program that ends for it, or for the database that refuses it.
PROGRAMS = [
    *(("scheduler_service", wrong) for wrong in WRONG if wrong not in ("key", "worker token")),
    *(("worker_service", wrong) for wrong in ("log", "key", "worker token")),
    ("scheduler_service migrate", ""),
    ("scheduler_service tokens list", ""),
]


@pytest.mark.parametrize(("command", "wrong"), PROGRAMS)
async def test_a_program_that_cannot_start_shows_no_secret(
    database_urls: DatabaseUrls, command: str, wrong: str
) -> None:
    settings = {
        "database_url": dict(wrong_urls(database_urls.api))["password"],
        "engine_url": database_urls.engine,
        "migration_url": dict(wrong_urls(database_urls.admin))["password"],
        "development_jwt_secret": SECRET,
        "service_tokens": f"email-service=t1.{SECRET}",
        "worker_token": f"t1.{SECRET}",
        "port": "0",
        "metrics_port": str(lasting_port()),
        "worker_port": "x",
        "host": "192.0.2.1",
        **WRONG.get(wrong, {}),
    }
    environment = {f"CARILLON_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command.split()),
        cwd=ROOT,
        env=environment_without_carillon() | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode not in (0, None)
    shown(said.decode())


def is_refused(answer: tuple[int, str]) -> bool:
    """Whether it says that, and not only that it has not tried yet."""
    return answer[0] == 503 and any(sign in answer[1] for sign in ("authentication failed", "UNAUTHENTICATED"))


async def test_processes_that_are_refused_log_no_secret(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    wrong = dict(wrong_urls(database_urls.api))
    async with Cluster(tmp_path, database_urls, log_level="debug") as cluster:
        for part in ("password", "login"):
            scheduler = await cluster.start_scheduler(part, ready=False, database_url=wrong[part])
            ask = partial(fetch, f"http://127.0.0.1:{scheduler.metrics_port}/readyz")
            shown((await eventually(ask, is_refused))[1])
            shown((await fetch(f"http://127.0.0.1:{scheduler.metrics_port}/metrics"))[1])
            await cluster.terminate(part)
        await cluster.start_scheduler()
        port = lasting_port()
        await cluster.processes.start(
            "worker",
            [sys.executable, "-m", "worker_service"],
            {
                "CARILLON_TARGET": cluster.target,
                "CARILLON_WORKER_TOKEN": f"worker.{SECRET}",
                "CARILLON_WORKER_PORT": str(port),
            },
            cwd=ROOT,
        )
        shown((await eventually(partial(fetch, f"http://127.0.0.1:{port}/readyz"), is_refused))[1])
        for name in ("password", "login", "scheduler", "worker"):
            shown(cluster.processes.log_path(name).read_text())
