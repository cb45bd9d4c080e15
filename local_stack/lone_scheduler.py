"""A scheduler with a database of its own and nothing else, for programs without an event loop: tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterable
from pathlib import Path
from secrets import token_urlsafe
from types import TracebackType
from typing import Any, TypeVar

from local_stack.errors import LocalStackError
from local_stack.ports import LOCALHOST, free_port
from local_stack.postgres import EmbeddedPostgres
from local_stack.processes import Processes
from local_stack.secrets import admin_jwt
from local_stack.stack import embedded_urls, start_scheduler, start_worker

T = TypeVar("T")

ANY_SERVICE = "*"


class LoneScheduler:
    """Starts when it is entered, and is gone without a trace when it is left.

    services: who gets a token; a scheduler knows its tokens from its start. It may be used from any thread, and beside
    any event loop. Errors: LocalStackError with the last log lines if something does not start.
    """

    def __init__(self, services: Iterable[str] = ()) -> None:
        # A short path, open to PostgreSQL's user; a test's own folder is neither.
        self._home = Path(tempfile.gettempdir()) / f"carillon-lone-{os.getuid()}-{os.getpid()}-{id(self):x}"
        self._tokens = {name: f"{name.replace('.', '-')}.{token_urlsafe(32)}" for name in services}
        self._worker_token = f"worker.{token_urlsafe(32)}"
        self._jwt_secret = token_urlsafe(32)
        self._port = free_port()
        self._postgres = EmbeddedPostgres(self._home / "postgres")
        self._processes = Processes(self._home / "logs")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="carillon-lone-scheduler", daemon=True)
        self._has_worker = False

    @property
    def target(self) -> str:
        """Its gRPC address."""
        return f"{LOCALHOST}:{self._port}"

    @property
    def log(self) -> str:
        """The last lines that it wrote."""
        return self._processes.tail("scheduler")

    def admin_token(self) -> str:
        """A JWT with the admin role, good for twelve hours: `Client(target, token=...)`."""
        return admin_jwt(self._jwt_secret)

    def service_token(self, service: str) -> str:
        """The token of a service: `Jobs(service, target=..., token=...)`. Errors: LookupError if it has none."""
        if service not in self._tokens:
            raise LookupError(
                f"{service!r} has no token here; there are: {', '.join(self._tokens) or 'none'}. Tokens are given out "
                "when the scheduler starts: name the service in `carillon_services`, the ini option or the fixture"
            )
        return self._tokens[service]

    def start_worker(self) -> None:
        """Starts a worker service, for jobs that are endpoints, unless it is there. Returns once it is connected."""
        if not self._has_worker:
            self._await(start_worker(self._processes, self.target, self._worker_token, free_port()))
            self._has_worker = True

    def __enter__(self) -> LoneScheduler:
        self._thread.start()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        passwords = (token_urlsafe(32), token_urlsafe(32))
        tokens = {ANY_SERVICE: self._worker_token, **self._tokens}
        secrets = {
            "CARILLON_SERVICE_TOKENS": ",".join(f"{service}={token}" for service, token in tokens.items()),
            "CARILLON_DEVELOPMENT_JWT_SECRET": self._jwt_secret,
            "CARILLON_LISTEN_URL": "",  # a deployment's, if this process has one, is of another database
        }
        urls = embedded_urls(self._postgres, *passwords)
        self._await(start_scheduler(self._processes, urls, self._port, free_port(), secrets))

    def _stop(self) -> None:
        try:
            self._await(self._processes.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._postgres.remove()
            shutil.rmtree(self._home, ignore_errors=True)

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            raise LocalStackError("the scheduler does not run")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
