"""The KPI example: right sums for each tenant, one file a run, and wrong tenants refused."""

from __future__ import annotations

import csv
import json
import uuid
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from carillon import Completed, Failed, Run

from examples.kpi_service import sources
from examples.kpi_service.syncs import Ga4Sync, MetaSync, ShopifySync, ga4, jobs, meta, shopify
from tests.unit.worker_service.conftest import A_RUN

TENANTS = ("acme-in", "globex-us", "initech")


class Recorder:
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.items: dict[str, str | None] = {}

    def progressed(self) -> None:
        """Progress is kept by the run itself."""

    def item_done(self, key: str, error: str | None) -> None:
        self.items[key] = error


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KPI_OUTPUT_DIR", str(tmp_path / "out"))
    return tmp_path / "out"


def a_run(tenant: str, scheduled_time: datetime = A_RUN.scheduled_time, recorder: Recorder | None = None) -> Run:
    assignment = replace(A_RUN, run_id=uuid.uuid4(), tenant=tenant, scheduled_time=scheduled_time, endpoint="")
    return Run(assignment, recorder or Recorder())


def column(file: str, tenant: str, name: str) -> list[Decimal]:
    """A column of the CSV file as it stands there, read without the code under test."""
    with (sources.FOLDER / f"{file}.csv").open(newline="") as opened:
        return [Decimal(row[name]) for row in csv.DictReader(opened) if row["tenant"] == tenant]


@pytest.mark.parametrize("tenant", TENANTS)
def test_each_sync_sums_its_file_for_its_tenant(tenant: str) -> None:
    spent = meta(a_run(tenant), MetaSync()).metrics
    assert spent["spend"] == float(sum(column("ad_spend", tenant, "spend")))
    assert spent["clicks"] == sum(column("ad_spend", tenant, "clicks"))
    assert spent["cost_per_click"] == pytest.approx(spent["spend"] / spent["clicks"], abs=0.005)
    visits = ga4(a_run(tenant), Ga4Sync()).metrics
    assert visits["sessions"] == sum(column("sessions", tenant, "sessions"))
    sold = shopify(a_run(tenant), ShopifySync()).metrics
    assert sold["orders"] == len(column("orders", tenant, "amount")) > 0
    assert sold["net"] == float(sum(column("orders", tenant, "amount")) - sum(column("orders", tenant, "refunded")))


def test_a_run_leaves_one_file_with_its_groups_and_their_total(folder: Path) -> None:
    recorder = Recorder()
    run = a_run("acme-in", recorder=recorder)
    completed = meta(run, MetaSync())
    [file] = folder.iterdir()
    assert file.name == f"{run.run_id}.json" == completed.metadata["file"]
    written = json.loads(file.read_text())
    assert set(written["groups"]) == {"brand-search", "diwali-sale", "retargeting"}
    assert recorder.items == dict.fromkeys(written["groups"])
    assert sum(group["clicks"] for group in written["groups"].values()) == written["total"]["clicks"]
    assert written["scheduled_time"] == "2026-11-23T19:30:00+05:30"
    assert run.progress_made[:2] == (3, 3)


def test_a_second_attempt_replaces_the_file(folder: Path) -> None:
    run = a_run("initech")
    meta(run, MetaSync())
    ga4(run, Ga4Sync())
    [file] = folder.iterdir()
    assert "sessions" in json.loads(file.read_text())["total"]


def test_the_day_is_the_tenants_own(folder: Path) -> None:
    just_after_midnight_in_kolkata = datetime(2026, 11, 12, 18, 45, tzinfo=timezone.utc)

    def day(tenant: str) -> Completed:
        return meta(a_run(tenant, just_after_midnight_in_kolkata), MetaSync(only_day=True))

    def clicks(tenant: str, day: str) -> int:
        return sum(row.clicks for row in sources.ad_spend(tenant) if row.day.isoformat() == day)

    assert day("acme-in").metrics["clicks"] == clicks("acme-in", "2026-11-12") > 0
    assert day("globex-us").metrics["clicks"] == clicks("globex-us", "2026-11-11") > 0


def test_a_day_without_rows_is_a_result_too() -> None:
    completed = shopify(a_run("initech"), ShopifySync(only_day=True))
    assert completed.metrics == {
        "rows": 0,
        "orders": 0,
        "gross": 0.0,
        "refunded": 0.0,
        "net": 0.0,
        "net_per_order": 0.0,
    }


def test_the_payload_chooses_channels_and_amounts() -> None:
    paid = ga4(a_run("initech"), Ga4Sync(channels=["paid"])).metrics
    assert paid["rows"] == 7
    large = [amount for amount in column("orders", "initech", "amount") if amount >= 100]
    assert shopify(a_run("initech"), ShopifySync(min_amount=100)).metrics["orders"] == len(large)


def test_a_tenant_that_is_not_there_fails_with_a_sentence(folder: Path) -> None:
    with pytest.raises(Failed, match="there is no tenant 'nobody'"):
        meta(a_run("nobody"), MetaSync())
    assert not folder.exists()


def test_the_jobs_have_no_cron_and_take_tenants_schedules() -> None:
    specs = {spec.job: spec for spec in jobs.manifest().jobs}
    assert set(specs) == {"meta", "ga4", "shopify"}
    assert all(spec.tenant_schedules and not spec.timing.HasField("cron") for spec in specs.values())
