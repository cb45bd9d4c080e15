"""Schedule messages and domain values."""

from __future__ import annotations

from carillon.v1 import schedule_pb2

from scheduler_service.domain.fields import Violations
from scheduler_service.domain.schedule import ALL_FIELDS, Schedule, ScheduleSpec
from scheduler_service.rpc.job_messages import read_timing, write_timing
from scheduler_service.rpc.structs import read_struct, to_struct
from scheduler_service.rpc.values import write_time


def read_schedule(message: schedule_pb2.Schedule, wrong: Violations) -> ScheduleSpec:
    """What a caller sets of a schedule; output fields are passed over."""
    return ScheduleSpec(
        timing=read_timing(message.timing, "schedule.timing", wrong),
        enabled=message.enabled,
        config=read_struct(message.config, "schedule.config", wrong),
        labels=dict(message.labels),
    )


def fields_set(message: schedule_pb2.Schedule) -> list[str]:
    """Which of the fields that a caller may set it has set, of the timing each by itself: what to take where no mask
    says."""
    found = [each.name for each, _ in message.ListFields() if each.name in ALL_FIELDS and each.name != "timing"]
    return found + [f"timing.{each.name}" for each, _ in message.timing.ListFields()]


def write_schedule(schedule: Schedule) -> schedule_pb2.Schedule:
    following = schedule.next_occurrence
    return schedule_pb2.Schedule(
        name=str(schedule.name),
        timing=write_timing(schedule.spec.timing),
        enabled=schedule.spec.enabled,
        config=to_struct(schedule.spec.config),
        labels=schedule.spec.labels,
        description=schedule.description,
        revision=schedule.revision,
        next_run_time=write_time(following.instant if following else None),
        next_run_local_time=following.local.isoformat() if following else "",
        set_aside_reason=schedule.set_aside_reason,
        create_time=write_time(schedule.created_at),
        created_by=schedule.created_by,
        update_time=write_time(schedule.updated_at),
        updated_by=schedule.updated_by,
        effective_timing=write_timing(schedule.shown.as_spec()),
        stored=schedule.stored,
        pause_time=write_time(schedule.paused_at),
    )
