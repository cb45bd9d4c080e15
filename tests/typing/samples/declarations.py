"""What may be said of a job, and what a type checker refuses."""

from __future__ import annotations

from datetime import timedelta

import carillon
from carillon.v1 import registry_service_pb2
from typing_extensions import assert_type

jobs = carillon.Jobs(service="email-service", generation=7, tls=carillon.Tls(ca="ca.pem"))

jobs.endpoint(
    "weekly-digest",
    "http://email-service/api/jobs/weekly-digest",
    cron="0 9 * * 1",
    time_zone="Europe/Berlin",
    gap="skip",
    repeat="both",
    jitter=30,
    timeout=timedelta(minutes=5),
    run_timeout=3600.5,
    retries=3,
    retry_delay=60,
    retry_multiplier=1.5,
    max_retry_delay=timedelta(hours=1),
    retry_jitter=0.2,
    never_retry=["HTTP_404", "EXPORT_*"],
    overlap="buffer_one",
    catch_up="all",
    catch_up_window=timedelta(hours=6),
    cancel_grace=10,
    config={"batch_size": 50, "lists": ["weekly"]},
    labels={"team": "mail"},
    tenant_schedules=True,
    display_name="Weekly digest",
    description="Sends it.",
)
jobs.grpc_endpoint("over-grpc", "email-service:50051", tls=True, retries=0)

assert_type(jobs.verify({"webhook-id": "r-1"}, b"{}"), None)
carillon.Jobs("a", signing_keys=["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB"])


async def register() -> None:
    assert_type(await jobs.register(validate_only=True), registry_service_pb2.RegisterJobsResponse)


worker = carillon.Worker(jobs, concurrency=50, prefetch=5, grace=20.0)
assert_type(worker.state().running, int)

carillon.Jobs()  # E: Missing positional argument "service"
carillon.Jobs(service=5)  # E: Argument "service" to "Jobs" has incompatible type "int"; expected "str"
carillon.Jobs("a", generation="7")  # E: Argument "generation" to "Jobs" has incompatible type "str"
carillon.Jobs("a", signing_keys=7)  # E: Argument "signing_keys" to "Jobs" has incompatible type "int"
jobs.verify({"webhook-id": "r-1"}, "{}")  # E: Argument 2 to "verify" of "Jobs" has incompatible type "str"
jobs.verify(b"{}", b"{}")  # E: Argument 1 to "verify" of "Jobs" has incompatible type "bytes"; expected "Headers"
jobs.endpoint("a", "/a", overlap="sometimes")  # E: Argument "overlap" to "endpoint" of "Jobs" has incompatible
jobs.endpoint("a2", "/a", catch_up="some")  # E: Argument "catch_up" to "endpoint" of "Jobs" has incompatible type
jobs.endpoint("a3", "/a", catch_up_window="6h")  # E: Argument "catch_up_window" to "endpoint" of "Jobs" has
jobs.endpoint("b", "/b", gap="first")  # E: Argument "gap" to "endpoint" of "Jobs" has incompatible type
jobs.endpoint("c", "/c", repeat="skip")  # E: Argument "repeat" to "endpoint" of "Jobs" has incompatible type
jobs.endpoint("d", "/d", retries="3")  # E: Argument "retries" to "endpoint" of "Jobs" has incompatible type "str"
jobs.endpoint("e", "/e", retries=1.5)  # E: Argument "retries" to "endpoint" of "Jobs" has incompatible type "float"
jobs.endpoint("e2", "/e", retry_multiplier="2")  # E: Argument "retry_multiplier" to "endpoint" of "Jobs" has
jobs.endpoint("e3", "/e", max_retry_delay="1h")  # E: Argument "max_retry_delay" to "endpoint" of "Jobs" has
jobs.endpoint("e4", "/e", retry_jitter="0.2")  # E: Argument "retry_jitter" to "endpoint" of "Jobs" has
jobs.endpoint("e5", "/e", never_retry="HTTP_404")  # E: Argument "never_retry" to "endpoint" of "Jobs" has
jobs.endpoint("e6", "/e", never_retry=[404])  # E: List item 0 has incompatible type "int"; expected "str"
jobs.endpoint("f", "/f", timeout="5m")  # E: Argument "timeout" to "endpoint" of "Jobs" has incompatible type "str"
jobs.endpoint("g", "/g", config=["a"])  # E: Argument "config" to "endpoint" of "Jobs" has incompatible type "list[str]"
jobs.endpoint("h", "/h", labels={"team": 5})  # E: incompatible type "str": "int"
jobs.endpoint("i", "/i", crn="@daily")  # E: Unexpected keyword argument "crn" for "endpoint" of "Jobs"
jobs.handler("j", retry=3)  # E: Unexpected keyword argument "retry" for "handler" of "Jobs"
jobs.handler("k", cron=5)  # E: Argument "cron" to "handler" of "Jobs" has incompatible type "int"; expected "str"
carillon.Worker(jobs, concurrency="50")  # E: Argument "concurrency" to "Worker" has incompatible type "str"
carillon.Worker("email-service")  # E: Argument 1 to "Worker" has incompatible type "str"; expected "Jobs"
