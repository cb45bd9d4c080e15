"""The one error of the time core."""

from __future__ import annotations


class TimingError(ValueError):
    """A schedule's timing that is refused: which part, what is wrong with it, and what to do instead.

    `part` is a field of the expression ("minute", "hour", "day of month", "month", "day of week"),
    "expression", "interval", "phase" or "time_zone". `str()` is one sentence made of all three:
    `hour: the range 22-2 wraps around; write 22-23,0-2 instead`.
    """

    def __init__(self, part: str, problem: str, instead: str) -> None:
        super().__init__(f"{part}: {problem}; {instead}")
        self.part = part
        self.problem = problem
        self.instead = instead
