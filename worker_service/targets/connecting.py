"""HTTP connections that go where the call was admitted to, and nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from ipaddress import IPv6Address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from worker_service.targets.exchange import Exchange
from worker_service.targets.hosts import Address

_admitted: ContextVar[Sequence[Address]] = ContextVar("admitted")


@contextmanager
def to(addresses: Sequence[Address]) -> Iterator[None]:
    """New connections that requests inside open go to one of these addresses."""
    token = _admitted.set(addresses)
    try:
        yield
    finally:
        _admitted.reset(token)


def connector(keepalive_timeout: float) -> aiohttp.TCPConnector:
    """A connector that resolves no name itself, so that no second answer can differ from the one that was checked.

    Needs a running event loop.
    """
    made = aiohttp.TCPConnector(
        resolver=_Admitted(),
        use_dns_cache=False,
        limit=0,  # how many calls there are at a time is limited by the session's concurrency alone
        keepalive_timeout=keepalive_timeout,
    )
    # aiohttp has no other place for it.
    made._factory = partial[ResponseHandler](Exchange, loop=asyncio.get_running_loop())  # type: ignore[assignment]
    return made


class _Admitted(AbstractResolver):
    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - the port has it
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in _admitted.get()
        ]

    async def close(self) -> None:
        """Holds nothing."""
