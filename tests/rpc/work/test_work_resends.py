"""What a big worker may do that is in its right: many runs, many items, and all of it once more after a reconnect."""

from __future__ import annotations

from typing import Any

import psycopg
from carillon.v1 import work_pb2

from scheduler_service.store.database import Database
from tests.builders import MadeJob, make_live_run
from tests.rpc.work.rig import RawWorker, Replica, a_result, a_worker, one, ref, serving

RUNS = 600
MESSAGE = 500  # entries, as our client sends them


async def test_a_whole_outbox_sent_again_to_another_replica_gets_the_same_answers(
    worker: RawWorker, database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    for _ in range(RUNS):
        make_live_run(admin, job)
    await worker.welcomed(credit=RUNS)
    results: list[work_pb2.AttemptResult] = []
    while len(results) < RUNS:
        sent = await worker.expect("assignments")
        results += [a_result(ref(each.run_id, sent.claim_id)) for each in sent.assignments]
    # One that this replica never hears of before the worker goes.
    first, late = results[:-1], results[-1]
    assert await report(worker, first) == {work_pb2.RESULT_VERDICT_ACCEPTED: RUNS - 1}
    claims = sorted({each.attempt.claim_id for each in results})
    async with serving(Replica(database)) as other, a_worker(other, session_id=worker.session_id) as again:
        await again.welcomed(held=claims)
        assert await report(again, [*first, late]) == {work_pb2.RESULT_VERDICT_ACCEPTED: RUNS}
    assert one(admin, "select count(*) from carillon.runs where state = 'COMPLETED'") == RUNS


async def test_a_run_of_ten_thousand_items_is_recorded_with_all_of_them(
    worker: RawWorker, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    make_live_run(admin, job)
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    attempt = ref(sent.assignments[0].run_id, sent.claim_id)
    for begin in range(0, 10_000, MESSAGE):
        items = [
            work_pb2.ItemResult(attempt=attempt, key=f"user-{n}", succeeded=True) for n in range(begin, begin + MESSAGE)
        ]
        await worker.send(items=work_pb2.ItemResults(results=items))
    assert await worker.verdict(a_result(attempt)) == work_pb2.RESULT_VERDICT_ACCEPTED
    assert one(admin, "select count(*) from carillon.items") == 10_000


async def report(worker: RawWorker, results: list[work_pb2.AttemptResult]) -> dict[int, int]:
    """Sends results as our client does; answers how many got which verdict."""
    for begin in range(0, len(results), MESSAGE):
        await worker.send(results=work_pb2.Results(results=results[begin : begin + MESSAGE]))
    verdicts: dict[int, int] = {}
    while sum(verdicts.values()) < len(results):
        for ack in (await worker.expect("result_acks")).acks:
            verdicts[ack.verdict] = verdicts.get(ack.verdict, 0) + 1
    return verdicts
