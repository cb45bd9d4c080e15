"""What was in force for a schedule, and whether it owed anything, at any time: read from what it and its job have been.

A row of either table holds from its `in_force_from` on, and takes the place of every row before it from there on. It
may begin before the row before it did: so resuming with catch-up says that the pause owed something after all.

The stretches are half-open the way the engine settles, `(after, until]`: a change at an instant first settles what is
owed up to and at that instant, what waits for its jitter included, and so an occurrence exactly at the instant of an
edit belongs to the revision before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from scheduler_service.domain.schedule import InForce


@dataclass(frozen=True, slots=True)
class RevisionInForce:
    """A row of `schedule_revisions`: what a revision says, and from when on."""

    revision: int
    in_force: InForce
    in_force_from: datetime


@dataclass(frozen=True, slots=True)
class JobChange:
    """A row of `job_changes`: from when on the job's schedules owed nothing (`halted`), or owed something again."""

    in_force_from: datetime
    halted: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which nothing changed: occurrences in `(after, until]` are those of `in_force`, owed if `owing`."""

    after: datetime
    until: datetime
    revision: int
    in_force: InForce
    owing: bool


def timeline(
    revisions: Iterable[RevisionInForce], changes: Iterable[JobChange], until: datetime
) -> tuple[Stretch, ...]:
    """The stretches of a schedule up to `until`, in order, from its first revision on, and no instant in two of them.
    `changes` are its job's, in the order in which they were made; before the first of them nothing was owed."""
    said = {row.in_force_from: row for row in _held(sorted(revisions, key=lambda row: row.revision))}
    changed = {row.in_force_from: row for row in _held(changes)}
    cuts = sorted({each for each in (*said, *changed) if each < until} | {until})
    stretches: list[Stretch] = []
    current: RevisionInForce | None = None
    halted = True
    for after, end in pairwise(cuts):
        current = said.get(after, current)
        halted = changed[after].halted if after in changed else halted
        if current is not None:
            owing = current.in_force.enabled and not halted
            _append(stretches, Stretch(after, end, current.revision, current.in_force, owing))
    return tuple(stretches)


Row = TypeVar("Row", RevisionInForce, JobChange)


def _held(rows: Iterable[Row]) -> list[Row]:
    """Those rows that still hold at some time, in order of time: each until the next one's `in_force_from`."""
    held: list[Row] = []
    for row in rows:
        while held and held[-1].in_force_from >= row.in_force_from:
            held.pop()
        held.append(row)
    return held


def _append(stretches: list[Stretch], stretch: Stretch) -> None:
    """Joins it to the last one if nothing differs."""
    last = stretches[-1] if stretches else None
    if last is not None and (last.revision, last.owing) == (stretch.revision, stretch.owing):
        stretches[-1] = replace(last, until=stretch.until)
    else:
        stretches.append(stretch)
