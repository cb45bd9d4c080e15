"""`carillon.testing` and a real worker's session, held to the same behaviour on a table of handlers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypedDict

import carillon
import pytest
from carillon import testing
from carillon.v1 import run_pb2, work_pb2
from pydantic import BaseModel

if TYPE_CHECKING:
    from tests.rpc.client.conftest import ScriptedScheduler

MILLISECONDS = 10


@dataclass
class Sync:
    brands: list[str]
    since: datetime | None = None
    factor: int = 1


class Export(TypedDict):
    file: str


class Report(BaseModel):
    rows: int


@dataclass(frozen=True)
class Case:
    """A handler, what it is given, and whether it is stopped once it has recorded an item."""

    handler: Any
    payload: Mapping[str, object] = field(default_factory=dict)
    stop: str = ""
    grace: float = 30.0


got: list[object] = []
deaf: list[asyncio.Event] = []


async def completes(payload: Sync, run: carillon.Run) -> dict[str, object]:
    got.append(payload)
    for brand in run.track(payload.brands, message="syncing"):
        with run.item(brand):
            if brand == "broken":
                raise LookupError("no such brand")
    return {"brands": len(payload.brands), "factor": payload.factor}


def completes_in_a_thread(run: carillon.Run, payload: Export) -> carillon.Completed:
    got.append(payload)
    assert threading.current_thread() is not threading.main_thread()
    run.progress(3, 9, "exporting")
    counts = carillon.ItemCounts(9, 8, 1)
    return carillon.Completed(counts, {"file": payload["file"]}, {"tenant": run.tenant, "attempt": run.attempt})


async def takes_a_model(payload: Report) -> None:
    got.append(payload)


async def takes_all(payload: dict[str, Any], run: carillon.Run) -> dict[str, object]:
    got.append(payload)
    return {
        "labels": dict(run.labels),
        "source": run.trigger_source,
        "scheduled": run.scheduled_time.isoformat(),
        "max_attempts": run.max_attempts,
        "grace": run.cancel_grace,
    }


async def fails_by_name() -> None:
    raise carillon.Failed("EXPORT_EMPTY", "nothing to send", "looked in a.csv")


def fails_by_accident(run: carillon.Run) -> None:
    with run.item("first"):
        pass
    raise KeyError("brand")


async def exits() -> None:
    raise SystemExit(3)


def wants_more_than_there_is() -> dict[str, int]:
    return {"first": next(iter([]))}


async def returns_a_number() -> object:
    return 5


async def returns_too_much() -> dict[str, str]:
    return {"text": "x" * 70_000}


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def waits(run: carillon.Run) -> None:
    with run.item("first"):
        pass
    await asyncio.Event().wait()


async def completes_when_stopped(run: carillon.Run) -> dict[str, bool]:
    try:
        await waits(run)
    except asyncio.CancelledError:
        return {"cancelled": run.cancelled}
    return {}


async def fails_when_stopped(run: carillon.Run) -> None:
    try:
        await waits(run)
    except asyncio.CancelledError:
        raise carillon.Failed("HALF_DONE", "stopped in the middle") from None


async def ignores_the_stop(run: carillon.Run) -> None:
    try:
        await waits(run)
    except asyncio.CancelledError:
        deaf.append(asyncio.Event())
        await deaf[-1].wait()


def waits_in_a_thread(run: carillon.Run) -> None:
    with run.item("first"):
        pass
    while True:
        run.check()


CASES = {
    "completes": Case(completes, {"brands": ["a", "broken", "c"], "since": "2026-11-01T09:00:00Z", "factor": 2.0}),
    "config alone": Case(completes),
    "in a thread": Case(completes_in_a_thread, {"file": "a.csv"}),
    "a pydantic model": Case(takes_a_model, {"rows": 4}),
    "a pydantic model that does not fit": Case(takes_a_model, {"rows": "many"}),
    "all there is": Case(takes_all, {"deep": {"list": [1, 2.5, None, True, "x"]}}),
    "an unknown key": Case(completes, {"brnds": []}),
    "a wrong type": Case(completes, {"brands": "acme"}),
    "fails by name": Case(fails_by_name),
    "fails by accident": Case(fails_by_accident),
    "exits": Case(exits),
    "raises StopIteration": Case(wants_more_than_there_is),
    "returns a number": Case(returns_a_number),
    "returns too much": Case(returns_too_much),
    "cancels itself": Case(cancels_itself),
    "is cancelled": Case(waits, stop="cancel"),
    "is cancelled in a thread": Case(waits_in_a_thread, stop="cancel"),
    "completes when cancelled": Case(completes_when_stopped, stop="cancel"),
    "fails when cancelled": Case(fails_when_stopped, stop="cancel"),
    "ignores the cancel": Case(ignores_the_stop, stop="cancel", grace=0.01),
    "is out of time": Case(waits, stop="timeout"),
    "is out of time in a thread": Case(waits_in_a_thread, stop="timeout"),
    "completes too late": Case(completes_when_stopped, stop="timeout"),
    "ignores the end of its time": Case(ignores_the_stop, stop="timeout", grace=0.01),
}
SCHEDULED = datetime(2026, 11, 2, 9, 0, tzinfo=timezone.utc)
CONFIG = {"brands": ["acme"]}


@pytest.mark.parametrize("name", CASES)
async def test_a_handler_ends_under_test_as_it_does_in_a_worker(
    name: str, scheduler: ScriptedScheduler, new_run: Any
) -> None:
    case = CASES[name]
    takes_config = case.handler in (completes, takes_all)
    jobs = carillon.Jobs("kpi-service", target=scheduler.target, token="kpi.secret")
    declare = jobs.handler("sync", config=CONFIG if takes_config else {}, labels={"team": "kpi"}, retries=4)
    declare(case.handler)
    got.clear()
    deaf.clear()
    under_test = await _under_test(jobs, case)
    run = _assigned(case, {**(CONFIG if takes_config else {}), **case.payload}, new_run)
    in_worker, progress = await _in_worker(jobs, case, run, scheduler)
    assert _as_sent(under_test) == in_worker
    assert progress is None or under_test.progress[-1] == progress
    assert under_test.payload == (got[0] if got else None)
    assert got[: len(got) // 2] == got[len(got) // 2 :]


async def _under_test(jobs: carillon.Jobs, case: Case) -> testing.Outcome:
    # The timer of a worker measures real time; under test the end of the time is called.
    timed = case.stop == "timeout"
    return await testing.run(
        jobs,
        "sync",
        case.payload,
        attempt=2,
        tenant="acme",
        scheduled_time=SCHEDULED,
        timeout=MILLISECONDS / 1_000 if timed else 60,
        cancel_grace=case.grace,
        cancel_when=(lambda run: run.items.processed) if case.stop == "cancel" else None,
        time_out_when=(lambda run: run.items.processed) if timed else None,
    )


def _assigned(case: Case, payload: Mapping[str, object], new_run: Any) -> work_pb2.Assignment:
    run: work_pb2.Assignment = new_run(
        1,
        attempt=2,
        max_attempts=5,
        tenant="acme",
        payload_json=json.dumps(payload),
        trigger_source=run_pb2.TRIGGER_SOURCE_MANUAL,
        labels={"team": "kpi"},
    )
    run.scheduled_time.FromDatetime(SCHEDULED)
    run.attempt_timeout.FromMilliseconds(MILLISECONDS if case.stop == "timeout" else 60_000)
    run.cancel_grace.FromNanoseconds(int(case.grace * 1e9))
    return run


async def _in_worker(
    jobs: carillon.Jobs, case: Case, run: work_pb2.Assignment, scheduler: ScriptedScheduler
) -> tuple[Mapping[str, object], testing.Progress | None]:
    async with carillon.Worker(jobs, grace=0):
        stream = await scheduler.next_stream()
        stream.welcome()
        stream.assign(run, claim=7)
        items: list[work_pb2.ItemResult] = []
        if case.stop == "cancel":
            items += (await stream.next("items")).results
            ref = work_pb2.AttemptRef(run_id=run.run_id, attempt=2, claim_id=7)
            stream.say(cancel=work_pb2.CancelAttempts(attempts=[ref]))
        results = await stream.next("results")
        stream.acknowledge(results)
        while "items" in stream.seen[: stream.seen.index("results")] and not items:
            items += (await stream.next("items")).results
        for event in deaf:
            event.set()
        progress = None
        if "progress" in stream.seen:
            made = (await stream.next("progress")).reports[-1].progress
            progress = testing.Progress(made.done, made.total, made.message)
    [result] = results.results
    return _read(result, items), progress


def _read(result: work_pb2.AttemptResult, items: Sequence[work_pb2.ItemResult]) -> Mapping[str, object]:
    """A result as the scheduler gets it; written apart from `carillon.testing`, which is held against it."""
    counts = result.items
    return {
        "state": work_pb2.AttemptOutcome.Name(result.outcome).removeprefix("ATTEMPT_OUTCOME_"),
        "error": (result.error.code, result.error.message, result.error.detail),
        "counts": carillon.ItemCounts(counts.processed, counts.succeeded, counts.failed),
        "metrics": json.loads(result.metrics_json or "{}"),
        "metadata": json.loads(result.metadata_json or "{}"),
        "items": [(item.key, item.succeeded, item.error) for item in items],
    }


def _as_sent(outcome: testing.Outcome) -> Mapping[str, object]:
    return {
        "state": outcome.state,
        "error": (outcome.error_code, outcome.error_message, outcome.error_detail),
        "counts": outcome.item_counts,
        "metrics": outcome.metrics,
        "metadata": outcome.metadata,
        "items": list(outcome.items),
    }
