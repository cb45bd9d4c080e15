"""What waits on a work stream: merged, bounded, and never in anybody's way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from carillon.v1 import run_pb2, worker_service_pb2

from scheduler_service.domain.attempt import AttemptRef, Verdict
from scheduler_service.domain.errors import Replaced, Unavailable
from scheduler_service.rpc.work_outbox import Outbox
from tests.rpc.work.rig import a_claimed_run


def a_ref() -> AttemptRef:
    return AttemptRef(uuid4(), 1, 1)


async def sent(outbox: Outbox) -> list[worker_service_pb2.WorkResponse]:
    """All that waits."""
    outbox.finish()
    return [message async for message in outbox.messages()]


async def test_runs_of_one_claim_share_a_message_and_claims_do_not() -> None:
    outbox = Outbox()
    first, second, third = a_claimed_run(), a_claimed_run(), a_claimed_run()
    outbox.assign(7, [first], time.monotonic())
    outbox.assign(7, [second], time.monotonic())
    outbox.assign(8, [third], time.monotonic())
    messages = [message.assignments for message in await sent(outbox)]
    assert [(m.claim_id, [UUID(bytes=a.run_id) for a in m.assignments]) for m in messages] == [
        (7, [first.run_id, second.run_id]),
        (8, [third.run_id]),
    ]


async def test_large_payloads_are_split_into_messages_that_every_worker_accepts() -> None:
    outbox = Outbox()
    outbox.assign(7, [a_claimed_run("x" * 256 * 1024) for _ in range(5)], time.monotonic())
    messages = await sent(outbox)
    assert [len(message.assignments.assignments) for message in messages] == [3, 2]
    assert max(message.ByteSize() for message in messages) < 1024 * 1024


@pytest.mark.parametrize("payload", [chr(0x1F600) * 64 * 1024, "{}"], ids=["not ASCII", "labels"])
async def test_what_is_not_seen_in_a_payloads_length_counts_too(payload: str) -> None:
    labels = {f"label-{number}": chr(0x1F600) * 256 for number in range(32)}
    runs = [replace(a_claimed_run(payload), labels=labels) for _ in range(300)]
    outbox = Outbox()
    outbox.assign(7, runs, time.monotonic())
    messages = await sent(outbox)
    assert sum(len(message.assignments.assignments) for message in messages) == 300
    assert max(message.ByteSize() for message in messages) < 1024 * 1024


async def test_it_says_when_it_is_full_and_when_it_is_so_no_longer() -> None:
    outbox, said = Outbox(), list[bool]()
    outbox.on_full = said.append
    messages = aiter(outbox.messages())
    for _ in range(20):
        outbox.assign(7, [a_claimed_run("x" * 256 * 1024)], time.monotonic())
    assert said == [True]
    while len(said) < 2:
        await anext(messages)
    assert said == [True, False]


async def test_an_assignment_says_all_about_its_run() -> None:
    outbox = Outbox()
    outbox.assign(7, [a_claimed_run()], time.monotonic())
    [message] = await sent(outbox)
    [assignment] = message.assignments.assignments
    assert assignment.attempt_timeout.ToMilliseconds() == 250
    assert assignment.scheduled_time.ToJsonString() == "2030-01-01T00:00:00.250Z"
    assert assignment.trigger_source == run_pb2.TRIGGER_SOURCE_CATCH_UP


async def test_acknowledgements_and_cancels_are_merged() -> None:
    outbox = Outbox()
    refs = [a_ref() for _ in range(700)]
    for ref in refs:
        outbox.acknowledge([(ref, Verdict.ACCEPTED)])
        outbox.cancel([ref])
    messages = await sent(outbox)
    assert [len(m.cancel.attempts) for m in messages if m.HasField("cancel")] == [500, 200]
    acks = [ack for m in messages for ack in m.result_acks.acks]
    assert [UUID(bytes=ack.attempt.run_id) for ack in acks] == [ref.run_id for ref in refs]


async def test_only_the_newest_heartbeat_is_answered_and_before_everything_else() -> None:
    outbox = Outbox()
    outbox.assign(7, [a_claimed_run()], time.monotonic())
    outbox.acknowledge_heartbeat(4)
    outbox.acknowledge_heartbeat(5)
    messages = await sent(outbox)
    assert [message.WhichOneof("message") for message in messages] == ["heartbeat_ack", "assignments"]
    assert messages[0].heartbeat_ack.sequence == 5


async def test_a_claim_counts_as_unsent_until_it_is_taken() -> None:
    outbox = Outbox()
    outbox.assign(7, [a_claimed_run()], time.monotonic())
    assert outbox.unsent_claims == {7}
    await anext(aiter(outbox.messages()))
    assert outbox.unsent_claims == set()


async def test_a_worker_that_does_not_read_ends_its_stream() -> None:
    outbox, ended = Outbox(most_entries=3), []
    outbox.on_end = lambda: ended.append(True)
    outbox.acknowledge([(a_ref(), Verdict.ACCEPTED)] * 3)
    assert not ended
    outbox.cancel([a_ref()])
    assert ended == [True]
    with pytest.raises(Unavailable):
        await anext(aiter(outbox.messages()))


async def test_payloads_that_pile_up_end_the_stream_and_those_that_were_sent_do_not() -> None:
    outbox = Outbox(most_bytes=2000)
    messages: AsyncIterator[worker_service_pb2.WorkResponse] = aiter(outbox.messages())
    for _ in range(5):
        outbox.assign(7, [a_claimed_run("x" * 900)], time.monotonic())
        await anext(messages)
    outbox.assign(7, [a_claimed_run("x" * 900)], time.monotonic())
    outbox.assign(7, [a_claimed_run("x" * 900)], time.monotonic())
    with pytest.raises(Unavailable):
        await anext(messages)


async def test_a_stream_that_was_ended_sends_nothing_more() -> None:
    outbox, ended = Outbox(), []
    outbox.on_end = lambda: ended.append(True)
    outbox.assign(7, [a_claimed_run()], time.monotonic())
    outbox.end(Replaced("newer"))
    outbox.end(Unavailable("later"))
    outbox.finish()
    outbox.assign(8, [a_claimed_run()], time.monotonic())
    outbox.acknowledge_heartbeat(1)
    with pytest.raises(Replaced):
        await anext(aiter(outbox.messages()))
    assert ended == [True]
