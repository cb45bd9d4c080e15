"""What a replica shows Prometheus beside its calls: its readiness, its workers, the queue, what it did, its loops.

docs/metrics.md is made from these texts, by `make docs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler_service.domain.repairs import Repair
from scheduler_service.engine.pulses import Pulses
from scheduler_service.engine.sealing import Sealing
from scheduler_service.engine.sessions import Sessions
from scheduler_service.identity.jwks import Jwks
from scheduler_service.loops.engine import Engine
from scheduler_service.loops.loop import Loop
from scheduler_service.loops.reaper import ReaperLoop
from scheduler_service.store.audit_seals import CAP as AUDIT_CAP
from scheduler_service.store.backlog import CAP


class ReplicaMetrics(Collector):
    """Read at each scrape from those who know; nothing is counted twice and nothing is kept here."""

    def __init__(
        self,
        sessions: Sessions,
        engine: Engine,
        reaper: ReaperLoop,
        loops: Sequence[Loop],
        is_ready: Callable[[], bool],
        sealing: Sealing,
        pulses: Pulses,
    ) -> None:
        self._sessions = sessions
        self._engine = engine
        self._reaper = reaper
        self._loops = loops
        self._is_ready = is_ready
        self._sealing = sealing
        self._pulses = pulses

    def register(self, registry: CollectorRegistry) -> None:
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("ready", "1 while database and schema are there.", float(self._is_ready()))
        yield _gauge("sessions", "Worker sessions connected to this replica.", len(self._sessions))
        credit = sum(session.credit for session in self._sessions)
        yield _gauge("credit", "Runs that workers connected here could take at once.", credit)
        waiting = len(self._engine.completer)
        yield _gauge("reports_waiting", "Results and items that are not committed yet.", waiting)
        yield from self._backlog()
        yield from self._done()
        yield from self._repairs()
        yield from self._audit_trail()
        yield from self._loop_health()

    def _audit_trail(self) -> Iterator[Metric]:
        """Left without figures while the database cannot be asked."""
        standing = self._sealing.standing
        whose = "All replicas show the same."
        yield _gauge(
            "audit_position", f"Sealed events of the audit trail. {whose}", standing.position if standing else None
        )
        yield _gauge(
            "audit_unsealed",
            f"Events of the audit trail that wait for their seal; {AUDIT_CAP:,} means so many or more. {whose}",
            standing.unsealed if standing else None,
        )
        yield _gauge(
            "audit_oldest_unsealed_seconds",
            "For how long the first of them has waited, 0 if none does; over 60 means that no sealer runs, or that one"
            f" event cannot be sealed. {whose}",
            standing.oldest if standing else None,
        )
        yield _gauge(
            "audit_set_aside",
            "Events of the audit trail that this replica cannot seal, and goes on without; its log has their ids. Each"
            " is tried again every 10 minutes.",
            self._sealing.set_aside,
        )

    def _backlog(self) -> Iterator[Metric]:
        """Left without figures while the database cannot be asked: an old figure would mislead a scaler."""
        counts = self._engine.backlog.counts
        waiting = counts.waiting if counts else {}
        whose = "All replicas show the same: take the maximum, not the sum."
        yield _gauges(
            "pending_runs",
            f"Runs that are due and in no worker's hands; {CAP:,} means so many or more. {whose}",
            "route",
            {route: each.runs for route, each in waiting.items()},
        )
        yield _gauges(
            "oldest_pending_seconds",
            f"For how long the first of them has been due; 0 if none is. {whose}",
            "route",
            {route: each.oldest for route, each in waiting.items()},
        )
        yield _gauges(
            "live_runs",
            "Runs that have not ended: `PENDING` (those that wait for their time too, but not those that wait for an"
            f" earlier run of their schedule) or `RUNNING`; {CAP:,} means so many or more. {whose}",
            "state",
            counts.live if counts else {},
        )

    def _done(self) -> Iterator[Metric]:
        ticks, reaped = self._engine.ticks, self._reaper.total
        yield _counter("ticks", "Looks of this replica for due schedules.", ticks.ticks)
        yield _counter("runs_made", "Runs that this replica made for occurrences of schedules.", ticks.runs)
        yield _counter(
            "runs_buffered", "Of these, runs that waited for an earlier one of their schedule.", ticks.buffered
        )
        ended = Counter({"COMPLETED": 0, "FAILED": reaped.failed, "CANCELLED": reaped.cancelled})
        ended.update(self._engine.completer.ended)
        yield _counters(
            "runs_ended",
            "Runs whose end this replica recorded, by outcome; not those that were cancelled while they were pending.",
            "state",
            {**ended, "SKIPPED": ticks.skipped},
        )
        yield _counter("sessions_lost", "Worker sessions whose lease ended, seen by this replica.", reaped.sessions)
        yield _counters(
            "runs_reaped",
            "Runs of lost sessions and over their time that this replica took back: `freed` (the attempt costs"
            " nothing), `charged` (to be tried again), or ended as `failed` or `cancelled`. `released`: runs that"
            " waited for an earlier one of their schedule, although there was none; `removed`: live rows of runs that"
            " had ended. Neither is expected.",
            "became",
            {
                "freed": reaped.freed,
                "charged": reaped.charged,
                "failed": reaped.failed,
                "cancelled": reaped.cancelled,
                "released": reaped.released,
                "removed": reaped.removed,
            },
        )

    def _repairs(self) -> Iterator[Metric]:
        repairs = Counter(dict.fromkeys(Repair, 0))
        repairs.update(self._reaper.reaper.repairs)
        repairs.update(self._engine.repairs)
        yield _counters(
            "repairs",
            "What this replica mended, by what was found: sessions, runs or schedules. `session_lost`, `worker_lost`,"
            " `never_arrived`, `attempt_overdue`, `cancel_grace`, `run_timeout` and `schedule_set_aside` follow from"
            " workers, their connections and jobs; any other kind is a fault of Carillon's, or somebody's hand in the"
            " database.",
            "kind",
            {kind.value: count for kind, count in repairs.items()},
        )
        yield _gauge(
            "unrepairable",
            "Runs and schedules that this replica cannot mend or take back, and goes on without; its log has their"
            " names. Each is tried again after a pause that grows from 5 s to 10 minutes.",
            self._reaper.reaper.set_aside,
        )
        yield _gauge(
            "unrecordable",
            "Attempts whose results this replica cannot record, or for a minute could not since somebody keeps a row"
            " locked; it goes on without, and its log has their runs' names. Their workers get no answer meanwhile."
            " Each is tried again after a pause that grows from 5 s to 10 minutes (30 s, for a lock).",
            self._engine.completer.set_aside,
        )

    def _loop_health(self) -> Iterator[Metric]:
        idle = {loop.name: loop.health().idle_seconds for loop in self._loops}
        yield _gauges(
            "loop_idle_seconds",
            "Seconds since a loop's last step that went well; over 30 means that it is stuck or its database away.",
            "loop",
            {name: float("inf") if seconds is None else seconds for name, seconds in idle.items()},
        )
        yield _gauges(
            "loop_idle_everywhere_seconds",
            "Seconds since a loop's last step that went well on any replica, by the database's clock; over 60 means"
            " that it works on none. All replicas show the same: take the maximum. Left without figures while the"
            " database cannot be asked.",
            "loop",
            self._pulses.idle,
        )
        failures = {loop.name: loop.failures for loop in self._loops}
        yield _counters("loop_failures", "Steps of a loop that failed; each is tried again.", "loop", failures)


class KeySetMetrics(Collector):
    """How the key set of JWTs fares; without figures where none is used."""

    def __init__(self, jwks: Jwks | None) -> None:
        self._jwks = jwks

    def register(self, registry: CollectorRegistry) -> None:
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        age = None if self._jwks is None else self._jwks.age
        yield _gauge(
            "jwks_age_seconds",
            "Since the key set of CARILLON_JWKS_URL was fetched; none before that. Over twice"
            " CARILLON_JWKS_REFRESH_SECONDS means that it cannot be had; JWTs count until"
            " CARILLON_JWKS_MAX_AGE_SECONDS.",
            age,
        )
        failures = 0 if self._jwks is None else self._jwks.failures
        yield _counter("jwks_failures", "Fetches of the key set that brought no good answer.", failures)


def _gauge(name: str, says: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"carillon_{name}", says, value=value)


def _gauges(name: str, says: str, label: str, values: Mapping[str, float]) -> Metric:
    return _labelled(GaugeMetricFamily(f"carillon_{name}", says, labels=[label]), values)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"carillon_{name}", says, value=value)


def _counters(name: str, says: str, label: str, values: Mapping[str, float]) -> Metric:
    return _labelled(CounterMetricFamily(f"carillon_{name}", says, labels=[label]), values)


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]
) -> GaugeMetricFamily | CounterMetricFamily:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
