"""A real HTTP server of an issuer's key set, which can be slow, lie and be away."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.jwts import key_set
from tests.serving import close_server

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class KeyServer:
    """`asked`: how often it was. While `gate` is not set, it keeps callers waiting."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = 0
        self.elsewhere = 0
        self.headers: Mapping[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self._answer: Answer = _missing

    def serve(self, *keys: Mapping[str, Any]) -> None:
        self.say(key_set(*keys))

    def say(self, body: bytes, status: int = 200, **headers: str) -> None:
        async def answer(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=body, status=status, headers=headers)

        self._answer = answer

    def behave(self, answer: Answer) -> None:
        self._answer = answer

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/jwks":
            self.elsewhere += 1
            return web.Response(body=b"{}")
        self.asked += 1
        self.headers = dict(request.headers)
        await self.gate.wait()
        return await self._answer(request)


async def _missing(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=404)


@asynccontextmanager
async def key_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[KeyServer]:
    server = KeyServer()
    answering = web.Server(server.handle)
    listening = await asyncio.get_running_loop().create_server(answering, "127.0.0.1", 0, ssl=tls)
    try:
        port = listening.sockets[0].getsockname()[1]
        server.url = f"https://localhost:{port}/jwks" if tls else f"http://127.0.0.1:{port}/jwks"
        yield server
    finally:
        server.gate.set()
        await close_server(listening)
        await answering.shutdown(0)
