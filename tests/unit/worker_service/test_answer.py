"""What of an answer's body is recorded, and what is left out with a word."""

from __future__ import annotations

import json
from typing import Any

import pytest
from carillon.execution import ItemCounts

from worker_service.targets import answer


def read(value: Any) -> Any:
    return answer.completed("application/json", json.dumps(value).encode())


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ({"processed": 3, "succeeded": 2, "failed": 1}, ItemCounts(3, 2, 1)),
        ({"succeeded": 2, "failed": 1}, ItemCounts(3, 2, 1)),
        ({"processed": 3}, ItemCounts(3, 0, 0)),
        (None, None),
    ],
)
def test_items_are_counted(items: Any, expected: ItemCounts | None) -> None:
    completed = read({"items": items})
    assert completed.items == expected
    assert completed.metadata == {}


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"items": [1]}, "items is not an object"),
        ({"items": {"processed": -1}}, "items.processed is not a whole number from 0"),
        ({"items": {"failed": True}}, "items.failed is not a whole number from 0"),
        ({"items": {"succeeded": 2**63}}, "items.succeeded is not a whole number from 0"),
        ({"items": {"processed": 1.0}}, "items.processed is not a whole number from 0"),
        ({"items": {"processed": 1, "failed": 2}}, "items.processed is less than succeeded and failed together"),
        ({"metrics": 7}, "metrics is not an object"),
        ({"metrics": {"a": "x" * 70_000}}, "metrics has 70,008 bytes as JSON; at most 65,536 are allowed"),
        ({"metrics": {"a": "\0"}}, "metrics contains a NUL character, which PostgreSQL cannot store"),
        ({"metadata": []}, "metadata is not an object"),
    ],
)
def test_what_is_wrong_is_left_out_and_the_run_completes(part: dict[str, Any], complaint: str) -> None:
    completed = read({"metadata": {"kept": 1}, **part})
    assert completed.metadata["answer_problem"] == f"left out: {complaint}"
    assert completed.items is None
    assert completed.metrics == {}
    assert completed.metadata.get("kept") == (None if "metadata" in part else 1)


def test_a_number_beyond_a_float_is_left_out() -> None:
    completed = answer.completed("application/json", b'{"metrics": {"a": 1e999}}')
    assert completed.metrics == {}
    assert "metrics cannot be written as JSON" in completed.metadata["answer_problem"]


def test_a_complaint_for_which_there_is_no_room_is_dropped() -> None:
    metadata = {"a": "x" * 65_520}
    assert read({"metadata": metadata, "metrics": 1}).metadata == metadata


@pytest.mark.parametrize("body", [b"{", b'{"metrics": {"a": NaN}}', b"\xff", b"[" * 100_000])
def test_json_that_is_none_completes_with_a_word(body: bytes) -> None:
    completed = answer.completed("application/json", body)
    assert completed.metadata == {"answer_problem": "the answer says application/json, but is not valid JSON"}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/plain", b"done"), ("application/json", b""), ("application/json", b'["a"]'), ("text/html", b"\xff")],
)
def test_a_body_that_is_no_object_says_nothing(content_type: str, body: bytes) -> None:
    completed = answer.completed(content_type, body)
    assert (completed.items, completed.metrics, completed.metadata) == (None, {}, {})
