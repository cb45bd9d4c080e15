"""What became of a run under test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from carillon.outcome import ItemCounts
from carillon.v1 import work_pb2

State = Literal["COMPLETED", "FAILED", "CANCELLED"]

_STATES: dict[int, State] = {
    work_pb2.ATTEMPT_OUTCOME_COMPLETED: "COMPLETED",
    work_pb2.ATTEMPT_OUTCOME_FAILED: "FAILED",
    work_pb2.ATTEMPT_OUTCOME_CANCELLED: "CANCELLED",
}


class Progress(NamedTuple):
    """One progress report. `total` is 0 if not known."""

    done: int
    total: int
    message: str


class ItemOutcome(NamedTuple):
    """An item's own result. `error` is empty if it succeeded."""

    key: str
    succeeded: bool
    error: str


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, as its worker reports it.

    payload: what the handler got, as the type it asked for; None if it takes none or was not called. progress: each
    report, in order (a worker sends the newest once a second). items: in order; item_counts: as recorded with the run.
    error_code and the like: empty unless it failed or was cancelled. exception: what the handler raised. retry: False
    if it said that the run must not be tried again. retry_after: in how many seconds it wants the next attempt; None
    leaves that to the job's policy. went_on: it did not stop within its grace, and a worker's slot would stay taken.
    """

    state: State
    payload: Any
    progress: Sequence[Progress]
    items: Sequence[ItemOutcome]
    item_counts: ItemCounts
    metrics: dict[str, Any]
    metadata: dict[str, Any]
    error_code: str
    error_message: str
    error_detail: str
    exception: BaseException | None
    retry: bool
    retry_after: float | None
    went_on: bool


def read_outcome(
    result: work_pb2.AttemptResult,
    *,
    payload: object,
    progress: Sequence[Progress],
    items: Sequence[work_pb2.ItemResult],
    exception: BaseException | None,
    went_on: bool,
) -> Outcome:
    """The result that would go to the scheduler, and what went before it."""
    counts, following = result.items, result.following
    return Outcome(
        state=_STATES[result.outcome],
        payload=payload,
        progress=tuple(progress),
        items=tuple(ItemOutcome(item.key, item.succeeded, item.error) for item in items),
        item_counts=ItemCounts(counts.processed, counts.succeeded, counts.failed),
        metrics=json.loads(result.metrics_json or "{}"),
        metadata=json.loads(result.metadata_json or "{}"),
        error_code=result.error.code,
        error_message=result.error.message,
        error_detail=result.error.detail,
        exception=exception,
        retry=not following.no_retry,
        retry_after=following.retry_after.ToTimedelta().total_seconds() if following.HasField("retry_after") else None,
        went_on=went_on,
    )
