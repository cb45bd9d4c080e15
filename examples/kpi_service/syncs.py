"""The jobs: three syncs, for tenants whose schedules an operator (or the tenant) puts. They have no cron of their own.

Each is a plain function, which Carillon runs in a thread. Its second parameter is the payload: the schedule's config,
checked and decoded; a wrong one fails the run with a sentence before any of this code runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol, TypeVar

from carillon import Completed, Failed, Jobs, Run

from examples.kpi_service import aggregates, output, sources
from examples.kpi_service.sources import Tenant

jobs = Jobs(service="kpi-service")


class Dated(Protocol):
    @property
    def day(self) -> date: ...


Row = TypeVar("Row", bound=Dated)


@dataclass
class MetaSync:
    """only_day: only the day before the nominal instant, as the tenant's calendar has it; default: the whole file."""

    only_day: bool = False


@dataclass
class Ga4Sync:
    """As MetaSync. channels: only these; default: all."""

    only_day: bool = False
    channels: list[str] | None = None


@dataclass
class ShopifySync:
    """As MetaSync. min_amount: orders below it are left out."""

    only_day: bool = False
    min_amount: float = 0.0


@jobs.handler("meta", tenant_schedules=True, display_name="Meta ad spend", labels={"job_type": "sync"})
def meta(run: Run, payload: MetaSync) -> Completed:
    """Ad spend by campaign."""
    rows = sources.ad_spend(run.tenant)
    return _sync(run, payload.only_day, rows, lambda row: row.campaign, aggregates.of_ad_spend)


@jobs.handler("ga4", tenant_schedules=True, display_name="GA4 sessions", labels={"job_type": "sync"})
def ga4(run: Run, payload: Ga4Sync) -> Completed:
    """Sessions by channel."""
    wanted = payload.channels
    rows = [row for row in sources.sessions(run.tenant) if wanted is None or row.channel in wanted]
    return _sync(run, payload.only_day, rows, lambda row: row.channel, aggregates.of_sessions)


@jobs.handler("shopify", tenant_schedules=True, display_name="Shopify orders", labels={"job_type": "sync"})
def shopify(run: Run, payload: ShopifySync) -> Completed:
    """Orders by day."""
    rows = [row for row in sources.orders(run.tenant) if row.amount >= payload.min_amount]
    return _sync(run, payload.only_day, rows, lambda row: row.day.isoformat(), aggregates.of_orders)


def _sync(
    run: Run,
    only_day: bool,
    rows: Sequence[Row],
    group: Callable[[Row], str],
    aggregate: Callable[[Iterable[Row]], dict[str, Any]],
) -> Completed:
    """Aggregates each group as an item of the run, and all rows together as its metrics."""
    tenant = sources.find_tenant(run.tenant)
    if tenant is None:
        raise Failed("UNKNOWN_TENANT", f"there is no tenant {run.tenant!r} in tenants.csv", retry=False)
    if only_day:
        yesterday = tenant.day_before(run.scheduled_time)
        rows = [row for row in rows if row.day == yesterday]
    groups: dict[str, dict[str, Any]] = {}
    for name in run.track(sorted({group(row) for row in rows}), message=f"{run.job} for {run.tenant}"):
        with run.item(name):
            groups[name] = aggregate(row for row in rows if group(row) == name)
    total = aggregate(rows)
    path = output.write(_output_folder(), run.run_id, _result(run, tenant, total, groups))
    return Completed(metrics={"rows": len(rows), **total}, metadata={"file": path.name, "currency": tenant.currency})


def _result(run: Run, tenant: Tenant, total: dict[str, Any], groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "run": str(run.run_id),
        "job": run.job,
        "tenant": run.tenant,
        "scheduled_time": run.scheduled_time.astimezone(tenant.time_zone).isoformat(),
        "currency": tenant.currency,
        "total": total,
        "groups": groups,
    }


def _output_folder() -> Path:
    return Path(os.environ.get("KPI_OUTPUT_DIR", "kpi-output"))
