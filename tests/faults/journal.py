"""What those who broke things and those who called noted, while it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tests.faults.evidence import Call, Fault


def now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """Of one fault run."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.foreign: list[str] = []
        self.probes = 0
        self.began = now()
        self._open: dict[int, tuple[str, str, datetime]] = {}

    @property
    def kills(self) -> int:
        return sum(fault.kill for fault in self.faults)

    @property
    def open(self) -> list[str]:
        """What is broken now, and since how many seconds."""
        at = now()
        return [f"{kind} {target} {(at - began).total_seconds():.0f}s" for kind, target, began in self._open.values()]

    @contextmanager
    def fault(
        self, kind: str, target: str, *, kill: bool = False, touches: frozenset[str] = frozenset()
    ) -> Iterator[None]:
        """Something is broken until the block ends, however it ends."""
        began = now()
        self._open[id(began)] = (kind, target, began)
        try:
            yield
        finally:
            del self._open[id(began)]
            self.faults.append(Fault(kind, target, began, now(), kill, touches))

    def table(self) -> str:
        """How many of each kind there were, and how many of them killed a process."""
        counts = Counter(fault.kind for fault in self.faults)
        kills = Counter(fault.kind for fault in self.faults if fault.kill)
        width = max(map(len, counts), default=4)
        lines = [f"  {kind:<{width}}  {count:>5}  {kills[kind] or '':>5}" for kind, count in sorted(counts.items())]
        return "\n".join([f"  {'fault':<{width}}  {'count':>5}  {'kills':>5}", *lines])
