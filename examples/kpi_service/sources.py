"""The CSV files beside this one, in place of the APIs that a real service would call. Days are the tenant's own."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Tenant:
    tenant: str
    time_zone: ZoneInfo
    currency: str

    def day_before(self, instant: datetime) -> date:
        """The last whole calendar day that this tenant had at the instant."""
        return instant.astimezone(self.time_zone).date() - timedelta(days=1)


@dataclass(frozen=True)
class AdSpend:
    day: date
    campaign: str
    impressions: int
    clicks: int
    spend: Decimal


@dataclass(frozen=True)
class Sessions:
    day: date
    channel: str
    sessions: int
    engaged: int
    conversions: int


@dataclass(frozen=True)
class Order:
    day: date
    order: str
    amount: Decimal
    refunded: Decimal


def find_tenant(tenant: str) -> Tenant | None:
    for row in _rows("tenants"):
        if row["tenant"] == tenant:
            return Tenant(tenant, ZoneInfo(row["time_zone"]), row["currency"])
    return None


def ad_spend(tenant: str) -> list[AdSpend]:
    return [
        AdSpend(_day(row), row["campaign"], int(row["impressions"]), int(row["clicks"]), Decimal(row["spend"]))
        for row in _rows_of("ad_spend", tenant)
    ]


def sessions(tenant: str) -> list[Sessions]:
    return [
        Sessions(_day(row), row["channel"], int(row["sessions"]), int(row["engaged"]), int(row["conversions"]))
        for row in _rows_of("sessions", tenant)
    ]


def orders(tenant: str) -> list[Order]:
    return [
        Order(_day(row), row["order"], Decimal(row["amount"]), Decimal(row["refunded"]))
        for row in _rows_of("orders", tenant)
    ]


def _day(row: dict[str, str]) -> date:
    return date.fromisoformat(row["day"])


def _rows_of(name: str, tenant: str) -> Iterator[dict[str, str]]:
    return (row for row in _rows(name) if row["tenant"] == tenant)


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
