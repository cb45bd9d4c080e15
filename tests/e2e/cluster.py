"""Carillon as it is deployed: schedulers and workers on one database, each a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.error import HTTPError

from carillon import Client

from local_stack.ports import LOCALHOST
from local_stack.processes import Processes
from local_stack.secrets import Secrets, kept_secrets
from local_stack.stack import LOOPBACK, THIS_MACHINE
from tests import canary
from tests.conftest import DatabaseUrls
from tests.ports import lasting_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test takes for certain that what it waits for never comes, also beside other work."""

T = TypeVar("T")


@dataclass(frozen=True)
class Scheduler:
    """A scheduler process. Its replica's name is the process's."""

    name: str
    port: int
    metrics_port: int

    @property
    def target(self) -> str:
        return f"{LOCALHOST}:{self.port}"


class Cluster:
    """Starts processes by name and ends them all when it is left. `home` gets their logs and secrets.

    The settings of `schedulers` are laid over those of each scheduler, as variables without `CARILLON_`.
    `environments`: more variables for a process that is about to be started, by its name.
    `trees`: whose code it runs, where that is another release's: the folder of its checkout.
    """

    def __init__(self, home: Path, urls: DatabaseUrls, **schedulers: object) -> None:
        self._logs = home / "logs"
        self.processes = Processes(self._logs, grace=PATIENCE)
        self.secrets = _marked_secrets(home / "secrets.json")
        self.urls = urls
        self.schedulers: dict[str, Scheduler] = {}
        self.environments: dict[str, Mapping[str, str]] = {}
        self.trees: dict[str, Path] = {}
        self._settings = schedulers

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.processes.stop()
        canary.check(canary.leaks_in_files(self._logs.glob("*.log")), "the logs")

    @property
    def target(self) -> str:
        """Every scheduler's address, in gRPC's syntax: a client that loses one finds another."""
        return "ipv4:" + ",".join(scheduler.target for scheduler in self.schedulers.values())

    def client(self) -> Client:
        """A client with an admin's token, for all schedulers; to be entered."""
        return Client(self.target, token=self.secrets.admin_jwt())

    def place_scheduler(self, name: str) -> Scheduler:
        """Where the scheduler of this name is, or will be once it is started."""
        if name not in self.schedulers:
            self.schedulers[name] = Scheduler(name, lasting_port(), lasting_port())
        return self.schedulers[name]

    async def start_scheduler(
        self, name: str = "scheduler", *, ready: bool = True, module: str = "scheduler_service", **settings: object
    ) -> Scheduler:
        """Returns once it serves; without `ready`, once the process is there. Again under its name: on its ports.
        `module`: what is run instead, such as a program that breaks it."""
        scheduler = self.place_scheduler(name)
        own = {
            "database_url": self.urls.api,
            "engine_url": self.urls.engine,
            "migration_url": "",
            "port": scheduler.port,
            "metrics_port": scheduler.metrics_port,
            "service_tokens": self.secrets.service_tokens,
            "development_jwt_secret": self.secrets.jwt_secret,
            "replica": name,
        }
        wanted = own | self._settings | settings
        await self._start(name, module, wanted, scheduler.metrics_port if ready else None)
        return scheduler

    async def start_worker_service(
        self, name: str = "worker-service", *, ready: bool = True, **settings: object
    ) -> int:
        """A worker for HTTP targets. Returns the port of its probes, once it is connected; without `ready`, at once."""
        port = lasting_port()
        own = {
            "target": self.target,
            "worker_token": self.secrets.worker_token,
            "worker_port": port,
            "allowed_targets": THIS_MACHINE,
            "allowed_networks": LOOPBACK,
        }
        wanted = own | {"worker_name": name} | settings
        await self._start(name, "worker_service", wanted, port if ready else None)
        return port

    async def start_program(self, name: str, module: str, environment: Mapping[str, str]) -> int:
        """A program of the test's own, with the token of kpi-service. Returns its pid at once."""
        own = {"CARILLON_TARGET": self.target, "CARILLON_SERVICE_TOKEN": self.secrets.kpi_service_token}
        whole = own | self._of_tree(name) | dict(environment)
        return await self.processes.start(name, [sys.executable, "-m", module], whole, cwd=self._tree(name))

    async def kill(self, name: str) -> None:
        """SIGKILL, by pid. Returns when the process is gone."""
        await self.processes.end(name, signal.SIGKILL)

    async def terminate(self, name: str) -> int:
        """SIGTERM. Returns the exit code."""
        return await self.processes.end(name, signal.SIGTERM)

    async def _start(self, name: str, module: str, settings: Mapping[str, object], port: int | None) -> None:
        environment = {f"CARILLON_{key.upper()}": str(value) for key, value in settings.items()}
        environment |= self._of_tree(name)
        environment |= self.environments.get(name, {})

        async def is_ready() -> bool:
            status, _ = await fetch(f"http://{LOCALHOST}:{port}/readyz")
            return status == 200

        argv = [sys.executable, "-m", module]
        await self.processes.start(
            name, argv, environment, cwd=self._tree(name), ready=is_ready if port else None, timeout=PATIENCE
        )

    def _tree(self, name: str) -> Path:
        return self.trees.get(name, ROOT)

    def _of_tree(self, name: str) -> dict[str, str]:
        return {"PYTHONPATH": str(self.trees[name] / "clients" / "python" / "src")} if name in self.trees else {}


def _marked_secrets(file: Path) -> Secrets:
    """The canary's: whatever a process writes of them is found."""
    made = {field.name: _marked(field.name) for field in fields(Secrets)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made))
    return kept_secrets(file)


def _marked(name: str) -> str:
    if name.endswith("_signing_key"):
        return f"whsec_{base64.b64encode(canary.secret(name).encode()[:64]).decode()}"
    return canary.token(name.removesuffix("_token")) if name.endswith("_token") else canary.secret(name)


async def fetch(url: str) -> tuple[int, str]:
    """The status and body of an answer; status 0 if there was none."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def try_to_ask() -> tuple[int, str]:
        try:
            return ask()
        except (OSError, HTTPException) as error:  # also in the middle of an answer
            return 0, str(error)

    return await asyncio.to_thread(try_to_ask)


async def eventually(
    ask: Callable[[], Awaitable[T]], holds: Callable[[T], object] = bool, *, seconds: float = PATIENCE
) -> T:
    """Asks until the answer is as wanted, and returns it. Errors: AssertionError with the last answer."""
    answer = await ask()
    try:
        async with asyncio.timeout(seconds):
            while not holds(answer):
                await asyncio.sleep(0.05)
                answer = await ask()
    except TimeoutError:
        raise AssertionError(f"within {seconds:g} s it did not come to what was wanted; last: {answer!r}") from None
    return answer


def environment_without_carillon() -> dict[str, str]:
    """This process's environment, less what would set a scheduler or worker."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CARILLON_")}
