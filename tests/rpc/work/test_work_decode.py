"""What workers send, brought into a form that the database takes."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from carillon.v1 import run_pb2, work_pb2
from google.protobuf.duration_pb2 import Duration

from scheduler_service.domain.attempt import Result
from scheduler_service.domain.record import ItemCounts
from scheduler_service.domain.retry import Following
from scheduler_service.rpc.work_decode import items_of, progress_of, results_of, starts_of
from scheduler_service.rpc.work_json import MAX_BYTES, problem_of
from tests.conftest import DatabaseUrls

SESSION = uuid4()
REF = work_pb2.AttemptRef(run_id=uuid4().bytes, attempt=1, claim_id=5)
FAILED = work_pb2.ATTEMPT_OUTCOME_FAILED
COMPLETED = work_pb2.ATTEMPT_OUTCOME_COMPLETED

BAD_JSON = [
    "nothing",
    "[]",
    "1",
    '"text"',
    '{"a": NaN}',
    '{"a": -Infinity}',
    '{"a": 1e401}',
    '{"a": 1e-99999999}',
    '{"a": 0.%s1}' % ("0" * 20_000),
    '{"a": %s}' % ("9" * 5_000),
    '{"a": "\\u0000"}',
    '{"\\u0000": 1}',
    '{"a": ["\\ud800"]}',
    '{"a": "\0"}',
    '{"a": ' + "[" * 32 + "1" + "]" * 32 + "}",
    '{"a": ' + "[" * 900 + "]" * 900 + "}",
    '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}",
    '{"a": "%s"}' % ("x" * 64 * 1024),
    '{"a": "%s"}' % ("\N{EURO SIGN}" * 22 * 1024),
    json.dumps({"a": ["1e400"] * 200}).replace('"1e400"', "1e400"),
    json.dumps({"a": ["-1E-300"] * 300}).replace('"-1E-300"', "-1E-300"),
]
GOOD_JSON = [
    "{}",
    '{"a": 1, "b": [1.5e300, -2, null, true, {"c": "text"}]}',
    '{"a": "\\\\u0000", "b": "\\u00e4", "c": "\\ud83d\\ude00"}',
    '{"a": %s}' % ("9" * 4_000),
    '{"a": 1e-400, "b": 1e400}',
    json.dumps({"a": ["1e400"] * 160}).replace('"1e400"', "1e400"),
    '{"a": "%s"}' % ("x" * 63 * 1024),
    '{"a": ' + "[" * 31 + "1" + "]" * 31 + "}",
]


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:30])
def test_json_that_cannot_be_kept_is_named(text: str) -> None:
    assert str(problem_of("metrics_json", text)).startswith("metrics_json is ")


def test_every_json_that_is_let_through_is_taken_by_the_database(database_urls: DatabaseUrls) -> None:
    with psycopg.connect(database_urls.admin) as connection:
        for text in GOOD_JSON:
            assert problem_of("metrics_json", text) is None, text[:60]
            stored = connection.execute("select length((%s::text::jsonb)::text)", (text,)).fetchone()
            assert stored is not None
            assert stored[0] <= 1.5 * MAX_BYTES, text[:60]  # its spaces come on top


def test_no_json_is_no_problem() -> None:
    assert problem_of("metrics_json", "") is None


def a_result(**fields: Any) -> Result:
    [result] = results_of([work_pb2.AttemptResult(attempt=REF, **fields)], SESSION)
    return result


def test_a_result_is_read_whole() -> None:
    result = a_result(
        outcome=COMPLETED,
        duration=Duration(seconds=2, nanos=500_000_000),
        items=run_pb2.ItemCounts(processed=3, succeeded=2, failed=1),
        metrics_json='{"a":1}',
        metadata_json='{"b":2}',
    )
    assert (result.ref.run_id, result.ref.attempt, result.ref.claim_id) == (UUID(bytes=REF.run_id), 1, 5)
    assert (result.session_id, result.outcome, result.duration) == (SESSION, "COMPLETED", 2.5)
    assert (result.items, result.error) == (ItemCounts(3, 2, 1), None)
    assert (result.metrics, result.metadata) == ('{"a":1}', '{"b":2}')


def test_a_completed_attempt_has_no_error() -> None:
    assert a_result(outcome=COMPLETED, error=run_pb2.RunError(code="X", message="y")).error is None


def test_a_failure_without_a_reason_says_so() -> None:
    error = a_result(outcome=FAILED).error
    assert error is not None
    assert (error.code, error.message) == ("HANDLER_ERROR", "the attempt failed, and the worker gave no reason")


def test_errors_are_cut_at_whole_characters_and_keep_no_nul() -> None:
    error = a_result(
        outcome=FAILED,
        error=run_pb2.RunError(code="bad code", message="\N{EURO SIGN}" * 4096, detail="a\0" + "b" * 20_000),
    ).error
    assert error is not None
    assert error.code == "HANDLER_ERROR"
    assert error.message == "\N{EURO SIGN}" * 1365
    assert error.detail.startswith("a\N{REPLACEMENT CHARACTER}b")
    assert len(error.detail.encode()) == 16 * 1024


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (Duration(seconds=-5), 0.0),
        (Duration(seconds=2**62), 10 * 366 * 86_400),
        (Duration(seconds=1, nanos=-2_000_000_000), 0.0),
    ],
)
def test_durations_are_brought_into_range(duration: Duration, seconds: float) -> None:
    assert a_result(outcome=COMPLETED, duration=duration).duration == seconds
    [(_, age)] = starts_of(work_pb2.Starts(starts=[work_pb2.AttemptStart(attempt=REF, age=duration)]))
    assert age == seconds


@pytest.mark.parametrize(
    ("wish", "read"),
    [
        ({"no_retry": True}, Following(no_retry=True)),
        ({"no_retry": False}, None),
        ({}, None),
        ({"retry_after": Duration(seconds=30, nanos=500_000_000)}, Following(retry_after=timedelta(seconds=30.5))),
        ({"retry_after": Duration()}, Following(retry_after=timedelta(0))),
        ({"retry_after": Duration(seconds=-5)}, Following(retry_after=timedelta(0))),
        ({"retry_after": Duration(seconds=2**62, nanos=-1)}, Following(retry_after=timedelta(days=7))),
    ],
    ids=["no-retry", "not-set", "nothing", "later", "at-once", "negative", "absurd"],
)
def test_what_a_target_asks_to_follow_is_brought_into_range(wish: dict[str, Any], read: Following | None) -> None:
    following = work_pb2.Following(**wish)
    assert a_result(outcome=FAILED, following=following).following == read
    assert a_result(outcome=work_pb2.ATTEMPT_OUTCOME_CANCELLED, following=following).following == read
    assert a_result(outcome=FAILED).following is None


def test_of_two_wishes_the_later_counts_as_protobuf_has_it() -> None:
    both = work_pb2.Following(no_retry=True).SerializeToString()
    both += work_pb2.Following(retry_after=Duration(seconds=1)).SerializeToString()
    result = a_result(outcome=FAILED, following=work_pb2.Following.FromString(both))
    assert result.following == Following(retry_after=timedelta(seconds=1))


@pytest.mark.parametrize("outcome", [COMPLETED, work_pb2.ATTEMPT_OUTCOME_RETURNED])
def test_a_wish_beside_what_is_no_failure_is_ignored(outcome: work_pb2.AttemptOutcome.ValueType) -> None:
    wished = a_result(outcome=outcome, following=work_pb2.Following(no_retry=True))
    assert wished.digest() == a_result(outcome=outcome).digest()


@pytest.mark.parametrize("counts", [{"processed": -1}, {"failed": 10**12 + 1}])
def test_item_counts_beyond_reason_fail_the_attempt(counts: dict[str, int]) -> None:
    result = a_result(outcome=COMPLETED, items=run_pb2.ItemCounts(**counts))
    assert result.outcome == "FAILED"
    assert result.error is not None
    assert result.error.code == "BAD_RESULT"


def test_items_whose_key_cannot_be_kept_are_left_out() -> None:
    keys = ["", "x" * 257, "a\0b", "fine", "x" * 256]
    items = [work_pb2.ItemResult(attempt=REF, key=key, error="e" * 5000) for key in keys]
    kept = items_of(work_pb2.ItemResults(results=items), uuid4())
    assert [item.key for item in kept] == ["fine", "x" * 256]
    assert {len(item.error) for item in kept} == {4096}


def test_progress_below_zero_is_none() -> None:
    progress = run_pb2.Progress(done=-1, total=-1, message="going backwards")
    reports = work_pb2.ProgressReports(reports=[work_pb2.AttemptProgress(attempt=REF, progress=progress)])
    assert [made for _, made in progress_of(reports)] == [(0, 0, "going backwards")]


def test_the_same_result_sent_again_is_read_the_same() -> None:
    sent = {"outcome": FAILED, "error": run_pb2.RunError(code="X", message="m"), "metadata_json": json.dumps({"a": 1})}
    assert a_result(**sent).digest() == a_result(**sent).digest()
