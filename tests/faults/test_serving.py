"""A server that is closed while somebody connects."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

from tests.serving import close_server

SERVERS = 200


async def test_what_was_accepted_when_it_closes_gets_to_its_handler() -> None:
    """A connection that does not would be told, by a warning that fails the test, when it is collected."""
    stopping = threading.Event()
    ports: list[int] = []

    def connect() -> None:
        while not stopping.is_set():
            try:
                with socket.create_connection(("127.0.0.1", ports[-1]), 1):
                    pass
            except OSError:
                pass

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(1)
        writer.close()

    seen: list[int] = []
    client = threading.Thread(target=connect)
    for _ in range(SERVERS):
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        if not client.is_alive():
            client.start()
        before = len(seen)
        while len(seen) == before:  # noqa: ASYNC110  # the point is to close at once
            await asyncio.sleep(0)
        await close_server(server)
        for _ in range(5):
            await asyncio.sleep(0)
    stopping.set()
    await asyncio.to_thread(client.join)
    gc.collect()
