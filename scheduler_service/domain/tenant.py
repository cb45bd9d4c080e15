"""A tenant, as far as schedules need to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Tenant:
    """`time_zone` is that of its schedules that name none; empty: their jobs'. One that was never set has no times."""

    tenant: str
    time_zone: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    updated_by: str = ""
