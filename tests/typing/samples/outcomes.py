"""How attempts end, and what a test sees of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import carillon
from carillon import testing
from typing_extensions import assert_type

jobs = carillon.Jobs(service="email-service")

carillon.Completed()
carillon.Completed(items=carillon.ItemCounts(10, 9, 1), metrics={"rows": 10}, metadata={"file": "a.csv"})
failed = carillon.Failed("EXPORT_EMPTY", "nothing to send", detail="looked in a.csv")
assert_type(failed.code, str)
carillon.Failed("BAD_INPUT", "no such brand", retry=False)
assert_type(carillon.Failed("BUSY", "later", retry_after=timedelta(minutes=5)).retry_after, float | None)


async def test_one() -> None:
    outcome = await testing.run(jobs, "digest", {"batch_size": 5}, attempt=2, cancel_when=lambda run: run.attempt == 2)
    assert_type(outcome, testing.Outcome)
    assert_type(outcome.state, Literal["COMPLETED", "FAILED", "CANCELLED"])
    assert_type(outcome.progress[0].done, int)
    assert_type(outcome.items[0].key, str)
    assert_type(outcome.metrics, dict[str, Any])
    assert_type(outcome.retry, bool)
    assert_type(outcome.retry_after, float | None)
    async with testing.running(jobs, "digest") as tested:
        tested.cancel()
        assert_type(await tested.outcome(), testing.Outcome)


assert_type(testing.run_blocking(jobs, "digest"), testing.Outcome)

carillon.Completed(metrics=5)  # E: Argument "metrics" to "Completed" has incompatible type "int"
carillon.Completed(items=10)  # E: Argument "items" to "Completed" has incompatible type "int"
carillon.Completed(metric={})  # E: Unexpected keyword argument "metric" for "Completed"
carillon.Failed("NO_MESSAGE")  # E: Missing positional argument "message" in call to "Failed"
carillon.Failed(5, "message")  # E: Argument 1 to "Failed" has incompatible type "int"; expected "str"
carillon.Failed("A", "message", retry="no")  # E: Argument "retry" to "Failed" has incompatible type "str"
carillon.Failed("A", "message", retry_after="30s")  # E: Argument "retry_after" to "Failed" has incompatible type "str"
testing.run_blocking(jobs, "digest", ["a"])  # E: Argument 3 to "run_blocking" has incompatible type "list[str]"
testing.run_blocking(jobs, "digest", tennant="acme")  # E: Unexpected keyword argument "tennant" for "run_blocking"
testing.run_blocking(jobs, "digest", attempt="2")  # E: Argument "attempt" to "run_blocking" has incompatible type "str"
testing.run_blocking(jobs, "digest", trigger_source="CRON")  # E: Argument "trigger_source" to "run_blocking"
testing.run_blocking(jobs, "digest", cancel_when=lambda run: run.attemt)  # E: "Run" has no attribute "attemt"
