"""A service's jobs: declared where its code is, registered when it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from carillon.channel import Connection
from carillon.declaration import JobOptions, check_name, grpc_target, http_target, job_spec
from carillon.handlers import Handler, read_handler
from carillon.registration import BackgroundRegistration, register
from carillon.tls import Tls
from carillon.v1 import job_pb2, registry_service_pb2
from carillon.verification import Headers, resolve_keys, verify
from carillon.worker import Worker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from carillon.handler_types import Declare

F = TypeVar("F", bound=Callable[..., Any])


class Jobs:
    """All jobs of one service.

    service: its id. target: the scheduler's address (default: `CARILLON_TARGET`, else `127.0.0.1:7007`).
    token: the service's token (default: `CARILLON_SERVICE_TOKEN`). base_url: where relative endpoints are found.
    generation: which deploy this is, a number that grows with each (default: `CARILLON_GENERATION`, else 0); an
    older one than the registered is refused. tls: True, or the files to use (default: `CARILLON_TLS...`, else none).
    plaintext: whether the token may go to another machine without TLS (default: `CARILLON_PLAINTEXT`, else not).
    concurrency: how many runs its handlers carry out at once under `async with`. grace: how many seconds they may go on
    once it stops; below what the orchestrator gives the process (30 s in Kubernetes). signing_keys: the one or two keys
    that calls to its endpoints are signed with, each `whsec_...` (default: `CARILLON_SIGNING_KEYS`, separated by
    commas, or the file that `CARILLON_SIGNING_KEYS_FILE` names); `verify` needs them.

    Declaring does no I/O. `async with jobs:` registers in the background and, if there are handlers, works.
    """

    def __init__(
        self,
        service: str,
        *,
        target: str | None = None,
        token: str | None = None,
        base_url: str | None = None,
        generation: int | None = None,
        tls: Tls | bool | None = None,
        plaintext: bool | None = None,
        concurrency: int = 10,
        grace: float = 25.0,
        signing_keys: Sequence[str] | None = None,
    ) -> None:
        self.service = check_name("service", service)
        self.connection = Connection.resolve(target, service_token=token, tls=tls, plaintext=plaintext)
        self._base_url = base_url
        self._generation = _generation() if generation is None else generation
        self._concurrency = concurrency
        self._grace = grace
        self._signing_keys = resolve_keys(signing_keys)
        self._specs: dict[str, job_pb2.JobSpec] = {}
        self._handlers: dict[str, Handler] = {}
        self._grpc_handlers: dict[str, Handler] = {}
        self._open: AsyncExitStack | None = None
        self._registration: BackgroundRegistration | None = None

    def __repr__(self) -> str:
        return f"Jobs({self.service!r}, jobs={list(self._specs)})"

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The jobs that are functions of this service, by name."""
        return dict(self._handlers)

    @property
    def grpc_handlers(self) -> Mapping[str, Handler]:
        """The jobs that are functions which this service's gRPC server calls, by name."""
        return dict(self._grpc_handlers)

    def endpoint(self, name: str, endpoint: str, **options: Unpack[JobOptions]) -> str:
        """Declares a job whose runs are sent to an HTTP endpoint: a URL, or a path below `base_url`.

        Returns the endpoint's path, for the route beside it: `@app.post(jobs.endpoint("digest", "/api/digest"))`.
        Raises ValueError or TypeError with a sentence that names the job and what is wrong.
        """
        self._add(job_spec(name, http_target(name, endpoint, self._base_url), **options))
        return urlsplit(endpoint).path

    def grpc_endpoint(self, name: str, address: str, *, tls: bool = False, **options: Unpack[JobOptions]) -> None:
        """Declares a job whose runs are calls to `JobHandlerService.Execute` at `host:port`, in whatever language.

        tls: whether that server speaks TLS. Raises ValueError or TypeError with a sentence that names the job and what
        is wrong.
        """
        self._add(job_spec(name, grpc_target(name, address, tls), **options))

    def handler(self, name: str, **options: Unpack[JobOptions]) -> Declare:
        """Declares a job whose runs call the decorated function, async or plain.

        The function takes, by annotation, at most one `Run` and at most one payload (a dataclass, a TypedDict,
        `dict[str, Any]` or a pydantic model). It returns None, a mapping of metrics, or `Completed(...)`; what it
        raises fails the attempt. A plain function runs in a thread and should look at `run.cancelled`.

        Raises ValueError or TypeError with a sentence that names the job and what is wrong.
        """
        spec = job_spec(name, job_pb2.Target(handler=job_pb2.HandlerTarget()), **options)
        return self._declares(spec, self._handlers)

    def grpc_handler(self, name: str, *, address: str, tls: bool = False, **options: Unpack[JobOptions]) -> Declare:
        """Declares a job whose runs are gRPC calls to this service, which call the decorated function.

        address: where workers find the service's gRPC server, `host:port`; tls: whether it speaks TLS. The function is
        as for `handler`. `carillon.grpc_handlers.add_to_server` serves it.

        Raises ValueError or TypeError with a sentence that names the job and what is wrong.
        """
        return self._declares(job_spec(name, grpc_target(name, address, tls), **options), self._grpc_handlers)

    def verify(self, headers: Headers, body: bytes, *, job: str | None = None) -> None:
        """Makes sure that a call to an endpoint of this service comes from the worker service, now, and unchanged.

        headers: all that came with it, in whatever case. body: the bytes exactly as they came, before any parsing.
        job: whose endpoint this is; without it, a call that was made for another job of this service passes, so leave
        it out only where the endpoint reads `job` from the body itself.
        Raises SignatureInvalid with a sentence (answer 401), and SigningKeysMissing if the service has no keys.
        """
        verify(self._signing_keys, headers, body, time.time(), service=self.service, job=job)

    def manifest(
        self, *, validate_only: bool = False, allow_mass_removal: bool = False
    ) -> registry_service_pb2.RegisterJobsRequest:
        """What is registered."""
        return registry_service_pb2.RegisterJobsRequest(
            service=self.service,
            generation=self._generation,
            jobs=self._specs.values(),
            base_url=self._base_url or "",
            validate_only=validate_only,
            allow_mass_removal=allow_mass_removal,
        )

    async def register(
        self, *, validate_only: bool = False, allow_mass_removal: bool = False, timeout: float = 30.0
    ) -> registry_service_pb2.RegisterJobsResponse:
        """Registers all jobs at once, and answers what changed. Jobs that are declared no longer are archived.

        validate_only: answers what would change, and changes nothing. allow_mass_removal: allows archiving more than
        half of the jobs. timeout: seconds. Raises `CarillonError`; nothing is changed then.
        """
        manifest = self.manifest(validate_only=validate_only, allow_mass_removal=allow_mass_removal)
        return await register(self.connection, manifest, timeout)

    def register_in_background(self) -> BackgroundRegistration:
        """Registers as soon as the scheduler answers; needs a running event loop. `stop` it at the end."""
        return BackgroundRegistration(self.connection, self.manifest())

    async def serve(self) -> None:
        """Registers, works, and ends in order on SIGTERM or Ctrl-C (a second one ends it at once): all that a service
        needs that only has handlers. Only in the main thread.

        Raises the `CarillonError` of a registration that only another deploy can heal, such as a wrong cron. Where that
        is the first answer, it has taken no run.
        """
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()

        def stop() -> None:
            stopping.set()
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)

        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, stop)
        await self._begin(works_if_refused=False)
        try:
            await self._until(stopping)
        finally:
            await self._end()

    async def _until(self, stopping: asyncio.Event) -> None:
        assert self._registration is not None
        stopped = asyncio.ensure_future(stopping.wait())
        registered = asyncio.ensure_future(self._registration.wait())
        try:
            await asyncio.wait({stopped, registered}, return_when=asyncio.FIRST_COMPLETED)
            if registered.done():
                registered.result()
            await stopped
        finally:
            stopped.cancel()
            registered.cancel()

    async def __aenter__(self) -> Jobs:
        await self._begin(works_if_refused=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def _begin(self, *, works_if_refused: bool) -> None:
        if self._open is not None:
            raise RuntimeError(f"the jobs of {self.service} are open already")
        async with AsyncExitStack() as stack:
            registration = self._registration = self.register_in_background()
            stack.push_async_callback(registration.stop)

            # Asked first: a service that ends with a refusal, again and again, must not leave sessions behind.
            async def may_work() -> bool:
                return await registration.first_answer() or works_if_refused

            if self._handlers:
                worker = Worker(self, self._concurrency, grace=self._grace, opens_if=may_work)
                await stack.enter_async_context(worker)
            self._open = stack.pop_all()

    async def _end(self) -> None:
        stack, self._open = self._open, None
        if stack is not None:
            await stack.aclose()

    def _declares(self, spec: job_pb2.JobSpec, handlers: dict[str, Handler]) -> Declare:
        def declare(function: F) -> F:
            handler = read_handler(spec.job, function, sys._getframe(1).f_locals)
            self._add(spec)
            handlers[spec.job] = handler
            return function

        return declare

    def _add(self, spec: job_pb2.JobSpec) -> None:
        if spec.job in self._specs:
            raise ValueError(f"job {spec.job!r} is declared twice")
        self._specs[spec.job] = spec


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _generation() -> int:
    text = os.environ.get("CARILLON_GENERATION", "0")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"CARILLON_GENERATION must be a whole number, not {text!r}") from None
