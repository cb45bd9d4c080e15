"""Occurrence messages and domain values."""

from __future__ import annotations

from carillon.v1 import schedule_pb2

from scheduler_service.domain.preview import PreviewedOccurrence, offset_text
from scheduler_service.rpc.values import write_time


def write_occurrence(previewed: PreviewedOccurrence) -> schedule_pb2.Occurrence:
    return schedule_pb2.Occurrence(
        time=write_time(previewed.occurrence.instant),
        local_time=previewed.occurrence.local.isoformat(),
        utc_offset=offset_text(previewed.utc_offset),
        time_zone=previewed.time_zone,
        start_time=write_time(previewed.start_at),
        transition=schedule_pb2.Transition.Value(f"TRANSITION_{previewed.transition}"),
    )
