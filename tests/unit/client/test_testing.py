"""What `carillon.testing` gives a test to see and to steer. That it does as a worker does: tests/rpc/client."""

from __future__ import annotations

import asyncio
import threading
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import carillon
import pytest
from carillon import testing


@dataclass
class Digest:
    batch_size: int
    subject: str = "News"


@pytest.fixture
def jobs() -> carillon.Jobs:
    return carillon.Jobs("email-service")


async def test_all_that_a_handler_reports_is_kept_in_order(jobs: carillon.Jobs) -> None:
    @jobs.handler("digest", config={"batch_size": 1})
    async def digest(run: carillon.Run, payload: Digest) -> carillon.Completed:
        for address in run.track(["ada", "alan"], message="sending"):
            with run.item(address) as item:
                if address == "alan":
                    item.fail("bounced")
        return carillon.Completed(metrics={"size": payload.batch_size}, metadata={"subject": payload.subject})

    outcome = await testing.run(jobs, "digest", {"batch_size": 50})
    assert outcome.state == "COMPLETED"
    assert outcome.payload == Digest(50)
    assert outcome.progress == ((0, 2, "sending"), (1, 2, "sending"), (2, 2, "sending"))
    assert outcome.items == (("ada", True, ""), ("alan", False, "bounced"))
    assert outcome.item_counts == carillon.ItemCounts(2, 1, 1)
    assert (outcome.metrics, outcome.metadata) == ({"size": 50}, {"subject": "News"})
    assert (outcome.error_code, outcome.exception, outcome.went_on) == ("", None, False)


def test_without_asyncio(jobs: carillon.Jobs) -> None:
    @jobs.handler("digest")
    def digest(payload: Digest) -> None:
        raise carillon.Failed("NO_MAIL_SERVER", "connection refused")

    outcome = testing.run_blocking(jobs, "digest", {"batch_size": 1})
    assert (outcome.state, outcome.error_code, outcome.error_message) == (
        "FAILED",
        "NO_MAIL_SERVER",
        "connection refused",
    )
    assert isinstance(outcome.exception, carillon.Failed)
    assert (outcome.retry, outcome.retry_after) == (True, None)


@pytest.mark.parametrize(
    ("wish", "retry", "retry_after"),
    [
        ({"retry": False}, False, None),
        ({"retry_after": timedelta(minutes=1.5)}, True, 90.0),
        ({"retry_after": 0}, True, 0.0),
    ],
)
async def test_what_a_handler_asks_to_follow_is_seen(
    jobs: carillon.Jobs, wish: dict[str, Any], retry: bool, retry_after: float | None
) -> None:
    @jobs.handler("digest")
    async def digest() -> None:
        raise carillon.Failed("BUSY", "the mail server is busy", **wish)

    outcome = await testing.run(jobs, "digest")
    assert (outcome.error_code, outcome.retry, outcome.retry_after) == ("BUSY", retry, retry_after)


async def test_a_run_is_as_declared_unless_the_test_says_otherwise(jobs: carillon.Jobs) -> None:
    seen: list[carillon.Run] = []

    @jobs.handler("digest", timeout=timedelta(minutes=5), cancel_grace=7, retries=4, labels={"team": "mail"})
    async def digest(run: carillon.Run) -> None:
        seen.append(run)

    berlin = timezone(timedelta(hours=2))
    named = uuid.uuid4()
    await testing.run(jobs, "digest")
    await testing.run(
        jobs,
        "digest",
        tenant="acme",
        attempt=2,
        scheduled_time=datetime(2026, 7, 1, 9, tzinfo=berlin),
        trigger_source="SCHEDULE",
        labels={"shard": "1"},
        run_id=named,
        timeout=1.5,
        cancel_grace=0,
        max_attempts=2,
    )
    declared, said = seen
    assert (declared.attempt_timeout, declared.cancel_grace, declared.max_attempts) == (300, 7, 5)
    assert (declared.tenant, declared.attempt, declared.trigger_source) == ("-", 1, "MANUAL")
    assert declared.labels == {"team": "mail"}
    assert (said.attempt_timeout, said.cancel_grace, said.max_attempts) == (1.5, 0, 2)
    assert (said.tenant, said.attempt, said.trigger_source, said.run_id) == ("acme", 2, "SCHEDULE", named)
    assert said.scheduled_time.isoformat() == "2026-07-01T07:00:00+00:00"
    assert said.labels == {"team": "mail", "shard": "1"}


@pytest.mark.parametrize("plain", [True, False])
async def test_a_run_is_cancelled_at_exactly_the_point_that_is_named(jobs: carillon.Jobs, plain: bool) -> None:
    def work(run: carillon.Run) -> None:
        for number in run.track(range(100)):
            with run.item(str(number)):
                pass

    async def work_async(run: carillon.Run) -> None:
        work(run)

    jobs.handler("digest")(work if plain else work_async)
    outcome = await testing.run(jobs, "digest", cancel_when=lambda run: run.progress_made[0] == 3)
    assert outcome.state == "CANCELLED"
    assert [item.key for item in outcome.items] == ["0", "1", "2"]
    assert outcome.progress[-1].done == 3


async def test_a_handler_that_ends_before_it_waits_again_was_not_interrupted(jobs: carillon.Jobs) -> None:
    @jobs.handler("digest")
    async def digest(run: carillon.Run) -> dict[str, bool]:
        run.progress(1)
        return {"cancelled": run.cancelled}

    outcome = await testing.run(jobs, "digest", cancel_when=lambda run: run.progress_made[0] == 1)
    assert (outcome.state, outcome.metrics) == ("COMPLETED", {"cancelled": True})


async def test_time_is_up_when_the_test_says_so(jobs: carillon.Jobs) -> None:
    @jobs.handler("digest", timeout=timedelta(days=2))
    async def digest(run: carillon.Run) -> None:
        run.progress(1)
        await asyncio.Event().wait()

    outcome = await testing.run(jobs, "digest", time_out_when=lambda run: run.progress_made[0] == 1)
    assert (outcome.state, outcome.error_code) == ("FAILED", "ATTEMPT_TIMEOUT")
    assert outcome.error_message == "the attempt took longer than 172800 s"


async def test_a_run_is_steered_step_by_step(jobs: carillon.Jobs) -> None:
    opened = asyncio.Event()

    @jobs.handler("digest")
    async def digest(run: carillon.Run) -> None:
        run.progress(1)
        await opened.wait()
        run.progress(2)
        run.progress(3)
        await asyncio.Event().wait()

    async with testing.running(jobs, "digest") as tested:
        assert tested.run.progress_made[0] == 1
        opened.set()
        await tested.until(lambda run: run.progress_made[0] == 2)
        tested.cancel()
        assert (await tested.outcome()).state == "CANCELLED"


async def test_waiting_for_what_does_not_come_ends_with_the_run(jobs: carillon.Jobs) -> None:
    @jobs.handler("digest")
    async def digest(run: carillon.Run) -> None:
        await asyncio.sleep(0)

    async with testing.running(jobs, "digest") as tested:
        with pytest.raises(AssertionError, match=r"ended before that: Outcome\(state='COMPLETED'"):
            await tested.until(lambda run: run.items.processed)


async def test_what_is_left_running_is_stopped(jobs: carillon.Jobs) -> None:
    ended: list[str] = []

    @jobs.handler("digest")
    async def digest() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async with testing.running(jobs, "digest"):
        assert not ended
    assert ended == ["cleaned up"]


async def test_a_handler_that_does_not_stop_is_told_apart(jobs: carillon.Jobs) -> None:
    may_end = threading.Event()

    @jobs.handler("digest", cancel_grace=0)
    def digest(run: carillon.Run) -> None:
        run.progress(1)
        may_end.wait(20)

    outcome = await testing.run(jobs, "digest", cancel_when=lambda run: run.progress_made[0] == 1)
    may_end.set()
    assert (outcome.state, outcome.went_on) == ("CANCELLED", True)


@pytest.mark.parametrize("plain", [True, False])
async def test_a_condition_that_breaks_is_the_tests_fault_not_the_handlers(jobs: carillon.Jobs, plain: bool) -> None:
    def work(run: carillon.Run) -> None:
        run.progress(1)

    async def work_async(run: carillon.Run) -> None:
        work(run)

    def broken(run: carillon.Run) -> object:
        raise ZeroDivisionError

    jobs.handler("digest")(work if plain else work_async)
    with pytest.raises(ZeroDivisionError):
        await testing.run(jobs, "digest", cancel_when=broken)


async def test_a_grpc_handler_is_carried_out_too(jobs: carillon.Jobs) -> None:
    @jobs.grpc_handler("digest", address="email-service:50051")
    async def digest(payload: Digest) -> dict[str, int]:
        return {"size": payload.batch_size}

    assert (await testing.run(jobs, "digest", {"batch_size": 3})).metrics == {"size": 3}


@pytest.mark.parametrize(
    ("job", "payload", "options", "says"),
    [
        ("digst", {}, {}, "email-service declares no handler 'digst'; there are: digest"),
        ("hook", {}, {}, "email-service declares no handler 'hook'; there are: digest"),
        ("digest", {"size": float("nan")}, {}, "run of 'digest': payload.size is nan, which JSON does not have"),
        ("digest", {}, {"attempt": 0}, "run of 'digest': attempt 0 of 3 cannot be"),
        ("digest", {}, {"scheduled_time": datetime(2026, 7, 1)}, "scheduled_time must say its time zone"),  # noqa: DTZ001
        ("digest", {}, {"timeout": -1}, "run of 'digest': timeout must be a number of seconds from 0 on, not -1"),
    ],
)
async def test_a_run_that_could_not_be_is_refused(
    jobs: carillon.Jobs, job: str, payload: dict[str, object], options: Any, says: str
) -> None:
    jobs.endpoint("hook", "http://localhost/hook")

    @jobs.handler("digest")
    async def digest() -> None: ...

    with pytest.raises(ValueError, match=says):
        await testing.run(jobs, job, payload, **options)
