"""The sums that each sync makes. Money stays decimal until it is written."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from examples.kpi_service.sources import AdSpend, Order, Sessions


def of_ad_spend(rows: Iterable[AdSpend]) -> dict[str, Any]:
    """Impressions, clicks and spend, with the rate of clicks and the cost of one."""
    impressions = clicks = 0
    spend = Decimal()
    for row in rows:
        impressions, clicks, spend = impressions + row.impressions, clicks + row.clicks, spend + row.spend
    return {
        "impressions": impressions,
        "clicks": clicks,
        "spend": float(spend),
        "click_rate": _ratio(clicks, impressions, 5),
        "cost_per_click": _ratio(spend, clicks, 2),
    }


def of_sessions(rows: Iterable[Sessions]) -> dict[str, Any]:
    """Sessions, how many were engaged, and conversions with their rate."""
    sessions = engaged = conversions = 0
    for row in rows:
        sessions, engaged = sessions + row.sessions, engaged + row.engaged
        conversions += row.conversions
    return {
        "sessions": sessions,
        "engaged": engaged,
        "conversions": conversions,
        "conversion_rate": _ratio(conversions, sessions, 5),
    }


def of_orders(rows: Iterable[Order]) -> dict[str, Any]:
    """Orders, gross and refunded amounts, and what remains for each order."""
    orders = 0
    gross = refunded = Decimal()
    for row in rows:
        orders, gross, refunded = orders + 1, gross + row.amount, refunded + row.refunded
    return {
        "orders": orders,
        "gross": float(gross),
        "refunded": float(refunded),
        "net": float(gross - refunded),
        "net_per_order": _ratio(gross - refunded, orders, 2),
    }


def _ratio(part: Decimal | int, whole: int, digits: int) -> float:
    return round(float(part) / whole, digits) if whole else 0.0
