"""The client's calls about schedules against a whole scheduler: from putting one to deleting it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import carillon
import pytest

JOB = "my-service/digest"
TOKYO = ZoneInfo("Asia/Tokyo")


@pytest.fixture(scope="session")
def carillon_services() -> list[str]:
    return ["my-service"]


def far_hour(zone: tzinfo) -> int:
    """An hour of the day that is far away now: nothing comes due while a test lasts."""
    return (datetime.now(zone).hour + 12) % 24


@pytest.fixture
def jobs(carillon_scheduler: Any) -> carillon.Jobs:
    token = carillon_scheduler.service_token("my-service")
    jobs = carillon.Jobs("my-service", target=carillon_scheduler.target, token=token)
    jobs.endpoint(
        "digest",
        "http://127.0.0.1:9/digest",
        cron=f"0 {far_hour(timezone.utc)} * * *",
        overlap="buffer_one",
        catch_up="all",
        catch_up_window=timedelta(hours=6),
        tenant_schedules=True,
    )
    return jobs


async def test_a_schedule_is_steered_from_its_first_day_to_its_last(
    carillon_scheduler: Any, jobs: carillon.Jobs
) -> None:
    hour = far_hour(TOKYO)
    await jobs.register()
    async with carillon.Client(carillon_scheduler.target, token=carillon_scheduler.admin_token()) as client:
        policies = (await client.get_job(JOB)).effective.policies
        assert policies.catch_up_window.seconds == 6 * 3_600
        await client.put_tenant("acme", time_zone="Asia/Tokyo")
        put = await client.put_schedule(JOB, tenant="acme", cron=f"30 {hour} * * *")
        assert put.effective_timing.time_zone == "Asia/Tokyo"
        preview = await client.preview_occurrences(JOB, tenant="acme", count=3)
        assert [each.local_time[11:] for each in preview.occurrences] == [f"{hour:02}:30:00"] * 3
        assert preview.occurrences[0].time == put.next_run_time
        proposed = await client.preview_occurrences(cron="30 2 * * *", time_zone="America/New_York", count=1)
        assert proposed.description == "At 02:30 every day, New York time"
        assert (await client.pause_schedule(JOB, tenant="acme")).HasField("pause_time")
        plan = await client.resume_schedule(JOB, tenant="acme", catch_up="all", validate_only=True)
        assert (plan.catch_up.runs, plan.schedule.HasField("pause_time")) == (0, True)
        resumed = await client.resume_schedule(JOB, tenant="acme")
        assert not resumed.schedule.HasField("pause_time")
        run = await client.run_schedule(JOB, {"full": True}, tenant="acme")
        assert run.payload["full"] is True
        assert [entry async for entry in client.list_ledger(JOB, tenant="acme")] == []
        now = datetime.now(timezone.utc)
        counted = await client.backfill_job(JOB, now - timedelta(days=2), now, tenant="*", validate_only=True)
        assert (counted.runs, counted.name) == (4, "")
        backfill = await client.backfill_job(JOB, now - timedelta(days=1), now, tenant="acme")
        assert (backfill.runs, (await client.get_backfill(backfill.name)).runs) == (1, 1)
        assert [each.name async for each in client.list_backfills(JOB)] == [backfill.name]
        assert (await client.cancel_backfill(backfill.name, "enough")).cancelled == 1
        paused = await client.pause_job(JOB)
        assert paused.paused
        assert not (await client.resume_job(JOB, catch_up="latest")).job.paused
        await client.delete_schedule(JOB, tenant="acme")
        with pytest.raises(carillon.NotFound):
            await client.run_schedule(JOB, tenant="acme")
        assert (await client.remove_tenant("acme")).deleted_schedules == 0
