"""The port between a worker's session and the code that carries runs out.

`Assignment` is what the scheduler handed over, `Run` what a handler or executor sees of it while it works,
and `Completed` or `Failed` how it ends. An `Executor` carries out the runs of its routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from carillon.outcome import Cancelled, Completed, Failed, ItemCounts
from carillon.run import Assignment, Run

__all__ = ["Assignment", "Cancelled", "Completed", "Executor", "Failed", "ItemCounts", "Run"]


class Executor(Protocol):
    """Carries out runs."""

    @property
    def routes(self) -> Sequence[str]:
        """The routes it serves: `http`, `grpc`, or `handler/{service}/{job}`."""
        ...

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        """Carries out one attempt.

        Raise `Failed` to say how it failed, and what is to follow; any other exception counts as `HANDLER_ERROR`. The
        task is cancelled once when the run is to stop or its attempt is out of time; it keeps its slot until this
        returns.
        """
        ...
