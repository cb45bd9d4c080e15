"""What a service receives: the run as JSON, and the headers that let it make its effect happen once."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from carillon.execution import Assignment


def headers(assignment: Assignment) -> dict[str, str]:
    """The headers of one attempt.

    - `Idempotency-Key`: the run's id, the same for each attempt.
    - `Carillon-Attempt`: the attempt, from 1.
    - `Carillon-Claim`: the fencing token. It grows with each hand-over of the run, so a service that stores
      the highest it has seen can refuse a worker that was given up for lost.
    - `Carillon-Timeout`: how long the attempt may take, in seconds. A duration and not a time of day,
      because the two machines' clocks may disagree.
    """
    return {
        "Content-Type": "application/json",
        "Idempotency-Key": str(assignment.run_id),
        "Carillon-Attempt": str(assignment.attempt),
        "Carillon-Claim": str(assignment.claim_id),
        "Carillon-Timeout": f"{assignment.attempt_timeout:.3f}".rstrip("0").rstrip("."),
    }


def body(assignment: Assignment) -> bytes:
    """The run as a JSON object. The payload, a JSON object already, goes through as the scheduler sent it."""
    facts = {
        "run": str(assignment.run_id),
        "service": assignment.service,
        "job": assignment.job,
        "tenant": assignment.tenant,
        "attempt": assignment.attempt,
        "claim": assignment.claim_id,
        "max_attempts": assignment.max_attempts,
        "scheduled_time": rfc3339(assignment.scheduled_time),
        "trigger_source": assignment.trigger_source,
        "labels": dict(assignment.labels),
    }
    head = json.dumps(facts, ensure_ascii=False)
    return f'{head[:-1]}, "payload": {assignment.payload_json or "{}"}}}'.encode()


def rfc3339(instant: datetime) -> str:
    """The instant in UTC, such as `2026-11-23T14:00:00Z`."""
    return instant.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
