"""The gRPC server: its limits, its services, health and reflection."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from operations.probes import PortTaken, cause
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.health import Health
from scheduler_service.rpc.methods import methods_of, unlisted

# How a service is added: a generated `add_...Servicer_to_server`, bound to its servicer.
Registration = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one client, or all of them together, may ask of the server. gRPC ignores an option that it does not know
    without a word: tests/security/test_limits.py crosses each, tests/e2e/streams/test_connection_age.py the age."""

    received_bytes: int = 8 * 1024 * 1024
    """Of one message."""
    sent_bytes: int = 32 * 1024 * 1024
    metadata_bytes: int = 8 * 1024
    """Of a call, counted as HTTP/2 does (each header and 32 bytes). Above it calls are refused more and more often,
    above twice as much always."""
    calls_per_connection: int = 256
    """At one time. A client of ours holds its other calls back meanwhile."""
    connections: int = 1000
    """On each port."""
    handshake_seconds: float = 10.0
    """For TLS and HTTP/2 to begin."""
    idle_seconds: float = 60.0
    """How long a connection without a call is kept: idle ones keep others out. Clients connect again by themselves."""
    age_seconds: float = 0.0
    """When clients are asked to connect anew (GOAWAY), a tenth earlier or later; 0: never. What is under way goes on
    where it is, for however long: gRPC's `max_connection_age_grace_ms` would end it, workers' streams too."""
    ping_seconds: float = 30.0
    """After how much silence a client is asked whether it is there."""
    pong_seconds: float = 10.0
    """How long it has to answer. Both together are how long a dead client keeps its place."""
    least_ping_interval_seconds: float = 10.0
    """Clients that ping more often are told to be calm, and hung up on."""

    def options(self) -> list[tuple[str, int]]:
        age = [("grpc.max_connection_age_ms", _ms(self.age_seconds))] if self.age_seconds else []
        return [
            *age,
            ("grpc.max_receive_message_length", self.received_bytes),
            ("grpc.max_send_message_length", self.sent_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.metadata_bytes),
            ("grpc.max_concurrent_streams", self.calls_per_connection),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_seconds)),
            ("grpc.max_connection_idle_ms", _ms(self.idle_seconds)),
            ("grpc.keepalive_time_ms", _ms(self.ping_seconds)),
            ("grpc.keepalive_timeout_ms", _ms(self.pong_seconds)),
            # gRPC would wait a minute at least where the peer's kernel still answers for a process that does not.
            ("grpc.http2.ping_timeout_ms", _ms(self.pong_seconds)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.least_ping_interval_seconds)),
            # A second scheduler on the port is refused, rather than given half of the calls.
            ("grpc.so_reuseport", 0),
        ]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def build_server(
    calls: Calls,
    services: Mapping[str, Registration],
    health_service: Health,
    *,
    reflect: bool,
    limits: ConnectionLimits | None = None,
) -> grpc.aio.Server:
    """`services`: full names such as `carillon.v1.JobService`, each with how it is added. Errors: ValueError if one has
    a method that nobody decided who may call."""
    if undecided := unlisted(method for service in services for method in methods_of(service)):
        raise ValueError(f"scheduler_service/rpc/methods.py does not say what {', '.join(undecided)} is")
    server = grpc.aio.server(interceptors=(calls,), options=(limits or ConnectionLimits()).options())
    for add in services.values():
        add(server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service.servicer, server)
    if reflect:
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """Answers the port that was bound; without credentials it speaks plain. Errors: PortTaken."""
    is_v6 = ":" in host
    # gRPC does not say why it cannot listen, but writes lines of its own to stderr: asked before, it has none to write.
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if is_v6 else socket.AF_INET).close()
        address = f"[{host}]:{port}" if is_v6 else f"{host}:{port}"
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except OSError as error:
        raise PortTaken(f"cannot listen on port {port} of {host}: {cause(error)}") from None
    except RuntimeError:
        raise PortTaken(f"cannot listen on port {port} of {host}") from None
