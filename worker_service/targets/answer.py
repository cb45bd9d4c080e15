"""What a service may say in its answer, beside that the work is done: items, metrics and metadata.

The status alone decides that the work is done. What is wrong with the rest is therefore no failure: the wrong
part is left out, and the record's metadata says why under `answer_problem`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from carillon.execution import Completed, ItemCounts
from carillon.text import report_json

BODY_BYTES = 256 * 1024
PROBLEM = "answer_problem"
_LARGEST_COUNT = 2**63 - 1


def too_long() -> Completed:
    """What to record for a body that goes on after BODY_BYTES."""
    return _complaint(f"the answer is longer than {BODY_BYTES // 1024} KiB and was not read")


def completed(content_type: str, body: bytes) -> Completed:
    """What to record for a whole body. One that is no JSON object carries nothing."""
    try:
        answer = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        if body.strip() and content_type.endswith("json"):
            return _complaint(f"the answer says {content_type}, but is not valid JSON")
        return Completed()
    return read(answer) if isinstance(answer, dict) else Completed()


def _complaint(sentence: str) -> Completed:
    return Completed(metadata={PROBLEM: sentence})


def read(answer: Mapping[str, Any], problems: Sequence[str] = ()) -> Completed:
    """What to record for an answer as a JSON object. `problems`: what was left out of it before."""
    problems = list(problems)
    items = None
    try:
        items = _item_counts(answer.get("items"))
    except ValueError as wrong:
        problems.append(str(wrong))
    metrics = _json_object("metrics", answer, problems)
    metadata = _json_object("metadata", answer, problems)
    if problems:
        metadata = _with_problems(metadata, problems)
    return Completed(items=items, metrics=metrics, metadata=metadata)


def _item_counts(value: Any) -> ItemCounts | None:
    """Succeeded and failed default to 0, processed to their sum."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("items is not an object")
    succeeded, failed = _count(value, "succeeded", 0), _count(value, "failed", 0)
    processed = _count(value, "processed", succeeded + failed)
    if processed < succeeded + failed:
        raise ValueError("items.processed is less than succeeded and failed together")
    return ItemCounts(processed, succeeded, failed)


def _count(items: Mapping[str, Any], name: str, default: int) -> int:
    value = items.get(name, default)
    if type(value) is not int or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"items.{name} is not a whole number from 0")
    return value


def _json_object(name: str, answer: Mapping[str, Any], problems: list[str]) -> Mapping[str, Any]:
    value = answer.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name} is not an object")
        return {}
    try:
        report_json(name, value)
    except ValueError as wrong:
        problems.append(str(wrong))
        return {}
    return value


def _with_problems(metadata: Mapping[str, Any], problems: list[str]) -> Mapping[str, Any]:
    together = {**metadata, PROBLEM: "left out: " + "; ".join(problems)}
    try:
        report_json("metadata", together)
    except ValueError:  # no room for the complaint: the service's own words are worth more
        return metadata
    return together


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
