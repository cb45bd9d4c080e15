"""Why a pending run is in no worker's hands: the first reason that holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from scheduler_service.domain.pending import PendingReason, Served, before_due, once_due

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("blocked", "attempt", "ahead", "reason"),
    [
        (True, 1, -SECOND, PendingReason.BLOCKED),
        (True, 1, SECOND, PendingReason.BLOCKED),
        (False, 1, SECOND, PendingReason.NOT_DUE),
        (False, 2, SECOND, PendingReason.RETRY_DELAY),
        (False, 1, timedelta(0), None),
        (False, 2, -SECOND, None),
    ],
)
def test_what_nobody_may_be_handed_yet(
    blocked: bool, attempt: int, ahead: timedelta, reason: PendingReason | None
) -> None:
    assert before_due(blocked=blocked, attempt=attempt, run_after=NOW + ahead, now=NOW) is reason


@pytest.mark.parametrize(
    ("alone", "served", "reason"),
    [
        (False, Served.YES, PendingReason.READY),
        (True, Served.YES, PendingReason.ALONE),
        (False, Served.KEPT, PendingReason.BEHIND_ALONE),
        (True, Served.KEPT, PendingReason.ALONE),
        (False, Served.NO, PendingReason.NO_WORKER),
        (True, Served.NO, PendingReason.NO_WORKER),
        (False, None, None),
        (True, None, None),
    ],
)
def test_what_is_due_waits_for_a_worker(alone: bool, served: Served | None, reason: PendingReason | None) -> None:
    assert once_due(alone=alone, served=served) is reason
