"""The worker's figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from carillon.session import SessionState
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """A registry of its own, so that two workers in one process do not meet. `state` is asked at each scrape."""

    def __init__(self, state: Callable[[], SessionState]) -> None:
        self.registry = CollectorRegistry()
        self._attempts = Counter(
            "carillon_worker_attempts",
            "Attempts that ended here: completed, failed, or stopped (cancelled, out of time, or given up).",
            ["outcome"],
            registry=self.registry,
        )
        self._http_seconds = Histogram(
            "carillon_worker_http_seconds",
            "Duration of HTTP calls to services, by class of status, or `unreachable`.",
            ["status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._grpc_seconds = Histogram(
            "carillon_worker_grpc_seconds",
            "Duration of gRPC calls to services, by status, such as `OK`.",
            ["status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._gauge("connected", "1 while a stream to a scheduler is open.", lambda: state().connected)
        self._gauge("running", "Attempts that run now.", lambda: state().running)
        self._gauge("unacknowledged_results", "Results that no scheduler took yet.", lambda: state().unacknowledged)

    def count_attempt(self, outcome: str) -> None:
        """Counts an attempt that ended."""
        self._attempts.labels(outcome).inc()

    def observe_call(self, status: int | None, seconds: float) -> None:
        """Counts an HTTP call to a service. `status` is None if there was no answer."""
        self._http_seconds.labels(f"{status // 100}xx" if status else "unreachable").observe(seconds)

    def observe_grpc_call(self, status: str, seconds: float) -> None:
        """Counts a gRPC call to a service, by the name of its status."""
        self._grpc_seconds.labels(status).observe(seconds)

    def _gauge(self, name: str, says: str, value: Callable[[], float]) -> None:
        Gauge(f"carillon_worker_{name}", says, registry=self.registry).set_function(value)
