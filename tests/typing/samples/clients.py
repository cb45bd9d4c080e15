"""What the clients answer, and what they do not take; the same for both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from datetime import datetime, timezone

import carillon
from carillon import blocking
from carillon.v1 import backfill_pb2, job_pb2, ledger_pb2, run_pb2, schedule_pb2
from typing_extensions import assert_type

MARCH = datetime(2026, 3, 1, tzinfo=timezone.utc)
APRIL = datetime(2026, 4, 1, tzinfo=timezone.utc)


async def steer(client: carillon.Client) -> None:
    async with client as opened:
        assert_type(opened, carillon.Client)
    job = await client.get_job("email-service/digest")
    assert_type(job, job_pb2.Job)
    assert_type(job.name, str)
    assert_type(await client.trigger_job("email-service/digest", {"size": 5}, tenants=["acme"]), list[run_pb2.Run])
    assert_type(client.list_jobs("email-service"), AsyncGenerator[job_pb2.Job, None])
    async for run in client.list_runs("email-service/digest", states=["failed"]):
        assert_type(run, run_pb2.Run)
    async for seen in client.watch_runs(run="0192"):
        assert_type(seen.state, run_pb2.RunState.ValueType)
    assert_type(await client.put_schedule("email-service/digest", tenant="acme", cron="@daily"), schedule_pb2.Schedule)
    assert_type(await client.update_job("email-service/digest", overlap="skip", retries=5), job_pb2.Job)
    assert_type(await client.update_job("email-service/digest", never_retry=["HTTP_4*"], retry_jitter=1), job_pb2.Job)

    resumed = await client.resume_schedule("email-service/digest", tenant="acme", catch_up="latest", validate_only=True)
    assert_type(resumed.catch_up.runs, int)
    preview = await client.preview_occurrences(cron="30 2 * * *", time_zone="America/New_York", count=3)
    assert_type([occurrence.local_time for occurrence in preview.occurrences], list[str])
    async for entry in client.list_ledger("email-service/digest", outcomes=["missed"]):
        assert_type(entry, ledger_pb2.LedgerEntry)
    assert_type(await client.put_tenant("acme", time_zone="Asia/Tokyo"), schedule_pb2.Tenant)
    assert_type(await client.backfill_job("email-service/digest", MARCH, APRIL, tenant="*"), backfill_pb2.Backfill)

    await client.get_job(5)  # E: Argument 1 has incompatible type "int"; expected "str"
    await client.trigger_job("email-service/digest", ["a"])  # E: Argument 2 has incompatible type
    await client.trigger_job("email-service/digest", tenants=5)  # E: Argument "tenants" has incompatible type "int"
    await client.update_job("email-service/digest", overlap="never")  # E: Argument "overlap" has incompatible
    await client.update_job("email-service/digest", retires=5)  # E: Unexpected keyword argument "retires"
    await client.resume_job("email-service/digest", catch_up="some")  # E: Argument "catch_up" has incompatible type
    await client.delete_schedule("email-service/digest")  # E: Missing named argument "tenant"
    await client.backfill_job("email-service/digest", "2026-03-01", APRIL)  # E: Argument 2 has incompatible type
    await client.get_jobs("email-service")  # E: "Client" has no attribute "get_jobs"
    job.nme  # E: "Job" has no attribute "nme"
    client.get_job("email-service/digest").name  # E: "Coroutine[Any, Any, Job]" has no attribute "name"


def steer_blocking(client: blocking.Client) -> None:
    with client as opened:
        assert_type(opened, blocking.Client)
    assert_type(client.get_job("email-service/digest"), job_pb2.Job)
    assert_type(client.trigger_job("email-service/digest", {"size": 5}), list[run_pb2.Run])
    assert_type(client.list_runs(), Generator[run_pb2.Run, None, None])
    for run in client.watch_runs(run="0192"):
        assert_type(run, run_pb2.Run)
    assert_type(client.run_schedule("email-service/digest", {"size": 5}, tenant="acme"), run_pb2.Run)
    assert_type(client.list_backfills("email-service/digest"), Generator[backfill_pb2.Backfill, None, None])

    client.preview_occurrences("email-service/digest", crn="@daily")  # E: Unexpected keyword argument "crn"
    client.trigger_job("email-service/digest", "acme")  # E: Argument 2 has incompatible type
    client.update_job("email-service/digest", gap="never")  # E: Argument "gap" has incompatible type
    client.list_runs(state=["failed"])  # E: Unexpected keyword argument "state"


try:
    pass
except carillon.AlreadyExists as error:
    assert_type(error.reason, str)
except carillon.CarillonError as error:
    error.cod  # E: "CarillonError" has no attribute "cod"

carillon.Client("127.0.0.1:7007", tokn="a.b.c")  # E: Unexpected keyword argument "tokn" for "Client"
carillon.Client(timeout="30")  # E: Argument "timeout" to "Client" has incompatible type "str"; expected "float"
