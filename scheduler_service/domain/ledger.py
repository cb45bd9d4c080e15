"""The ledger: every occurrence that a schedule owed, with exactly one outcome.

What was owed follows from the timelines alone, stepped lazily; what became of it from the records: a run by its id, a
gap by its range. So an occurrence that nobody recorded shows, as UNACCOUNTED.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from scheduler_service.domain.run import RunState, scheduled_run_id
from scheduler_service.domain.timeline import Stretch
from scheduler_service.domain.timing import (
    HORIZON,
    Occurrence,
    Timing,
    TimingError,
    count,
    latest_occurrence,
    occurrences,
)

TICK = timedelta(microseconds=1)
"""The least time between two instants."""

SET_ASIDE = "SET_ASIDE"


class Outcome(StrEnum):
    """What became of an owed occurrence: exactly one of these."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"
    MISSED = "MISSED"
    RUNNING = "RUNNING"
    PENDING = "PENDING"
    UNACCOUNTED = "UNACCOUNTED"


@dataclass(frozen=True, slots=True)
class Gap:
    """A row of `gaps`: occurrences of one revision, from `first` to `last`, that became no run. `count` is None where
    nobody has counted them yet."""

    schedule_id: int
    first: datetime
    last: datetime
    count: int | None
    reason: str
    revision: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """A schedule of the name that is asked for: what it is now, and what was in force for it. Deleted ones have an
    account each. `armed`: the tick will look at it."""

    schedule_id: int
    revision: int
    settled_to: datetime
    armed: bool
    set_aside_reason: str
    stretches: tuple[Stretch, ...]

    @property
    def open_gap(self) -> Gap | None:
        """What a schedule that is set aside owes and nobody settles: missed, though not recorded until it changes."""
        if self.armed or not self.set_aside_reason:
            return None
        since = self.settled_to + TICK
        return Gap(self.schedule_id, since, HORIZON, None, SET_ASIDE, self.revision, self.set_aside_reason)


@dataclass(frozen=True, slots=True)
class Owed:
    """An owed occurrence; or, with a `gap`, those of one that lie in the window; or, with a `problem`, a time for
    which nobody can tell any more (`count` is 0). `local` is what the zone in force read at `first`."""

    account: Account
    stretch: Stretch
    first: datetime
    last: datetime
    local: datetime
    count: int = 1
    gap: Gap | None = None
    problem: str = ""

    @property
    def run_id(self) -> UUID | None:
        """The id that its run has, if there is one. None where there is none."""
        single = self.gap is None and not self.problem
        return scheduled_run_id(self.account.schedule_id, self.first) if single else None


@dataclass(frozen=True, slots=True)
class FoundRun:
    """What is known of an occurrence's run."""

    run_id: UUID
    state: RunState
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """What was run afterwards for an entry's occurrences: the newest run, how it stands (None: its record is gone),
    and for how many of them one completed."""

    run_id: UUID
    state: RunState | None
    remedied: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    owed: Owed
    outcome: Outcome
    run_id: UUID | None = None
    reason: str = ""
    message: str = ""
    remedy: Remedy | None = None


def owed(accounts: Iterable[Account], gaps: Iterable[Gap], after: datetime, until: datetime) -> Iterator[Owed]:
    """Everything owed in `(after, until]`, in order and lazily. A gap is one step, however long it is."""
    stretches = [(stretch, account) for account in accounts for stretch in account.stretches if stretch.owing]
    by_revision = _by_revision(gaps, {account.schedule_id: account for _, account in stretches}.values())
    for stretch, account in sorted(stretches, key=lambda pair: pair[0].after):
        since, end = max(after, stretch.after), min(until, stretch.until)
        if since < end:
            # Its own copy: a revision may be in force more than once, with a pause of its job between.
            of_it = list(by_revision.get((account.schedule_id, stretch.revision), ()))
            yield from _in_stretch(account, stretch, of_it, since, end)


def _by_revision(gaps: Iterable[Gap], accounts: Iterable[Account]) -> dict[tuple[int, int], list[Gap]]:
    """The gaps of each schedule and revision, the newest first."""
    found: dict[tuple[int, int], list[Gap]] = {}
    unrecorded = [account.open_gap for account in accounts if account.open_gap]
    for gap in sorted([*gaps, *unrecorded], key=lambda gap: gap.first, reverse=True):
        found.setdefault((gap.schedule_id, gap.revision), []).append(gap)
    return found


def _in_stretch(
    account: Account, stretch: Stretch, gaps: list[Gap], after: datetime, until: datetime
) -> Iterator[Owed]:
    """`gaps` are this stretch's, the newest first; used up."""
    try:
        timing = stretch.in_force.timing
    except TimingError as error:
        first = after + TICK
        yield Owed(account, stretch, first, until, first.astimezone(UTC).replace(tzinfo=None), 0, None, str(error))
        return
    position: datetime | None = after
    while position is not None:
        steps, position = occurrences(timing, position, until), None
        for step in steps:
            gap = _gap_at(step.instant, gaps)
            if gap is None:
                yield Owed(account, stretch, step.instant, step.instant, step.local)
                continue
            missed = _missed(account, stretch, timing, gap, step, until)
            yield missed
            position = missed.last
            break


def _gap_at(instant: datetime, gaps: list[Gap]) -> Gap | None:
    while gaps and gaps[-1].last < instant:
        gaps.pop()
    return gaps[-1] if gaps and gaps[-1].first <= instant else None


def _missed(account: Account, stretch: Stretch, timing: Timing, gap: Gap, first: Occurrence, until: datetime) -> Owed:
    """What of a gap lies between its first occurrence in the window and `until`, counted by arithmetic unless it is
    the whole."""
    before, end = first.instant - TICK, min(gap.last, until)
    latest = latest_occurrence(timing, before, end)
    assert latest is not None  # `first` is one
    whole = gap.count if first.instant <= gap.first and gap.last <= until else None
    number = count(timing, before, end) if whole is None else whole
    return Owed(account, stretch, first.instant, latest.instant, first.local, number, gap)


def judged(each: Owed, run: FoundRun | None) -> Entry:
    """What became of it. An entry that is UNACCOUNTED has no message yet: that depends on what is kept."""
    if each.gap is not None:
        return Entry(each, Outcome.MISSED, None, each.gap.reason, _why_missed(each.gap))
    if each.problem:
        message = f"what it owed from here to `last_time` cannot be told any more: {each.problem}"
        return Entry(each, Outcome.UNACCOUNTED, message=message)
    if run is not None:
        return Entry(each, Outcome[run.state.name], run.run_id, run.reason, run.message)
    if each.account.armed and each.first > each.account.settled_to:
        return Entry(each, Outcome.PENDING, message="it has come due, and becomes a run at any moment")
    return Entry(each, Outcome.UNACCOUNTED)


def explained(entry: Entry, kept_from: datetime | None) -> Entry:
    """With which of the two it is likely to be, if nothing is known of it. `kept_from` is where the records that are
    kept begin."""
    if entry.outcome is not Outcome.UNACCOUNTED or entry.message:
        return entry
    if kept_from is not None and entry.owed.first < kept_from:
        return replace(
            entry, message=f"its record is older than what is kept, which begins at {kept_from:%Y-%m-%dT%H:%MZ}"
        )
    return replace(
        entry,
        message="records of its time are kept, and there is none of it: something is wrong with Carillon's database,"
        " or the rules of its time zone have changed since",
    )


_MISSED_WORDS = {
    "CATCH_UP_NONE": "it was overdue when Carillon came to it, and its job catches nothing up",
    "CATCH_UP_LATEST": "it was overdue when Carillon came to it, and a newer occurrence stood in for it",
    "OUTSIDE_WINDOW": "it was overdue for longer than its job's catch-up window when Carillon came to it",
    SET_ASIDE: "its schedule was set aside",
    "REMEDIED": "when its pause was caught up, a run that was made for it by hand was live or had completed",
}


def _why_missed(gap: Gap) -> str:
    words = _MISSED_WORDS.get(gap.reason, "no run was made for it")
    return f"{words}: {gap.detail}" if gap.detail else words
