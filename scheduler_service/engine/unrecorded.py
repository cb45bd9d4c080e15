"""Results that cannot be recorded now, nor be told to have been bad: kept without an answer, and tried again.

Nothing that a worker says leads here. It takes a database in which the run's end cannot be written, such as one without
a partition for the run's month: then each is tried again by itself, after pauses of 5 s to 10 minutes. Or somebody has
locked the run or its session: then they are tried again together, each second, and after a minute every 5 to 30 s.
Results of items wait with those of their attempts.

They take no room of their sessions, up to a bound of all of them together: a worker with some of these goes on as
others do. What is beyond it keeps its room, and who has very much of that has to wait before it may report more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Result
from scheduler_service.domain.repairs import SHOWN
from scheduler_service.domain.run import run_name
from scheduler_service.engine.lanes import Entry
from scheduler_service.engine.set_aside import SetAside
from scheduler_service.store.errors import IN_THE_WAY

LONGEST_LOCK_PAUSE = 30.0

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    """`in_room`: it takes its session's room still."""

    entry: Entry[T]
    in_room: bool


@dataclass(slots=True)
class Waiting:
    """What is kept of one attempt: results of its items by their keys, and its own. `locked`: somebody has locked what
    it needs."""

    items: dict[str, _Kept[ItemResult]] = field(default_factory=dict)
    result: _Kept[Result] | None = None
    locked: bool = False


class Unrecorded:
    """One result for each attempt: the one that came last. `most`: what these may weigh before they take their
    sessions' room. `clock` is monotonic, in seconds. What is answered as entries takes no room any more."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self._clock = clock
        self._most = most
        self._weight = 0
        self._pauses: SetAside[AttemptRef] = SetAside()
        self._waiting: dict[AttemptRef, Waiting] = {}
        self._locked = 0
        self._news: list[tuple[AttemptRef, Exception]] = []

    def __len__(self) -> int:
        """Attempts, without those for which somebody else's lock has been waited for less than a minute."""
        return len(self._pauses)

    def __contains__(self, ref: AttemptRef) -> bool:
        return ref in self._waiting

    @property
    def some_locked(self) -> bool:
        """Whether somebody has locked what some of these need, as far as is known."""
        return self._locked > 0

    def is_locked(self, ref: AttemptRef) -> bool:
        return ref in self._waiting and self._waiting[ref].locked

    def add(self, entry: Entry[Result], error: Exception) -> list[Entry[Any]]:
        """It could not be recorded (again)."""
        freed = self.replace(entry)
        self.put_off(entry.report.ref, error)
        return freed

    def replace(self, entry: Entry[Result]) -> list[Entry[Any]]:
        """The worker sent another one for an attempt: it takes the other's place, and waits as long."""
        waiting = self._waiting.setdefault(entry.report.ref, Waiting())
        before = waiting.result
        if before is not None and before.entry is entry:
            return []
        freed = self._let_go(before) if before is not None else []
        waiting.result = self._kept(entry)
        return freed if waiting.result.in_room else [*freed, entry]

    def add_item(self, entry: Entry[ItemResult]) -> list[Entry[Any]]:
        """A result of an item of an attempt that is put off. The first one of an item stays."""
        items = self._waiting.setdefault(entry.report.ref, Waiting()).items
        if entry.report.key in items:
            return [entry]
        items[entry.report.key] = kept = self._kept(entry)
        return [] if kept.in_room else [entry]

    def put_off(self, ref: AttemptRef, error: Exception) -> None:
        """It could not be recorded (again)."""
        waiting = self._waiting.setdefault(ref, Waiting())
        locked = isinstance(error, IN_THE_WAY)
        if locked and not self._locked:
            log.warning("results wait for rows that somebody has locked; the rest goes on", name=run_name(ref.run_id))
        self._locked += locked - waiting.locked
        waiting.locked = locked
        now = self._clock()
        if locked and self._pauses.put_off(ref, now):
            return
        if self._pauses.add(ref, now, **({"longest": LONGEST_LOCK_PAUSE} if locked else {})):
            self._news.append((ref, error))

    def due(self) -> list[Entry[Result]]:
        """Those whose pause is over, and that nobody has locked."""
        due = [waiting.result for _, waiting in self._rested() if not waiting.locked]
        return [kept.entry for kept in due if kept is not None]

    def due_locked(self, most: int) -> tuple[list[Entry[ItemResult]], list[Entry[Result]]]:
        """Results of items, and others, of up to so many attempts that somebody had locked, and whose pause is over."""
        due = [waiting for _, waiting in self._rested() if waiting.locked][:most]
        results = [waiting.result.entry for waiting in due if waiting.result is not None]
        return [kept.entry for waiting in due for kept in waiting.items.values()], results

    def _rested(self) -> Iterable[tuple[AttemptRef, Waiting]]:
        if not self._waiting:
            return []
        resting = set(self._pauses.resting(self._clock()))
        return [(ref, waiting) for ref, waiting in self._waiting.items() if ref not in resting]

    def forget(self, ref: AttemptRef) -> list[Entry[Any]]:
        """It was recorded, or refused."""
        self._pauses.forget([ref])
        waiting = self._waiting.pop(ref)
        self._locked -= waiting.locked
        kept: Sequence[_Kept[Any]] = [*waiting.items.values(), *([waiting.result] if waiting.result else [])]
        return [entry for each in kept for entry in self._let_go(each)]

    def _kept(self, entry: Entry[T]) -> _Kept[T]:
        in_room = self._weight + entry.weight > self._most
        if not in_room:
            self._weight += entry.weight
        return _Kept(entry, in_room)

    def _let_go(self, kept: _Kept[Any]) -> list[Entry[Any]]:
        if kept.in_room:
            return [kept.entry]
        self._weight -= kept.entry.weight
        return []

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
