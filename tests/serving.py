"""Servers of tests, ended so that nothing of theirs is left."""

from __future__ import annotations

import asyncio

# From a connection that was taken off the socket to its handler: its task, the transport, the protocol.
_TURNS = 3


async def close_server(server: asyncio.Server) -> None:
    """Closes a server whose clients may connect at this very moment. What was accepted by then gets to its handler:
    asyncio loses, and never closes, a connection whose server closes between the two."""
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    server.close()
