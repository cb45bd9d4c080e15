"""The whole of Carillon on one machine: PostgreSQL, a scheduler, a worker and the example services."""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.error import URLError

import psycopg

from local_stack.ports import LOCALHOST, free_port, require_free_port
from local_stack.postgres import EmbeddedPostgres
from local_stack.processes import LocalStackError, Processes
from local_stack.restarting import keep_running
from local_stack.secrets import Secrets, kept_secrets

ROOT = Path(__file__).parent.parent
_URLS = ("CARILLON_DATABASE_URL", "CARILLON_ENGINE_URL", "CARILLON_MIGRATION_URL")

# What a worker here may call, for its CARILLON_ALLOWED_TARGETS and CARILLON_ALLOWED_NETWORKS.
THIS_MACHINE = "127.0.0.1:*,[::1]:*,localhost:*"
LOOPBACK = "127.0.0.0/8,::1"

_USUAL = (
    ("CARILLON_PORT", 7007, "the scheduler (gRPC)"),
    ("CARILLON_METRICS_PORT", 7008, "the scheduler's metrics"),
    ("CARILLON_WORKER_PORT", 7009, "the worker's metrics"),
)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where each process listens on 127.0.0.1."""

    scheduler: int
    scheduler_metrics: int
    worker_metrics: int
    email: int
    smtp: int

    @classmethod
    def usual(cls) -> Ports:
        """The documented ports for what people address, free ones for the rest.

        Errors: LocalStackError that names every documented one that cannot be had.
        """
        ports: list[int] = []
        problems: list[str] = []
        for variable, default, what in _USUAL:
            try:
                ports.append(_port(variable, default, what))
            except LocalStackError as error:
                problems.append(str(error))
        if problems:
            hint = "if that is another `make up`, one is enough, or give this one other ports"
            raise LocalStackError("\n".join([*problems, f"({hint})"]))
        scheduler, metrics, worker = ports
        return cls(scheduler, metrics, worker, free_port(), free_port())

    @classmethod
    def free(cls) -> Ports:
        return cls(*(free_port() for _ in range(5)))


def _port(variable: str, default: int, what: str) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise LocalStackError(f"{variable} is {text!r}; it must be a port from 1 to 65535")
    require_free_port(int(text), what, setting=variable)
    return int(text)


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseUrls:
    """How the scheduler reaches its database, for each role."""

    api: str
    engine: str
    migration: str

    @classmethod
    def from_environment(cls) -> DatabaseUrls | None:
        """A real server, if CARILLON_DATABASE_URL names one. Errors: LocalStackError if only a part is set."""
        values = [os.environ.get(name, "") for name in _URLS]
        if not any(values):
            return None
        missing = [name for name, value in zip(_URLS, values, strict=True) if not value]
        if missing:
            raise LocalStackError(
                f"a real server needs three URLs, and {' and '.join(missing)} is not set: CARILLON_DATABASE_URL and "
                "CARILLON_ENGINE_URL name the two logins that are made for the scheduler, CARILLON_MIGRATION_URL a "
                "role that may make them (README, Configuration)"
            )
        _require_reachable(values[-1])
        return cls(*values)


def _require_reachable(migration_url: str) -> None:
    try:
        psycopg.connect(migration_url, connect_timeout=5).close()
    except psycopg.Error as error:
        raise LocalStackError(f"CARILLON_MIGRATION_URL: cannot connect: {str(error).strip()}") from None


class Stack:
    """Started and stopped as one. `home` holds data, logs and secrets. `urls`: of its database, once it is started."""

    def __init__(self, home: Path, ports: Ports, urls: DatabaseUrls | None = None) -> None:
        self.home = home
        self.ports = ports
        self.secrets: Secrets = kept_secrets(home / "secrets.json")
        self.processes = Processes(home / "logs")
        self.postgres = None if urls else EmbeddedPostgres(home / "postgres")
        self.urls = urls

    @property
    def target(self) -> str:
        return f"{LOCALHOST}:{self.ports.scheduler}"

    @property
    def mailbox(self) -> Path:
        """Where the SMTP sink keeps what it received: a JSON object a line."""
        return self.home / "received-mail.jsonl"

    @property
    def kpi_output(self) -> Path:
        return self.home / "kpi"

    async def start(self) -> None:
        """Returns once the services answer. Whoever calls it stops the stack, also if this fails."""
        ports, secrets = self.ports, self.secrets
        self.urls = await self._database_urls()
        await start_scheduler(
            self.processes,
            self.urls,
            ports.scheduler,
            ports.scheduler_metrics,
            {
                "CARILLON_SERVICE_TOKENS": secrets.service_tokens,
                "CARILLON_DEVELOPMENT_JWT_SECRET": secrets.jwt_secret,
            },
        )
        keys = {"CARILLON_SIGNING_KEYS": secrets.signing_keys}
        await start_worker(self.processes, self.target, secrets.worker_token, ports.worker_metrics, keys)
        await self._start_examples()

    async def stop(self) -> None:
        """Ends everything, the examples first and the database last."""
        await self.processes.stop()
        if self.postgres:
            await asyncio.to_thread(self.postgres.stop)

    async def watch(self) -> None:
        """Until a process ends that should not. Errors: LocalStackError with its last log lines."""
        await self.processes.watch()

    async def keep_running(self, say: Callable[[str], None]) -> None:
        """As `watch`, but starts again what somebody ends, and says so."""
        await keep_running(self.processes, say)

    async def _database_urls(self) -> DatabaseUrls:
        if self.postgres is None:
            assert self.urls is not None
            return self.urls
        passwords = (self.secrets.api_password, self.secrets.engine_password)
        return await asyncio.to_thread(embedded_urls, self.postgres, *passwords)

    async def _start_examples(self) -> None:
        smtp = {"SMTP_HOST": LOCALHOST, "SMTP_PORT": str(self.ports.smtp)}
        await _run(self.processes, "smtp-sink", "examples.smtp_sink", {**smtp, "SMTP_SINK_FILE": str(self.mailbox)})
        await _run(
            self.processes,
            "email-service",
            "examples.email_service",
            {
                **smtp,
                "EMAIL_SERVICE_PORT": str(self.ports.email),
                "CARILLON_TARGET": self.target,
                "CARILLON_SERVICE_TOKEN": self.secrets.email_service_token,
                "CARILLON_SIGNING_KEYS": self.secrets.email_service_signing_key,
            },
        )
        await self._registered("email-service")
        await _run(
            self.processes,
            "kpi-service",
            "examples.kpi_service",
            {
                "KPI_OUTPUT_DIR": str(self.kpi_output),
                "CARILLON_TARGET": self.target,
                "CARILLON_SERVICE_TOKEN": self.secrets.kpi_service_token,
            },
        )
        await self._registered("kpi-service")

    async def _registered(self, name: str) -> None:
        """This start's registration, as its log tells: the scheduler may know the jobs from an earlier start."""

        async def says_so() -> bool:
            return ": registered " in self.processes.log_path(name).read_text()

        await self.processes.wait_until(name, says_so)


def embedded_urls(postgres: EmbeddedPostgres, api_password: str, engine_password: str) -> DatabaseUrls:
    """Starts PostgreSQL, with a database for the scheduler alone; its roles come with the migration."""
    postgres.start()
    postgres.create_database("carillon")
    postgres.shut_out_public("carillon")
    return DatabaseUrls(
        api=postgres.url("carillon_api", api_password),
        engine=postgres.url("carillon_engine", engine_password),
        migration=postgres.url("carillon_admin"),
    )


async def start_scheduler(
    processes: Processes, urls: DatabaseUrls, port: int, metrics_port: int, secrets: Mapping[str, str]
) -> None:
    """Returns once it answers. `secrets`: the settings that say whom it trusts."""
    await _run(
        processes,
        "scheduler",
        "scheduler_service",
        {
            "CARILLON_DATABASE_URL": urls.api,
            "CARILLON_ENGINE_URL": urls.engine,
            "CARILLON_MIGRATION_URL": urls.migration,
            "CARILLON_PORT": str(port),
            "CARILLON_METRICS_PORT": str(metrics_port),
            **secrets,
        },
        ready=f"http://{LOCALHOST}:{metrics_port}/readyz",
    )


async def start_worker(
    processes: Processes, target: str, token: str, metrics_port: int, settings: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Returns once it is connected. It calls any port of this machine, and nothing else. settings: further ones."""
    await _run(
        processes,
        "worker",
        "worker_service",
        {
            "CARILLON_TARGET": target,
            "CARILLON_WORKER_TOKEN": token,
            "CARILLON_WORKER_PORT": str(metrics_port),
            "CARILLON_ALLOWED_TARGETS": THIS_MACHINE,
            "CARILLON_ALLOWED_NETWORKS": LOOPBACK,
            **settings,
        },
        ready=f"http://{LOCALHOST}:{metrics_port}/readyz",
    )


async def _run(
    processes: Processes, name: str, module: str, settings: Mapping[str, str], *, ready: str | None = None
) -> None:
    async def answers() -> bool:
        return await asyncio.to_thread(_is_ok, str(ready))

    command = [sys.executable, "-m", module]
    await processes.start(name, command, settings, cwd=ROOT, ready=answers if ready else None)


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
