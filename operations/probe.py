"""`python -m operations.probe host:port [service]`: asks `grpc.health.v1`, as grpc_health_probe does, or with a URL
such as http://127.0.0.1:7009/readyz whether that answers 200. Says the answer; exits 0 if it is good, 1 if it is not,
2 if it was called wrongly. For HEALTHCHECK in containers, which bring no other program that could ask."""

from __future__ import annotations

import sys
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 3.0

_USAGE = "usage: python -m operations.probe host:port [service] | http://host:port/path"


def probe(address: str, service: str = "") -> tuple[bool, str]:
    """Asks once, for at most SECONDS; whether the answer is good, and a sentence. `service`: its full gRPC name, by
    default the server as a whole; an HTTP address has none. Errors: ValueError for an address of neither kind."""
    if address.startswith("http://"):
        return _ask_http(address)
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in address:
        raise ValueError(f"{address!r} is neither host:port nor a URL that begins with http://")
    return _ask_grpc(address, service)


def _ask_grpc(address: str, service: str) -> tuple[bool, str]:
    whose = f"{service} at {address}" if service else address
    # A proxy that the environment names is for calls to the world.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types leave out the methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        except grpc.RpcError as error:
            return False, f"{whose} did not answer: {error.code().name}: {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return answer.status == health_pb2.HealthCheckResponse.SERVING, f"{whose} says {status}"


def _ask_http(url: str) -> tuple[bool, str]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=SECONDS) as answer:
            return answer.status == 200, f"{url} says {answer.status}: {_words(answer.read())}"
    except HTTPError as error:
        return False, f"{url} says {error.code}: {_words(error.read())}"
    except (URLError, OSError) as error:
        return False, f"{url} did not answer: {getattr(error, 'reason', error)}"


def _words(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())


def main(arguments: list[str]) -> int:
    """The program: answers its exit code."""
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    try:
        good, sentence = probe(*arguments)
    except ValueError as error:
        sys.stderr.write(f"{error}\n{_USAGE}\n")
        return 2
    sys.stdout.write(f"{sentence}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
