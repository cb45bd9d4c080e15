"""The worker service's composition root: the only file that knows every concrete part."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog
from carillon.session import WorkerSession

from operations.probes import Probes
from worker_service.metrics import Metrics
from worker_service.observed import ObservedExecutor
from worker_service.settings import Settings
from worker_service.targets.allowed import Gate
from worker_service.targets.grpc import GrpcExecutor
from worker_service.targets.http import HttpExecutor
from worker_service.targets.networks import Networks
from worker_service.targets.resolving import Names
from worker_service.targets.signing import Signer

_log = structlog.stdlib.get_logger("worker_service")

# What the last results get of the drain's time, to be acknowledged: a fifth, at most this many seconds.
FLUSH_SECONDS = 5.0


class App:
    """One worker process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # The executors need the session's metrics, and the session its executors: each asks when it is used.
        self._metrics = Metrics(lambda: self.session.state())
        self._names = Names()
        gate = Gate(settings.allowed_targets, Networks(settings.allowed_networks), self._names)
        signer = Signer(settings.signing_keys, required=settings.require_signing)
        self._http = HttpExecutor(gate, signer, settings.base_urls.http, self._metrics.observe_call)
        self._grpc = GrpcExecutor(gate, settings.base_urls.grpc, self._metrics.observe_grpc_call)
        self.session = WorkerSession(
            target=settings.target,
            token=settings.token or None,
            tls=settings.tls_to_scheduler,
            plaintext=True,  # the settings were refused otherwise
            executors=[ObservedExecutor(each, self._metrics.count_attempt) for each in (self._http, self._grpc)],
            name=settings.worker_name,
            concurrency=settings.worker_concurrency,
        )
        self._probes = Probes(self._readiness, self._metrics.registry)

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then drains. Errors: PortTaken before anything was begun."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._probes.stop)
            url = await self._probes.start(self._settings.worker_host, self._settings.worker_port)
            _log.info("listening", url=url)
            self._warn_of_closed_gate()
            await stack.enter_async_context(self._names)
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self._grpc)
            await self._serve(stopping)

    def _warn_of_closed_gate(self) -> None:
        if self._settings.allowed_targets:
            return
        called = "only what CARILLON_BASE_URLS names" if self._settings.base_urls else "nothing"
        _log.warning(
            f"CARILLON_ALLOWED_TARGETS is not set: {called} is called, other runs fail with TARGET_NOT_ALLOWED"
        )

    def _readiness(self) -> tuple[bool, str]:
        state = self.session.state()
        if state.draining:
            return False, "draining"
        if not state.connected:
            return False, f"not connected: {state.last_error or 'no answer yet'}"
        return True, f"connected to {state.replica}"

    async def _serve(self, stopping: asyncio.Event) -> None:
        serving = asyncio.create_task(self.session.run(), name="session")
        asked = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await self._drain()
        finally:
            asked.cancel()
            serving.cancel()
            await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()

    async def _drain(self) -> None:
        whole = self._settings.drain_seconds
        _log.info("draining", running=self.session.state().running, seconds=whole)
        try:
            async with asyncio.timeout(whole):
                await self.session.drain(whole - min(FLUSH_SECONDS, whole / 5))
            _log.info("drained")
        except TimeoutError:
            _log.warning("drained in part: what is left will be tried again elsewhere")
