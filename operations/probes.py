"""What orchestrators and Prometheus ask over HTTP: `/livez`, `/readyz` and `/metrics`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from yarl import URL

Readiness = Callable[[], tuple[bool, str]]
"""Whether the process can do its work now, and a few words on it."""


class PortTaken(Exception):
    """The port cannot be bound; the message is the end of a sentence that began with the setting's name."""


class Probes:
    """The HTTP server of one process. Alive is a process that answers; ready is one that can do its work."""

    def __init__(self, readiness: Readiness, registry: CollectorRegistry) -> None:
        self._readiness = readiness
        self._registry = registry
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
            raise PortTaken(f"cannot listen on port {port} of {host}: {cause(error)}") from None
        return str(URL.build(scheme="http", host=host, port=self._runner.addresses[0][1]))

    async def stop(self) -> None:
        """Stops listening. Stopping what never started is fine."""
        await self._runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready, words = self._readiness()
        return web.Response(status=200 if ready else 503, text=f"{words}\n")

    async def _figures(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})


def cause(error: OSError) -> str:
    """Why an address cannot be listened on, in words that fit behind a colon."""
    if isinstance(error, socket.gaierror):
        return "this machine has no such address"
    return os.strerror(error.errno or 0).lower()
