"""What a replica shows Prometheus beside its calls: its readiness, its workers, its queue and its loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler_service.loops.loop import Loop
from scheduler_service.usecases.complete import Completer
from scheduler_service.usecases.sessions import Sessions


class ReplicaMetrics(Collector):
    """Read at each scrape; nothing is counted twice and nothing is kept."""

    def __init__(
        self, sessions: Sessions, completer: Completer, loops: Iterable[Loop], is_ready: Callable[[], bool]
    ) -> None:
        self._sessions = sessions
        self._completer = completer
        self._loops = tuple(loops)
        self._is_ready = is_ready

    def register(self, registry: CollectorRegistry) -> None:
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("carillon_ready", "1 while database and schema are there.", float(self._is_ready()))
        yield _gauge("carillon_sessions", "Worker sessions connected to this replica.", len(self._sessions))
        credit = sum(session.credit for session in self._sessions)
        yield _gauge("carillon_credit", "Runs that workers connected here could take at once.", credit)
        waiting = len(self._completer)
        yield _gauge("carillon_reports_waiting", "Results and items that are not committed yet.", waiting)
        yield self._loop_ages()

    def _loop_ages(self) -> Metric:
        ages = GaugeMetricFamily(
            "carillon_loop_idle_seconds",
            "Seconds since a loop's last step that went well; over 10 means that it is stuck or its database away.",
            labels=["loop"],
        )
        for loop in self._loops:
            idle = loop.health().idle_seconds
            ages.add_metric([loop.name], float("inf") if idle is None else idle)
        return ages


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(name, says, value=value)
