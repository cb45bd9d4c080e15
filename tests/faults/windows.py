"""Stretches of time in which something was broken, and how far they extend a window."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

Stretch = tuple[datetime, datetime]


class Stretches:
    """Closed stretches of time, merged where they overlap or touch; each question costs a binary search."""

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        merged = _merge(stretches)
        self._begins = [began for began, _ in merged]
        self._ends = [ended for _, ended in merged]
        # What a clock shows at each, if it stands still inside of them and is at zero when the first begins.
        self._whole: list[timedelta] = []
        broken = timedelta(0)
        for began, ended in merged:
            self._whole.append(began - self._begins[0] - broken)
            broken += ended - began

    def common(self, other: Stretches) -> Stretches:
        """What is in both."""
        return Stretches(
            (max(began, others), min(ended, others_end))
            for began, ended in zip(self._begins, self._ends, strict=True)
            for others, others_end in other._within(began, ended)
        )

    def overlap(self, began: datetime, ended: datetime) -> bool:
        """Whether one of them has an instant of `began` to `ended`."""
        first = bisect_left(self._ends, began)
        return first < len(self._begins) and self._begins[first] <= ended

    def deadline(self, instant: datetime, grace: timedelta) -> datetime:
        """When `grace` of time outside of them has passed since `instant`."""
        if not self._begins:
            return instant + grace
        due = self._whole_time(instant) + grace
        last = bisect_right(self._whole, due) - 1
        return self._ends[last] + (due - self._whole[last]) if last >= 0 else self._begins[0] + due

    def _within(self, began: datetime, ended: datetime) -> Iterator[Stretch]:
        """Those that have an instant of this one."""
        for place in range(bisect_left(self._ends, began), bisect_right(self._begins, ended)):
            yield self._begins[place], self._ends[place]

    def _whole_time(self, instant: datetime) -> timedelta:
        last = bisect_right(self._begins, instant) - 1
        if last < 0:
            return instant - self._begins[0]
        return self._whole[last] + max(timedelta(0), instant - self._ends[last])


def _merge(stretches: Iterable[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for began, ended in sorted(stretches):
        if merged and began <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], ended)
        else:
            merged.append((began, max(began, ended)))
    return merged
