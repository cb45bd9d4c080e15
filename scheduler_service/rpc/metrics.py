"""How many calls, how they ended, and how long they took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import grpc
from prometheus_client import CollectorRegistry, Histogram


@dataclass(slots=True)
class Outcome:
    """How a call ends; set by whoever ends it otherwise than well."""

    code: grpc.StatusCode = grpc.StatusCode.OK


class CallMetrics:
    """`carillon_rpc_seconds` by method and status code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "carillon_rpc_seconds",
            "Time to answer calls (streams: how long they lasted), by method and status code.",
            ["method", "code"],
            registry=registry,
        )

    @contextmanager
    def timed(self, method: str) -> Iterator[Outcome]:
        began, outcome = perf_counter(), Outcome()
        try:
            yield outcome
        except BaseException:
            if outcome.code is grpc.StatusCode.OK:
                outcome.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            self._seconds.labels(method.rpartition("/")[2], outcome.code.name).observe(perf_counter() - began)
