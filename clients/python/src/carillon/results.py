"""The result of an attempt, as the scheduler records it."""

from __future__ import annotations

import asyncio
import traceback

from carillon.held import HeldAttempt, Stop
from carillon.outcome import (
    BAD_RESULT,
    CANCELLED,
    HANDLER_ERROR,
    Completed,
    Failed,
    ItemCounts,
    took_too_long,
)
from carillon.text import DETAIL_BYTES, MESSAGE_BYTES, clean, report_json
from carillon.v1 import run_pb2, work_pb2


def ended(attempt: HeldAttempt, task: asyncio.Task[object], now: float) -> work_pb2.AttemptResult:
    """What the executor's task came to. `now` is the monotonic clock."""
    if attempt.stop is Stop.TIMEOUT:
        return stopped(attempt, now)
    if task.cancelled():
        if attempt.stop is Stop.CANCEL:
            return stopped(attempt, now)
        return _failed(attempt, Failed(HANDLER_ERROR, "the handler cancelled itself"), now)
    error = task.exception()
    if error is not None:
        return _failed(attempt, error if isinstance(error, Failed) else unexpected(error), now)
    try:
        return _completed(attempt, task.result(), now)
    except Failed as refused:
        return _failed(attempt, refused, now)


def stopped(attempt: HeldAttempt, now: float) -> work_pb2.AttemptResult:
    """The attempt was asked to stop, and counts as stopped."""
    if attempt.stop is Stop.TIMEOUT:
        return _failed(attempt, took_too_long(attempt.assignment.attempt_timeout), now)
    result = _result(attempt, work_pb2.ATTEMPT_OUTCOME_CANCELLED, now)
    result.error.CopyFrom(run_pb2.RunError(code=CANCELLED, message="the run was asked to stop"))
    return result


def returned(attempt: HeldAttempt) -> work_pb2.AttemptResult:
    """The attempt was never started."""
    return work_pb2.AttemptResult(attempt=attempt.ref, outcome=work_pb2.ATTEMPT_OUTCOME_RETURNED)


def not_served(attempt: HeldAttempt) -> work_pb2.AttemptResult:
    """The attempt is for a route that this worker never offered."""
    route = attempt.assignment.route
    return _failed(attempt, Failed(HANDLER_ERROR, f"this worker does not serve the route {route!r}"), 0.0)


def _completed(attempt: HeldAttempt, value: object, now: float) -> work_pb2.AttemptResult:
    if not isinstance(value, Completed):
        raise Failed(BAD_RESULT, f"the executor returned {type(value).__name__} instead of Completed")
    result = _result(attempt, work_pb2.ATTEMPT_OUTCOME_COMPLETED, now)
    try:
        result.metrics_json = report_json("metrics", value.metrics)
        result.metadata_json = report_json("metadata", value.metadata)
        if value.items is not None:
            _count(result, value.items)
    except (ValueError, TypeError) as error:
        raise Failed(BAD_RESULT, str(error)) from None
    return result


def _failed(attempt: HeldAttempt, failed: Failed, now: float) -> work_pb2.AttemptResult:
    result = _result(attempt, work_pb2.ATTEMPT_OUTCOME_FAILED, now)
    result.error.CopyFrom(
        run_pb2.RunError(
            code=failed.code,
            message=clean(failed.message, MESSAGE_BYTES),
            detail=clean(failed.detail, DETAIL_BYTES, keep_end=failed.code == HANDLER_ERROR),
        )
    )
    if not failed.retry:
        result.following.no_retry = True
    elif failed.retry_after is not None:
        result.following.retry_after.FromNanoseconds(round(failed.retry_after * 1e9))
    return result


def unexpected(error: BaseException) -> Failed:
    """What an exception that the handler did not mean comes to, with its traceback."""
    kind = type(error).__name__
    try:
        detail = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return Failed(HANDLER_ERROR, f"{kind}: {error}", detail)
    except Exception:
        return Failed(HANDLER_ERROR, f"{kind}, which cannot be written as text")


def _result(attempt: HeldAttempt, outcome: work_pb2.AttemptOutcome.ValueType, now: float) -> work_pb2.AttemptResult:
    result = work_pb2.AttemptResult(attempt=attempt.ref, outcome=outcome)
    if attempt.began is not None:
        result.duration.FromNanoseconds(int((now - attempt.began) * 1e9))
    if attempt.items:
        _count(result, attempt.run.items)
    return result


def _count(result: work_pb2.AttemptResult, items: ItemCounts) -> None:
    result.items.CopyFrom(run_pb2.ItemCounts(processed=items.processed, succeeded=items.succeeded, failed=items.failed))
