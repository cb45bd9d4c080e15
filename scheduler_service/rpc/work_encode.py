"""What workers are sent, from the domain's values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from carillon.v1 import run_pb2, work_pb2, worker_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Verdict
from scheduler_service.domain.run import EPOCH, TriggerSource

WorkResponse = worker_service_pb2.WorkResponse

_TRIGGERS = {source: run_pb2.TriggerSource.Value(f"TRIGGER_SOURCE_{source}") for source in TriggerSource}
_VERDICTS = {verdict: work_pb2.ResultVerdict.Value(f"RESULT_VERDICT_{verdict}") for verdict in Verdict}


def welcome(lease: float, heartbeat_interval: float, replica: str) -> WorkResponse:
    """`lease` and `heartbeat_interval` in seconds."""
    return WorkResponse(
        welcome=work_pb2.Welcome(
            lease=_duration(lease), heartbeat_interval=_duration(heartbeat_interval), replica=replica
        )
    )


def heartbeat_ack(sequence: int) -> WorkResponse:
    return WorkResponse(heartbeat_ack=work_pb2.HeartbeatAck(sequence=sequence))


def drain() -> WorkResponse:
    return WorkResponse(drain=work_pb2.Drain())


def assignments(claim_id: int, runs: Sequence[ClaimedRun]) -> WorkResponse:
    return WorkResponse(
        assignments=work_pb2.Assignments(claim_id=claim_id, assignments=[_assignment(run) for run in runs])
    )


def result_acks(verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> WorkResponse:
    acks = [work_pb2.ResultAck(attempt=_ref(ref), verdict=_VERDICTS[verdict]) for ref, verdict in verdicts]
    return WorkResponse(result_acks=work_pb2.ResultAcks(acks=acks))


def cancel(attempts: Iterable[AttemptRef]) -> WorkResponse:
    return WorkResponse(cancel=work_pb2.CancelAttempts(attempts=[_ref(ref) for ref in attempts]))


def _assignment(run: ClaimedRun) -> work_pb2.Assignment:
    return work_pb2.Assignment(
        run_id=run.run_id.bytes,
        attempt=run.attempt,
        max_attempts=run.max_attempts,
        job=f"services/{run.service}/jobs/{run.job}",
        tenant=run.tenant,
        endpoint=run.endpoint,
        payload_json=run.payload,
        attempt_timeout=_duration(run.attempt_timeout),
        cancel_grace=_duration(run.cancel_grace),
        scheduled_time=_timestamp(run.scheduled_for),
        trigger_source=_TRIGGERS[run.trigger],
        labels=run.labels,
    )


def _ref(ref: AttemptRef) -> work_pb2.AttemptRef:
    return work_pb2.AttemptRef(run_id=ref.run_id.bytes, attempt=ref.attempt, claim_id=ref.claim_id)


# Runs of one claim share few timeouts and instants. The messages are copied where they are used, never changed.
@lru_cache(maxsize=1024)
def _duration(seconds: float) -> Duration:
    nanoseconds = round(seconds * 1_000_000) * 1000
    return Duration(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


@lru_cache(maxsize=4096)
def _timestamp(instant: datetime) -> Timestamp:
    seconds, rest = divmod(instant - EPOCH, timedelta(seconds=1))
    return Timestamp(seconds=seconds, nanos=rest.microseconds * 1000)
