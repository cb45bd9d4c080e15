"""What workers send, as the domain's values.

A message that breaks the protocol ends the stream (`Malformed`). A value that is merely bad harms nobody else: texts
are cut, numbers brought into range, and a result that cannot be recorded becomes a failed one that says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Sized
from datetime import timedelta
from uuid import UUID

import structlog
from carillon.v1 import run_pb2, work_pb2
from google.protobuf.duration_pb2 import Duration

from scheduler_service.domain.attempt import AttemptOutcome, AttemptRef, ItemResult, Result
from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.record import ItemCounts, RunError
from scheduler_service.domain.retry import LONGEST_DELAY, Following
from scheduler_service.engine.leases import Hello
from scheduler_service.rpc.work_json import problem_of

log = structlog.get_logger()

MAX_CREDIT = 100_000
MAX_HELD_CLAIMS = 100_000
MAX_ENTRIES = 2_000
"""Starts, reports, items or results in a message: four times what our client sends."""
_MAX_WORKER = 200
_MAX_ROUTES = 1_000
_MAX_KEY = 256
_MAX_ERROR_BYTES = 4 * 1024
_MAX_DETAIL_BYTES = 16 * 1024
_MAX_COUNT = 10**12  # far above any real number of items, and far below where sums over a batch overflow
_MAX_SECONDS = 10 * 366 * 86_400
_ROUTE = re.compile(r"http|grpc|handler/[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_NO_REASON = RunError("HANDLER_ERROR", "the attempt failed, and the worker gave no reason")

_OUTCOMES: dict[int, AttemptOutcome] = {
    work_pb2.ATTEMPT_OUTCOME_COMPLETED: "COMPLETED",
    work_pb2.ATTEMPT_OUTCOME_FAILED: "FAILED",
    work_pb2.ATTEMPT_OUTCOME_CANCELLED: "CANCELLED",
    work_pb2.ATTEMPT_OUTCOME_RETURNED: "RETURNED",
}


class Malformed(InvalidInput):
    """A message on the work stream is out of order or malformed; the stream ends."""

    reason = "PROTOCOL"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(Violation(field, problem))


def hello_of(message: work_pb2.Hello) -> Hello:
    """Errors: Malformed."""
    if len(message.session_id) != 16 or not any(message.session_id):
        raise Malformed("hello.session_id", f"is {message.session_id.hex()!r}; send 16 random bytes")
    if not 1 <= len(message.routes) <= _MAX_ROUTES:
        raise Malformed("hello.routes", f"lists {len(message.routes)} routes; send between 1 and {_MAX_ROUTES:,}")
    for index, route in enumerate(message.routes):
        if not _ROUTE.fullmatch(route):
            raise Malformed(
                f"hello.routes[{index}]",
                f"is {route[:200]!r}; a route is `http`, `grpc` or `handler/{{service}}/{{job}}`",
            )
    if not 1 <= len(message.worker) <= _MAX_WORKER or "\0" in message.worker:
        raise Malformed("hello.worker", f"must be 1 to {_MAX_WORKER} characters, without NUL")
    return Hello(
        session_id=UUID(bytes=message.session_id),
        worker=message.worker,
        client=_kept(message.client)[:_MAX_WORKER],
        routes=frozenset(message.routes),
        held_claims=claims_of(message.held_claims),
    )


def claims_of(held_claims: Sequence[int]) -> list[int]:
    """Errors: Malformed."""
    if len(held_claims) > MAX_HELD_CLAIMS:
        raise Malformed("held_claims", f"lists over {MAX_HELD_CLAIMS:,} claims")
    return list(held_claims)


def credit_of(credit: int, granted: int) -> int:
    """Credit on top of what is granted already. Errors: Malformed."""
    if credit < 0 or credit + granted > MAX_CREDIT:
        raise Malformed("credit", f"is {credit}; it must be 0 or more, and all together at most {MAX_CREDIT:,}")
    return credit


def _require_few(field: str, entries: Sized) -> None:
    if len(entries) > MAX_ENTRIES:
        raise Malformed(field, f"has {len(entries):,} entries; send at most {MAX_ENTRIES:,} in a message")


def starts_of(message: work_pb2.Starts) -> list[tuple[AttemptRef, float]]:
    """Errors: Malformed."""
    _require_few("starts.starts", message.starts)
    return [(_ref(start.attempt), _seconds(start.age)) for start in message.starts]


def progress_of(message: work_pb2.ProgressReports) -> list[tuple[AttemptRef, tuple[int, int, str]]]:
    """Errors: Malformed."""
    _require_few("progress.reports", message.reports)
    return [(_ref(report.attempt), _progress(report.progress)) for report in message.reports]


def _progress(progress: run_pb2.Progress) -> tuple[int, int, str]:
    return max(progress.done, 0), max(progress.total, 0), _cut(progress.message, _MAX_ERROR_BYTES)


def items_of(message: work_pb2.ItemResults, session_id: UUID) -> list[ItemResult]:
    """Items whose key cannot be kept are left out, with a warning. Errors: Malformed."""
    _require_few("items.results", message.results)
    items = []
    for item in message.results:
        ref = _ref(item.attempt)
        if not 1 <= len(item.key) <= _MAX_KEY or "\0" in item.key:
            log.warning("item left out: its key must be 1 to 256 characters, without NUL", run=str(ref.run_id))
            continue
        error = "" if item.succeeded else _cut(item.error, _MAX_ERROR_BYTES)
        items.append(ItemResult(ref, session_id, item.key, item.succeeded, error))
    return items


def results_of(messages: Sequence[work_pb2.AttemptResult], session_id: UUID) -> list[Result]:
    """Errors: Malformed."""
    _require_few("results.results", messages)
    return [_result(message, session_id) for message in messages]


def _result(message: work_pb2.AttemptResult, session_id: UUID) -> Result:
    ref = _ref(message.attempt)
    outcome = _OUTCOMES.get(message.outcome)
    if outcome is None:
        raise Malformed("results.outcome", f"is {message.outcome}, which is no outcome that can be sent")
    duration = _seconds(message.duration) if message.HasField("duration") else None
    problem = _problem(message)
    if problem is not None:
        return Result(ref, session_id, "FAILED", duration, RunError("BAD_RESULT", problem))
    return Result(
        ref,
        session_id,
        outcome,
        duration,
        _error(message) if outcome != "COMPLETED" else None,
        _items(message.items) if message.HasField("items") else None,
        message.metrics_json,
        message.metadata_json,
        _following(message.following) if outcome in ("FAILED", "CANCELLED") else None,
    )


def _following(wish: work_pb2.Following) -> Following | None:
    if wish.HasField("retry_after"):
        return Following(retry_after=min(timedelta(seconds=_seconds(wish.retry_after)), LONGEST_DELAY))
    return Following(no_retry=True) if wish.no_retry else None


def _problem(message: work_pb2.AttemptResult) -> str | None:
    if message.HasField("items"):
        items = message.items
        if not all(0 <= count <= _MAX_COUNT for count in (items.processed, items.succeeded, items.failed)):
            return "the item counts are negative or beyond all bounds"
    return problem_of("metrics_json", message.metrics_json) or problem_of("metadata_json", message.metadata_json)


def _items(items: run_pb2.ItemCounts) -> ItemCounts:
    return ItemCounts(items.processed, items.succeeded, items.failed)


def _error(message: work_pb2.AttemptResult) -> RunError | None:
    if not message.HasField("error"):
        return _NO_REASON if message.outcome == work_pb2.ATTEMPT_OUTCOME_FAILED else None
    error = message.error
    return RunError(
        error.code if _CODE.fullmatch(error.code) else _NO_REASON.code,
        _cut(error.message, _MAX_ERROR_BYTES),
        _cut(error.detail, _MAX_DETAIL_BYTES),
    )


def _ref(ref: work_pb2.AttemptRef) -> AttemptRef:
    run_id, attempt, claim_id = ref.run_id, ref.attempt, ref.claim_id
    if len(run_id) != 16 or attempt < 1 or claim_id < 1:
        raise Malformed(
            "attempt",
            f"has a run_id of {len(run_id)} bytes, attempt {attempt}, claim_id {claim_id}; send what was assigned",
        )
    return AttemptRef(UUID(bytes=run_id), attempt, claim_id)


def _seconds(duration: Duration) -> float:
    """Between 0 and ten years: a worker's clock is not ours to judge, but an interval has its limits."""
    return min(max(duration.seconds + duration.nanos / 1e9, 0.0), _MAX_SECONDS)


def _kept(text: str) -> str:
    """PostgreSQL keeps no NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


def _cut(text: str, most_bytes: int) -> str:
    text = _kept(text)
    if len(text) * 4 <= most_bytes:
        return text
    return text.encode()[:most_bytes].decode(errors="ignore")
