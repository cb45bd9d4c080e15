"""croniter's door: the next matching local time, on naive local time only.

croniter's own handling of time zones is not used (7.0.0 fires `30 1 * * *` twice on New York's autumn day).
Each normal form means "all fields hold", hence `day_or=False`; which day fields combine how has been
settled by the grammar.
"""

from __future__ import annotations

import copy
from datetime import datetime, timedelta
from functools import lru_cache

from croniter import CroniterBadDateError, croniter

_MINUTE = timedelta(minutes=1)


class LocalSteps:
    """Finds matching local times of normal forms, asking croniter (about 50 µs a step) only where needed."""

    def __init__(self, forms: tuple[str, ...]) -> None:
        self._cursors = [_Cursor(form) for form in forms]

    def first_from(self, start: datetime) -> datetime | None:
        """The earliest match at or after `start`; None if there is none in 50 years."""
        found = (cursor.first_from(start) for cursor in self._cursors)
        return min((match for match in found if match is not None), default=None)


class _Cursor:
    """One form, and the last question with its answer, which holds for all starts between the two."""

    def __init__(self, form: str) -> None:
        self._croniter = copy.copy(_prototype(form))
        self._asked: datetime | None = None
        self._answer: datetime | None = None

    def first_from(self, start: datetime) -> datetime | None:
        if not self._still_answers(start):
            self._asked = start
            self._answer = self._step(start)
        return self._answer

    def _still_answers(self, start: datetime) -> bool:
        if self._asked is None or start < self._asked:
            return False
        return self._answer is None or start <= self._answer

    def _step(self, start: datetime) -> datetime | None:
        # croniter answers strictly after, by whole minutes, and loses microseconds after 2106.
        whole = start.replace(second=0, microsecond=0)
        before = whole - _MINUTE if whole == start else whole
        try:
            return self._croniter.get_next(datetime, start_time=before)
        except CroniterBadDateError:
            return None


@lru_cache(maxsize=16_384)
def _prototype(form: str) -> croniter[datetime]:
    """A croniter of this form, to be copied and never stepped: making one costs about 200 µs."""
    return croniter(form, datetime(1970, 1, 1), ret_type=datetime, day_or=False)  # noqa: DTZ001 - naive on purpose
