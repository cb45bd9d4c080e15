"""What an operator would do first: tenants' schedules, each in its own time zone."""

from __future__ import annotations

from carillon import Client

EMAIL_JOBS = ("email-service/weekly-digest", "email-service/welcome-mail")
KPI_JOBS = ("kpi-service/meta", "kpi-service/ga4", "kpi-service/shopify")
TENANTS = {"acme-in": "Asia/Kolkata", "globex-us": "America/New_York", "initech": "UTC"}


async def put_tenant_schedules(client: Client) -> None:
    """Each sync for each tenant, nightly at 02:00 by the tenant's own clock."""
    for job in KPI_JOBS:
        for tenant, time_zone in TENANTS.items():
            await client.put_schedule(job, tenant=tenant, schedule="nightly", cron="0 2 * * *", time_zone=time_zone)
