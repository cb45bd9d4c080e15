"""The gRPC server: its limits, its services, health and reflection."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from operations.probes import PortTaken, cause
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.health import Health

# How a service is added: a generated `add_...Servicer_to_server`, bound to its servicer.
Registration = Callable[[grpc.aio.Server], None]

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second scheduler on the port is refused, rather than given half of the calls
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.max_send_message_length", 32 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


def build_server(
    calls: Calls, services: Mapping[str, Registration], health_service: Health, *, reflect: bool
) -> grpc.aio.Server:
    """`services`: full names such as `carillon.v1.JobService`, each with how it is added."""
    server = grpc.aio.server(interceptors=(calls,), options=_OPTIONS)
    for add in services.values():
        add(server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service.servicer, server)
    if reflect:
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def listen(server: grpc.aio.Server, host: str, port: int) -> int:
    """Answers the port that was bound. Errors: PortTaken."""
    is_v6 = ":" in host
    # gRPC does not say why it cannot listen, but writes lines of its own to stderr: asked before, it has none to write.
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if is_v6 else socket.AF_INET).close()
        return server.add_insecure_port(f"[{host}]:{port}" if is_v6 else f"{host}:{port}")
    except OSError as error:
        raise PortTaken(f"cannot listen on port {port} of {host}: {cause(error)}") from None
    except RuntimeError:
        raise PortTaken(f"cannot listen on port {port} of {host}") from None
