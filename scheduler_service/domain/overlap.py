"""What becomes of an occurrence that comes due while an earlier run of its schedule is still live."""

from __future__ import annotations

from enum import StrEnum

from scheduler_service.domain.record import RunError


class Overlap(StrEnum):
    """A job's choice. All but ALLOW_ALL keep its schedules to one run at a time; the database holds that."""

    SKIP = "SKIP"
    BUFFER_ONE = "BUFFER_ONE"
    BUFFER_ALL = "BUFFER_ALL"
    CANCEL_OTHER = "CANCEL_OTHER"
    ALLOW_ALL = "ALLOW_ALL"


SKIPPED = RunError("OVERLAP", "the schedule's earlier run had not ended when this occurrence came due")
