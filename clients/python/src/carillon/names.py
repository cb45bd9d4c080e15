"""Resource names, from the short forms that people write."""

from __future__ import annotations

import uuid


def job_name(job: str) -> str:
    """`services/{service}/jobs/{job}`, also from `{service}/{job}`. Raises ValueError for anything else."""
    parts = job.split("/")
    if len(parts) == 2 and all(parts):
        return f"services/{parts[0]}/jobs/{parts[1]}"
    if len(parts) == 4 and parts[0] == "services" and parts[2] == "jobs" and parts[1] and parts[3]:
        return job
    raise ValueError(f"{job!r} names no job; write 'email-service/weekly-digest'")


def service_name(service: str) -> str:
    """`services/{service}`, also from the service's id."""
    return service if service.startswith("services/") else f"services/{service}"


def run_name(run: str | uuid.UUID) -> str:
    """`runs/{run}`, also from the run's id."""
    return run if isinstance(run, str) and run.startswith("runs/") else f"runs/{run}"


def tenant_name(tenant: str) -> str:
    """`tenants/{tenant}`, also from the tenant's id."""
    return tenant if tenant.startswith("tenants/") else f"tenants/{tenant}"


def schedule_name(job: str, tenant: str, schedule: str) -> str:
    """A schedule's resource name; tenant `-` is the system."""
    return f"{job_name(job)}/tenants/{tenant}/schedules/{schedule}"
