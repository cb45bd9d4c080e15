"""What an operator would do first: tenants' schedules, each in its own time zone."""

from __future__ import annotations

import asyncio

from carillon import CarillonError, Client

EMAIL_JOBS = ("email-service/weekly-digest", "email-service/welcome-mail")
KPI_JOBS = ("kpi-service/meta", "kpi-service/ga4", "kpi-service/shopify")
TENANTS = {"acme-in": "Asia/Kolkata", "globex-us": "America/New_York", "initech": "UTC"}
_REGISTERED_WITHIN = 20.0
_LOOK_EVERY = 0.2


async def wait_for_jobs(client: Client) -> None:
    """Until the examples have registered their jobs, which they do in the background."""
    async with asyncio.timeout(_REGISTERED_WITHIN):
        for job in (*EMAIL_JOBS, *KPI_JOBS):
            while not await _is_registered(client, job):  # noqa: ASYNC110 - the API tells nobody of a registration
                await asyncio.sleep(_LOOK_EVERY)


async def _is_registered(client: Client, job: str) -> bool:
    try:
        await client.get_job(job)
    except CarillonError as error:
        if error.reason != "NOT_FOUND":
            raise
        return False
    return True


async def put_tenant_schedules(client: Client) -> None:
    """Each sync for each tenant, nightly at 02:00 by the tenant's own clock."""
    for job in KPI_JOBS:
        for tenant, time_zone in TENANTS.items():
            await client.put_schedule(job, tenant=tenant, schedule="nightly", cron="0 2 * * *", time_zone=time_zone)
