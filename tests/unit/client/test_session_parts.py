"""The parts of the worker's session that need no stream: outbox, lease, run, texts and error details."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

import pytest
from carillon import Cancelled, ItemCounts, Run
from carillon.held import HeldAttempt, Holdings
from carillon.outbox import MESSAGE_ENTRIES, Outbox
from carillon.results import returned
from carillon.run import Assignment
from carillon.status_details import decode, encode
from carillon.text import REPORT_DEPTH, clean, report_json
from carillon.v1 import worker_service_pb2
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2


def an_assignment(number: int = 1, claim: int = 1) -> Assignment:
    return Assignment(
        run_id=uuid.UUID(int=number),
        attempt=1,
        claim_id=claim,
        max_attempts=3,
        service="kpi-service",
        job="sync",
        tenant="-",
        endpoint="",
        payload_json="{}",
        attempt_timeout=60.0,
        cancel_grace=30.0,
        scheduled_time=datetime(2026, 11, 21, tzinfo=timezone.utc),
        trigger_source="SCHEDULE",
        labels={},
    )


def an_attempt(outbox: Outbox, number: int = 1, claim: int = 1) -> HeldAttempt:
    attempt = HeldAttempt(an_assignment(number, claim), outbox.reported)
    attempt.began = 100.0
    return attempt


def settle(outbox: Outbox, attempt: HeldAttempt) -> None:
    attempt.result = returned(attempt)
    outbox.ended(attempt)


def all_messages(outbox: Outbox) -> list[worker_service_pb2.WorkRequest]:
    messages = []
    while (message := outbox.next_message(100.5)) is not None:
        messages.append(message)
    return messages


def kinds(messages: list[worker_service_pb2.WorkRequest]) -> list[str | None]:
    return [message.WhichOneof("message") for message in messages]


def test_items_go_before_the_result_of_their_attempt() -> None:
    outbox = Outbox()
    attempt = an_attempt(outbox)
    settle(outbox, attempt)
    other = an_attempt(outbox, 2)
    with other.run.item("a"):
        pass
    settle(outbox, other)
    assert kinds(all_messages(outbox)) == ["items", "results"]


def test_a_start_is_left_out_when_the_result_is_there_first() -> None:
    outbox = Outbox()
    quick, slow = an_attempt(outbox), an_attempt(outbox, 2)
    outbox.began(quick)
    outbox.began(slow)
    settle(outbox, quick)
    outbox.starts_are_due = True
    starts, results = all_messages(outbox)
    assert [start.attempt.run_id[-1] for start in starts.starts.starts] == [2]
    assert starts.starts.starts[0].age.ToMilliseconds() == 500
    assert [result.attempt.run_id[-1] for result in results.results.results] == [1]


def test_starts_and_progress_wait_until_they_are_due() -> None:
    outbox = Outbox()
    attempt = an_attempt(outbox)
    outbox.began(attempt)
    attempt.run.progress(1, 2)
    assert all_messages(outbox) == []
    outbox.starts_are_due = outbox.progress_is_due = True
    assert kinds(all_messages(outbox)) == ["starts", "progress"]
    assert all_messages(outbox) == []


def test_messages_are_bounded_in_entries_and_in_bytes() -> None:
    outbox = Outbox()
    attempt = an_attempt(outbox)
    for number in range(MESSAGE_ENTRIES + 1):
        attempt.run.item(str(number)).__exit__(None, None, None)
    assert [len(message.items.results) for message in all_messages(outbox)] == [MESSAGE_ENTRIES, 1]
    for number in range(2, 402):
        heavy = an_attempt(outbox, number)
        heavy.result = returned(heavy)
        heavy.result.metadata_json = "x" * 60_000
        outbox.ended(heavy)
    messages = all_messages(outbox)
    assert sum(len(message.results.results) for message in messages) == 400
    assert max(message.ByteSize() for message in messages) < 1_200_000


def test_a_new_stream_begins_with_all_that_was_not_acknowledged() -> None:
    outbox = Outbox()
    done, running = an_attempt(outbox), an_attempt(outbox, 2)
    with done.run.item("a"):
        pass
    outbox.began(running)
    settle(outbox, done)
    outbox.starts_are_due = True
    first = all_messages(outbox)
    assert all_messages(outbox) == []
    outbox.begin_again([done, running])
    assert kinds(all_messages(outbox)) == kinds(first) == ["starts", "items", "results"]
    outbox.forget(done)
    outbox.begin_again([running])
    assert kinds(all_messages(outbox)) == ["starts"]


def test_items_after_the_result_come_too_late() -> None:
    outbox = Outbox()
    attempt = an_attempt(outbox)
    settle(outbox, attempt)
    with attempt.run.item("late"):
        pass
    assert kinds(all_messages(outbox)) == ["results"]


def test_a_claim_is_held_as_long_as_one_of_its_attempts() -> None:
    outbox, holdings = Outbox(), Holdings()
    one, other = an_attempt(outbox, 1, claim=5), an_attempt(outbox, 2, claim=5)
    holdings.add(one)
    holdings.add(other)
    holdings.remove(one)
    assert holdings.claims == [5]
    holdings.remove(other)
    assert holdings.claims == []


class Seen:
    """Reports of a run, as they came."""

    def __init__(self) -> None:
        self.items: list[tuple[str, str | None]] = []
        self.steps = 0

    def progressed(self) -> None:
        self.steps += 1

    def item_done(self, key: str, error: str | None) -> None:
        self.items.append((key, error))


def test_items_record_their_own_results() -> None:
    seen = Seen()
    run = Run(an_assignment(), seen)
    with run.item("good"):
        pass
    with run.item("bad"):
        raise KeyError("address")
    with run.item("refused") as item:
        item.fail("no consent")
    with run.item("good"):
        raise ValueError("a second time")
    assert seen.items == [("good", None), ("bad", "KeyError: 'address'"), ("refused", "no consent")]
    assert run.items == ItemCounts(processed=3, succeeded=1, failed=2)


def test_cancellation_passes_through_an_item() -> None:
    seen = Seen()
    run = Run(an_assignment(), seen)
    run.cancelled = True
    with pytest.raises(Cancelled), run.item("a"):
        run.check()
    assert seen.items == []
    assert issubclass(Cancelled, asyncio.CancelledError)


def test_tracking_reports_each_step_and_stops_when_asked() -> None:
    run = Run(an_assignment(), Seen())
    steps = run.track(["a", "b", "c"], message="sending")
    assert next(steps) == "a"
    assert run.progress_made == (0, 3, "sending")
    assert next(steps) == "b"
    assert run.progress_made == (1, 3, "sending")
    run.cancelled = True
    with pytest.raises(Cancelled):
        next(steps)


async def test_tracking_takes_async_iterables() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    run = Run(an_assignment(), Seen())
    assert [number async for number in run.track(numbers(), total=2)] == [1, 2]
    assert run.progress_made == (2, 2, "")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        pytest.param("", "1 to 256 characters", id="empty"),
        pytest.param("x" * 257, "1 to 256 characters", id="too long"),
        pytest.param("a\0b", "without NUL", id="a NUL"),
        pytest.param("a-file-\udcff", "text that UTF-8 can write", id="half of a pair"),
    ],
)
def test_an_items_key_is_checked(key: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Run(an_assignment(), Seen()).item(key)


def test_texts_are_cut_by_bytes_without_breaking_a_character() -> None:
    assert clean("a\0b", 10) == "ab"
    assert clean("é" * 10, 10) == "ééé…"
    assert clean("é" * 10, 10, keep_end=True) == "…ééé"
    assert clean("\ud800", 10) == "?"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": float("nan")}, "cannot be written as JSON"),
        ({"a": object()}, "cannot be written as JSON"),
        ({"a": "x" * 70_000}, "at most 65,536 are allowed"),
        ({"a": "x\0"}, "NUL"),
        ({"a": "\ud800"}, "cannot be written as JSON"),
    ],
)
def test_a_report_that_the_scheduler_would_refuse_is_a_sentence(value: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        report_json("metrics", value)


def test_a_report_is_nested_as_deep_as_the_scheduler_takes_it() -> None:
    deepest: dict[str, Any] = {}
    inner = deepest
    for _ in range(REPORT_DEPTH - 1):
        inner["a"] = {}
        inner = inner["a"]
    inner["a"] = 1
    assert report_json("metrics", deepest)
    with pytest.raises(ValueError, match=r"^metrics is nested deeper than 32 levels$"):
        report_json("metrics", {"a": deepest})
    with pytest.raises(ValueError, match="nested deeper"):
        report_json("metrics", {"a": (deepest,)})
    assert report_json("metrics", {"a": [[]] * 100})


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert report_json("metrics", {"a": "\\u0000"}) == '{"a":"\\\\u0000"}'


@pytest.mark.parametrize("retry_after", [0, 2.5, 604_800])
def test_status_details_that_are_written_are_those_that_others_know(retry_after: float) -> None:
    status = status_pb2.Status.FromString(encode(9, "later", reason="BUSY", detail="why", retry_after=retry_after))
    info, debug, retry = error_details_pb2.ErrorInfo(), error_details_pb2.DebugInfo(), error_details_pb2.RetryInfo()
    assert [packed.Unpack(known) for packed, known in zip(status.details, (info, debug, retry), strict=True)] == [
        True
    ] * 3
    assert (info.reason, info.domain, dict(info.metadata), debug.detail) == ("BUSY", "carillon", {}, "why")
    assert retry.retry_delay.ToTimedelta().total_seconds() == retry_after


def test_status_details_say_that_a_failure_is_final() -> None:
    written = encode(9, "no", reason="BAD_INPUT", detail="", retry=False)
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(written).details[0].Unpack(info)
    assert dict(info.metadata) == {"retry": "false"}
    assert decode(written).no_retry
    assert not decode(encode(9, "no", reason="BAD_INPUT", detail="")).no_retry
    elsewhere = status_pb2.Status()
    elsewhere.details.add().Pack(error_details_pb2.ErrorInfo(domain="example.com", metadata={"retry": "false"}))
    assert not decode(elsewhere.SerializeToString()).no_retry


def test_status_details_are_read_beside_the_real_messages() -> None:
    status = status_pb2.Status(code=3, message="wrong")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INVALID_FIELDS", metadata={"run": "runs/1"}))
    wrong = error_details_pb2.BadRequest()
    wrong.field_violations.add(field="jobs[0].timing.cron", description="is no cron expression")
    status.details.add().Pack(wrong)
    status.details.add().Pack(
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    )
    found = decode(status.SerializeToString())
    assert (found.reason, found.metadata, found.retry_after) == ("INVALID_FIELDS", {"run": "runs/1"}, 1.5)
    assert found.violations == [("jobs[0].timing.cron", "is no cron expression")]
    assert decode(None) == decode(b"\xff\xff") == decode("text")
