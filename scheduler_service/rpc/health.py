"""`grpc.health.v1`: one answer for each service and for the whole (the empty name).

The health service itself is serving as soon as gRPC answers, whatever is in the way of the others: for probes that
restart what does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health import aio


class Health:
    """Not serving until `set` says that nothing is in the way."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = aio.HealthServicer()
        self._services = ("", *services)

    async def set(self, problem: str | None) -> None:
        """`problem`: why calls cannot be answered now; None if they can."""
        status = health_pb2.HealthCheckResponse.NOT_SERVING if problem else health_pb2.HealthCheckResponse.SERVING
        for service in self._services:
            await self.servicer.set(service, status)
        await self.servicer.set(health.SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Not serving, for good: the replica goes."""
        await self.servicer.enter_graceful_shutdown()
