"""Deciding about many runs, without keeping others of this process waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from scheduler_service.domain.returns import HeldRun, Return

_AT_ONCE = 50


async def decided(runs: Sequence[HeldRun], decide: Callable[[HeldRun], Return]) -> list[tuple[HeldRun, Return]]:
    """Each with what is decided about it. Streams and other loops have their turn in between."""
    made: list[tuple[HeldRun, Return]] = []
    for at in range(0, len(runs), _AT_ONCE):
        made += [(run, decide(run)) for run in runs[at : at + _AT_ONCE]]
        await asyncio.sleep(0)
    return made
