"""What those who broke things and those who called noted, while it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.faults.evidence import Call, Fault
from tests.faults.names import touches, way


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(eq=False, slots=True)
class Broken:
    """What is broken now. `kind` may be set, once it is known what came of it."""

    kind: str
    target: str
    began: datetime


class Journal:
    """Of one fault run."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.foreign: list[str] = []
        self.probes = 0
        self.began = now()
        self._open: list[Broken] = []

    @property
    def kills(self) -> int:
        return sum(fault.kill for fault in self.faults)

    @property
    def open(self) -> list[str]:
        """What is broken now, and since how many seconds."""
        at = now()
        return [f"{each.kind} {each.target} {(at - each.began).total_seconds():.0f}s" for each in self._open]

    @contextmanager
    def fault(self, kind: str, target: str, *, kill: bool = False, cuts_nothing: bool = False) -> Iterator[Broken]:
        """Something is broken until the block ends, however it ends. `cuts_nothing`: whatever the target, it is not
        enough to cut an attempt."""
        broken = Broken(kind, target, now())
        self._open.append(broken)
        try:
            yield broken
        finally:
            self._open.remove(broken)
            touched = frozenset[str]() if cuts_nothing else touches(target)
            self.faults.append(Fault(broken.kind, target, broken.began, now(), kill, touched, way(target)))

    def table(self) -> str:
        """How many of each kind there were, and how many of them killed a process."""
        counts = Counter(fault.kind for fault in self.faults)
        kills = Counter(fault.kind for fault in self.faults if fault.kill)
        width = max(map(len, counts), default=4)
        lines = [f"  {kind:<{width}}  {count:>5}  {kills[kind] or '':>5}" for kind, count in sorted(counts.items())]
        return "\n".join([f"  {'fault':<{width}}  {'count':>5}  {'kills':>5}", *lines])
