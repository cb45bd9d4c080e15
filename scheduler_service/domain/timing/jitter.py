"""A schedule's own delay, so that schedules that share an instant do not all start in it."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from scheduler_service.domain.timing.model import Occurrence

_HASH_BYTES = 6


def jitter_offset(
    schedule_key: str, jitter: timedelta, occurrence: Occurrence, following: Occurrence | None
) -> timedelta:
    """How long after its nominal instant an occurrence starts: in `[0, jitter]`, always the same for the
    same schedule, and below the distance to the following occurrence, so that order is kept.

    Where `jitter` is longer than that distance, the schedule takes the same share of the distance.
    """
    room = jitter if following is None else min(jitter, following.instant - occurrence.instant)
    digest = hashlib.blake2b(schedule_key.encode(), digest_size=_HASH_BYTES).digest()
    share = int.from_bytes(digest, "big")
    # Whole microseconds and integer arithmetic: the share is below 1, so the offset is below the room.
    microseconds = (room // timedelta(microseconds=1)) * share >> (8 * _HASH_BYTES)
    return timedelta(microseconds=microseconds)
