"""Carillon's client: declare a service's jobs, carry out its runs, read and steer what runs.

import carillon

jobs = carillon.Jobs(service="kpi-service")

@jobs.handler("weekly-digest", cron="0 9 * * 1", time_zone="America/New_York")
async def weekly_digest(run: carillon.Run) -> None: ...

async with jobs: ...
"""

from __future__ import annotations

from carillon.client import Client
from carillon.errors import (
    AlreadyExists,
    CarillonError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Refused,
    SchedulerUnavailable,
    SignatureInvalid,
    SigningKeysMissing,
    Violation,
)
from carillon.jobs import Jobs
from carillon.outcome import Cancelled, Completed, Failed, ItemCounts
from carillon.run import Run
from carillon.tls import Tls
from carillon.version import __version__
from carillon.worker import Worker

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "CarillonError",
    "Client",
    "Completed",
    "Failed",
    "InvalidRequest",
    "ItemCounts",
    "Jobs",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "RateLimited",
    "Refused",
    "Run",
    "SchedulerUnavailable",
    "SignatureInvalid",
    "SigningKeysMissing",
    "Tls",
    "Violation",
    "Worker",
    "__version__",
]
