"""Results that cannot be recorded, nor be told to have been bad: kept without an answer, and tried again now and then.

Nothing that a worker says leads here: that ends its run FAILED. It takes a database in which the run's end cannot be
written, such as one without a partition for the run's month. They take their session's room meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from scheduler_service.domain.attempt import AttemptRef, Result
from scheduler_service.domain.repairs import SHOWN
from scheduler_service.domain.run import run_name
from scheduler_service.usecases.lanes import Entry
from scheduler_service.usecases.set_aside import SetAside

log = structlog.get_logger()


class Unrecorded:
    """One for each attempt: the one that came last. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pauses: SetAside[AttemptRef] = SetAside()
        self._entries: dict[AttemptRef, Entry[Result]] = {}
        self._news: list[tuple[AttemptRef, Exception]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, ref: AttemptRef) -> bool:
        return ref in self._entries

    def add(self, entry: Entry[Result], error: Exception) -> None:
        """It could not be recorded (again)."""
        ref = entry.report.ref
        self._entries[ref] = entry
        if self._pauses.add(ref, self._clock()):
            self._news.append((ref, error))

    def replace(self, entry: Entry[Result]) -> Entry[Result]:
        """The worker sent another one for an attempt that is among these. Answers the one whose place it takes."""
        before = self._entries[entry.report.ref]
        self._entries[entry.report.ref] = entry
        return before

    def due(self) -> list[Entry[Result]]:
        """Those whose pause is over."""
        resting = set(self._pauses.resting(self._clock()))
        return [entry for ref, entry in self._entries.items() if ref not in resting]

    def forget(self, ref: AttemptRef) -> None:
        """It was recorded, or refused."""
        self._pauses.forget([ref])
        del self._entries[ref]

    def tell(self) -> None:
        """Logs what has come here since this was called last: one line."""
        if self._news:
            names: Sequence[str] = [run_name(ref.run_id) for ref, _ in self._news[:SHOWN]]
            error = self._news[0][1]
            log.error(
                "results cannot be recorded: they are kept, unanswered, and tried again now and then; the rest goes on",
                count=len(self._news),
                names=names,
                error=f"{type(error).__name__}: {error}",
            )
            self._news.clear()
