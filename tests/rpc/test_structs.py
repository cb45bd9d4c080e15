"""JSON documents in answers: whatever is stored can be sent and read."""

from __future__ import annotations

from typing import Any

import pytest
from carillon.structs import from_struct
from carillon.v1 import audit_pb2, audit_service_pb2, job_pb2, job_service_pb2, run_pb2, run_service_pb2
from google.protobuf.message import Message

from scheduler_service.domain.fields import MAX_JSON_DEPTH
from scheduler_service.rpc.structs import to_struct
from scheduler_service.rpc.work_json import problem_of


def nested(levels: int, innermost: Any = 1) -> dict[str, Any]:
    value: Any = innermost
    for _ in range(levels):
        value = {"a": value}
    assert isinstance(value, dict)
    return value


def answers(document: dict[str, Any]) -> list[Message]:
    """Those in which documents stand deepest."""
    struct = to_struct(document)
    run = run_pb2.Run(payload=struct, metrics=struct, metadata=struct)
    return [
        run_service_pb2.ListRunsResponse(runs=[run]),
        run_service_pb2.WatchRunsResponse(run=run),
        job_service_pb2.ListJobsResponse(jobs=[job_pb2.Job(declared=job_pb2.JobSpec(config=struct))]),
        audit_service_pb2.ListAuditEventsResponse(events=[audit_pb2.AuditEvent(before=struct, after=struct)]),
    ]


@pytest.mark.parametrize("levels", [MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1, 300])
@pytest.mark.parametrize("innermost", [1, {}, [[]]])
def test_every_document_can_be_sent_and_read(levels: int, innermost: Any) -> None:
    for answer in answers({**nested(levels, innermost), "beside": [True]}):
        assert type(answer).FromString(answer.SerializeToString()) == answer


def test_a_document_as_deep_as_is_allowed_is_sent_whole() -> None:
    document = nested(MAX_JSON_DEPTH)
    assert from_struct(to_struct(document)) == document


def test_what_is_too_deep_is_a_note_and_its_neighbours_stay() -> None:
    sent = from_struct(to_struct({**nested(300), "beside": {"b": [2]}}))
    assert sent == {
        **nested(MAX_JSON_DEPTH, "(nested deeper than 32 levels, left out)"),
        "beside": {"b": [2]},
    }


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
def test_a_report_may_be_nested_as_deep_as_a_request(opening: str, closing: str) -> None:
    def report(levels: int) -> str:
        return '{"m":' + opening * (levels - 1) + "1" + closing * (levels - 1) + "}"

    assert problem_of("metrics_json", report(MAX_JSON_DEPTH)) is None
    sentence = "metrics_json is nested deeper than 32 levels"
    assert problem_of("metrics_json", report(MAX_JSON_DEPTH + 1)) == sentence
    assert problem_of("metrics_json", report(300)) == sentence
    assert problem_of("metrics_json", report(5_000)) == sentence
    assert problem_of("metrics_json", '{"m":[' + ",".join(["[]"] * 1_000) + "]}") is None
