"""Runs, attempts, items and statistics as messages. Instants and durations are exact to the microsecond."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from carillon.v1 import job_service_pb2, run_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.pending import PendingReason
from scheduler_service.domain.record import Attempt, Item, ItemCounts, JobStats, Progress, Run, RunError
from scheduler_service.domain.run import RunState, TriggerSource, run_name
from scheduler_service.rpc.structs import to_struct

STATES = {state: run_pb2.RunState.Value(f"RUN_STATE_{state.name}") for state in RunState}
_PENDING_REASONS: Mapping[PendingReason | None, run_pb2.PendingReason.ValueType] = {
    None: run_pb2.PENDING_REASON_UNSPECIFIED,
    **{reason: run_pb2.PendingReason.Value(f"PENDING_REASON_{reason.name}") for reason in PendingReason},
}
TRIGGERS = {source: run_pb2.TriggerSource.Value(f"TRIGGER_SOURCE_{source.name}") for source in TriggerSource}


def encode_run(run: Run, *, with_payload: bool = True) -> run_pb2.Run:
    job = JobName(run.service, run.job)
    return run_pb2.Run(
        name=run_name(run.run_id),
        job=str(job),
        tenant=run.tenant,
        schedule=str(ScheduleName(job, run.tenant, run.schedule)) if run.schedule else "",
        schedule_revision=run.revision,
        state=STATES[run.state],
        trigger_source=TRIGGERS[run.trigger],
        origin=run.origin,
        triggered_by=run.triggered_by,
        scheduled_time=_timestamp(run.scheduled_for),
        scheduled_local_time=run.scheduled_local.isoformat() if run.scheduled_local else "",
        time_zone=run.time_zone,
        create_time=_timestamp(run.created_at),
        start_time=_timestamp(run.started_at),
        finish_time=_timestamp(run.finished_at),
        duration=_duration(run.duration),
        attempt=run.attempt,
        max_attempts=run.max_attempts,
        run_after=_timestamp(run.run_after),
        payload=to_struct(run.payload) if with_payload else None,
        labels=run.labels,
        progress=_progress(run.progress),
        items=_counts(run.items),
        metrics=to_struct(run.metrics),
        metadata=to_struct(run.metadata),
        error=_error(run.error),
        worker=run.worker,
        cancel_request_time=_timestamp(run.cancel_requested_at),
        blocked=run.blocked,
        retry_of=run_name(run.retry_of) if run.retry_of else "",
        retried_by=run_name(run.retried_by) if run.retried_by else "",
        pending_reason=_PENDING_REASONS[run.pending_reason],
        retry_reason=run.error.retry if run.error else "",
    )


def encode_attempt(attempt: Attempt) -> run_pb2.Attempt:
    return run_pb2.Attempt(
        run=run_name(attempt.run_id),
        attempt=attempt.attempt,
        state=STATES[attempt.state],
        start_time=_timestamp(attempt.started_at),
        finish_time=_timestamp(attempt.finished_at),
        duration=_duration(attempt.duration),
        worker=attempt.worker,
        error=_error(attempt.error),
        retry_reason=attempt.error.retry if attempt.error else "",
    )


def encode_item(item: Item) -> run_pb2.Item:
    return run_pb2.Item(
        run=run_name(item.run_id),
        attempt=item.attempt,
        key=item.key,
        succeeded=item.succeeded,
        error=item.error,
        finish_time=_timestamp(item.finished_at),
    )


def encode_job_stats(stats: JobStats) -> job_service_pb2.GetJobStatsResponse:
    return job_service_pb2.GetJobStatsResponse(
        completed=stats.counts.get(RunState.COMPLETED, 0),
        failed=stats.counts.get(RunState.FAILED, 0),
        cancelled=stats.counts.get(RunState.CANCELLED, 0),
        skipped=stats.counts.get(RunState.SKIPPED, 0),
        average_duration=_duration(stats.average_duration),
        longest_duration=_duration(stats.longest_duration),
        items=_counts(stats.items),
        last_finish_time=_timestamp(stats.last_finished_at),
        last_state=STATES[stats.last_state] if stats.last_state else run_pb2.RUN_STATE_UNSPECIFIED,
    )


def _timestamp(instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def _duration(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    encoded = Duration()
    encoded.FromTimedelta(duration)
    return encoded


def _progress(progress: Progress | None) -> run_pb2.Progress | None:
    if progress is None:
        return None
    return run_pb2.Progress(
        done=progress.done,
        total=progress.total,
        message=progress.message,
        update_time=_timestamp(progress.updated_at),
    )


def _counts(items: ItemCounts) -> run_pb2.ItemCounts:
    return run_pb2.ItemCounts(processed=items.processed, succeeded=items.succeeded, failed=items.failed)


def _error(error: RunError | None) -> run_pb2.RunError | None:
    if error is None:
        return None
    return run_pb2.RunError(code=error.code, message=error.message, detail=error.detail)
