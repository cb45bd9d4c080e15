"""What schedules owed while they were set aside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow

from scheduler_service.domain.settling import Decision, Standing, overlooked
from scheduler_service.domain.timing import TimingError
from scheduler_service.store.due import lock_set_aside
from scheduler_service.store.settle import Settled, settle


async def record_overlooked(
    connection: psycopg.AsyncConnection[TupleRow], schedule_ids: Sequence[int], now: datetime
) -> None:
    """Records as missed what those of these schedules owed up to `now` that are set aside. For the transaction that is
    about to mend, pause or delete them: call it before that change.

    Of a timing that cannot be evaluated nobody can say what it owed: nothing is recorded.
    """
    locked = await lock_set_aside(connection, schedule_ids, now)
    settled = [Settled(each, made) for each in locked if (made := _decision(each.standing, now)) and made.missed]
    if settled:
        await settle(connection, settled, now)


def _decision(standing: Standing, now: datetime) -> Decision | None:
    try:
        return overlooked(standing, now)
    except TimingError:
        return None
