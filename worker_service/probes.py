"""What orchestrators and Prometheus ask over HTTP: `/livez`, `/readyz` and `/metrics`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from aiohttp import web
from carillon.session import SessionState
from yarl import URL

from worker_service.metrics import Metrics


class PortTaken(Exception):
    """The port cannot be bound; the message is the end of a sentence that began with the setting's name."""


class Probes:
    """The HTTP server of one worker. Alive is a process that answers; ready is one that can receive runs."""

    def __init__(self, state: Callable[[], SessionState], metrics: Metrics) -> None:
        self._state = state
        self._metrics = metrics
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._figures)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> str:
        """Listens, and returns the URL; port 0 takes a free one. Errors: PortTaken."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise PortTaken(f"cannot listen on port {port} of {host}: {_cause(error)}") from None
        return str(URL.build(scheme="http", host=host, port=self._runner.addresses[0][1]))

    async def stop(self) -> None:
        """Stops listening. Stopping what never started is fine."""
        await self._runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        state = self._state()
        if state.draining:
            return web.Response(status=503, text="draining\n")
        if not state.connected:
            return web.Response(status=503, text=f"not connected: {state.last_error or 'no answer yet'}\n")
        return web.Response(text=f"connected to {state.replica}\n")

    async def _figures(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _cause(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "this machine has no such address"
    return os.strerror(error.errno or 0).lower()
