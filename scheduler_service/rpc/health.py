"""`grpc.health.v1`: one answer for each service and for the whole (the empty name).

The health service itself is serving as soon as gRPC answers, whatever is in the way of the others: for probes that
restart what does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health import aio


class Health:
    """Not serving until `set` says that nothing is in the way."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = ("", *services)
        self.servicer = _OfThese((*self._services, health.SERVICE_NAME))

    async def set(self, problem: str | None) -> None:
        """`problem`: why calls cannot be answered now; None if they can."""
        status = health_pb2.HealthCheckResponse.NOT_SERVING if problem else health_pb2.HealthCheckResponse.SERVING
        for service in self._services:
            await self.servicer.set(service, status)
        await self.servicer.set(health.SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Not serving, for good: the replica goes."""
        await self.servicer.enter_graceful_shutdown()


class _OfThese(aio.HealthServicer):
    """The library would keep whoever watches a name that is no service, and the name, until there is one."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = frozenset(names)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        await self._refuse_unknown(request, context)
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        await self._refuse_unknown(request, context)
        await super().Watch(request, context)

    async def _refuse_unknown(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        if request.service not in self._names:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "there is no service of this name; leave it empty for the whole"
            )
