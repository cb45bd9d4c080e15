"""Writes docs/configuration.md from the services' settings and docs/metrics.md from their registries of metrics.
With --check, only says what differs. `make docs` and `make check` call it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from carillon.session import SessionState
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from scheduler_service.app import App
from scheduler_service.settings import FROM_FILES, read_settings
from scheduler_service.settings import Settings as SchedulerSettings
from worker_service.metrics import Metrics as WorkerMetrics
from worker_service.settings import Settings as WorkerSettings

DOCS = Path(__file__).parent
_MADE = "<!-- Made by `make docs`; a change here is lost. -->"

_CONFIGURATION = """\
# Configuration

{made}

Settings are read once, from the environment. A wrong one ends the process at once, with a sentence that names the \
variable.

## Scheduler

`python -m scheduler_service`. With `_FILE` behind its name a variable names a file that holds the value, for mounted \
secrets; so may be given {files}. The file is read at start: restart after changing it.

{scheduler}

## Worker

`python -m worker_service`.

{worker}

## Client

What `import carillon` reads where the program does not say it.

| variable | default | meaning |
| --- | --- | --- |
| `CARILLON_TARGET` | `127.0.0.1:7007` | The scheduler's gRPC address. |
| `CARILLON_TLS` |  | `true`: TLS, with the public authorities. Not needed beside a file below. |
| `CARILLON_TLS_CA_FILE` |  | PEM: the authorities to trust instead. |
| `CARILLON_TLS_CERTIFICATE_FILE` |  | PEM: the client's own certificate, for the scheduler's mTLS port. |
| `CARILLON_TLS_KEY_FILE` |  | PEM: its key. |
| `CARILLON_PLAINTEXT` | `false` | Allows to send the token beyond loopback without TLS, where a mesh or a proxy \
brings it. |
| `CARILLON_SERVICE_TOKEN` |  | The service's token, `id.secret`. |
| `CARILLON_SERVICE_TOKEN_FILE` |  | A file that holds the token instead. |
| `CARILLON_SIGNING_KEYS` |  | The one or two keys that calls to this service are signed with, `whsec_...,...`: for \
`jobs.verify`. |
| `CARILLON_SIGNING_KEYS_FILE` |  | A file that holds the keys instead. |
| `CARILLON_GENERATION` | `0` | Which deploy this is, a number that grows with each: an older one's registration is \
refused. |
"""

_METRICS = """\
# Metrics

{made}

Each process answers `/metrics` over HTTP in Prometheus's text format: schedulers on `CARILLON_METRICS_PORT` (7008), \
workers on `CARILLON_WORKER_PORT` (7009). A counter begins at 0 with its process: use `rate` or `increase`. A \
histogram has `_bucket`, `_sum` and `_count`.

## Scheduler

{scheduler}

## Worker

{worker}

## What to alert on

{alerts}
"""

ALERTS = (
    (
        "max(carillon_oldest_pending_seconds) by (route) > 60",
        "for 2 minutes: runs are due and nobody takes them. Too few workers, or none that serves the route.",
    ),
    ("carillon_ready == 0", "for 1 minute: the replica cannot reach the database, or the schema does not fit."),
    ("carillon_loop_idle_seconds > 30", "for 1 minute: a loop of the replica is stuck; its log says why."),
    (
        "max(carillon_loop_idle_everywhere_seconds) by (loop) > 60",
        "for 1 minute: a loop works on no replica. Of `reaper`: the runs of lost workers stay with them.",
    ),
    (
        'increase(carillon_repairs_total{kind=~"session_gone|stop_forgotten|recorded_already|turn_free|schedule_not_armed'
        '|partition_missing"}[1h]) > 0',
        "something was mended that no worker is to blame for; the log line `repaired` has names.",
    ),
    ("carillon_unrepairable > 0", "for 10 minutes: what the reaper cannot mend stays as it is; the log has names."),
    ("carillon_unrecordable > 0", "for 10 minutes: the ends of runs cannot be recorded; the log says why, with names."),
    (
        "carillon_audit_oldest_unsealed_seconds > 60 or absent(carillon_audit_oldest_unsealed_seconds)",
        "for 1 minute: no scheduler seals the audit trail, or nobody knows; the log of loop `sealer` says why. Until it"
        " goes on, changes of its newest events cannot be found.",
    ),
    (
        'increase(carillon_loop_failures_total{loop="sealer"}[10m]) > 5',
        "sealing the audit trail fails again and again; the log of loop `sealer` says why.",
    ),
    (
        "carillon_audit_set_aside > 0",
        "an event of the audit trail cannot be sealed; the log has its id. The others are sealed without it.",
    ),
    (
        "increase(carillon_sessions_lost_total[10m]) > 0",
        "a worker was killed, hung, or lost its network. Its runs were given to others.",
    ),
    (
        'sum(rate(carillon_runs_ended_total{state="FAILED"}[15m])) > 0.05 * sum(rate(carillon_runs_ended_total[15m]))',
        "for 15 minutes: more than one run in twenty fails after all its attempts.",
    ),
    (
        'sum(rate(carillon_rpc_seconds_count{code=~"INTERNAL|UNAVAILABLE"}[5m])) > 0',
        "for 5 minutes: calls are answered with a fault of the scheduler's or the database's.",
    ),
    ("carillon_worker_connected == 0", "for 1 minute: the worker has no scheduler; its `/readyz` says why."),
    (
        "carillon_worker_unacknowledged_results > 0",
        "for 2 minutes: results are there and no scheduler commits them.",
    ),
)


def configuration() -> str:
    """docs/configuration.md as it should be."""
    return _CONFIGURATION.format(
        made=_MADE,
        files=", ".join(f"`CARILLON_{name.upper()}`" for name in FROM_FILES),
        scheduler=settings_table(SchedulerSettings),
        worker=settings_table(WorkerSettings),
    )


def settings_table(settings: type[BaseSettings]) -> str:
    rows = [
        f"| `CARILLON_{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def _default(field: FieldInfo) -> str:
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if field.is_required() or field.default_factory or default in ("", None) or default == {}:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def metrics() -> str:
    """docs/metrics.md as it should be."""
    return _METRICS.format(
        made=_MADE,
        scheduler=metrics_table(scheduler_registry()),
        worker=metrics_table(worker_registry()),
        alerts="\n".join(f"- `{expression}` {why}" for expression, why in ALERTS),
    )


def scheduler_registry() -> CollectorRegistry:
    """What a scheduler shows, of one that was built and never started."""

    async def build() -> CollectorRegistry:
        urls = {f"{role}_url": f"postgresql://{role}@localhost/nowhere" for role in ("database", "engine")}
        app = App(read_settings(**urls))
        await app.close()
        return app.registry

    return asyncio.run(build())


def worker_registry() -> CollectorRegistry:
    """What a worker shows, of one that was never started."""
    nothing = SessionState(False, "", 0, 0, 0, 0, False, "")
    return WorkerMetrics(lambda: nothing).registry


def metrics_table(registry: CollectorRegistry) -> str:
    rows = []
    for family, labels in described(registry):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |")
    return "\n".join(["| name | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])


def described(registry: CollectorRegistry) -> Iterator[tuple[Metric, Sequence[str]]]:
    """Each family of metrics with its labels.

    prometheus_client tells labels of figures only, and most families have none yet: hence its private attributes.
    """
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            yield from ((family, collector._labelnames) for family in collector.describe())
        else:
            yield from ((family, family._labelnames) for family in collector.collect())  # type: ignore[attr-defined]


def stale() -> list[Path]:
    """The files that are not what the code says."""
    return [path for path, text in made().items() if not path.exists() or path.read_text() != text]


def made() -> Mapping[Path, str]:
    return {DOCS / "configuration.md": configuration(), DOCS / "metrics.md": metrics()}


def main() -> int:
    differing = stale()
    for path in differing:
        if "--check" in sys.argv:
            print(f"docs/{path.name} is not what the code says; run `make docs`")
        else:
            path.write_text(made()[path])
            print(f"wrote docs/{path.name}")
    return 1 if differing and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
