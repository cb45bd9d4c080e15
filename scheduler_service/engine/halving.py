"""Where many rows are dealt with together, one that cannot be keeps no other waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from scheduler_service.store.errors import HOPELESS

T = TypeVar("T")


async def apart(
    rows: Sequence[T], act: Callable[[Sequence[T]], Awaitable[None]], offends: Callable[[T, Exception], Awaitable[None]]
) -> None:
    """Acts on all of these together; where that fails with what one of them may be the cause of, on each half, and so
    on. `offends` is told of those that fail alone. `act` leaves nothing of what failed: a transaction of its own.
    Errors: any that is not HOPELESS."""
    if not rows:
        return
    try:
        await act(rows)
        return
    except HOPELESS as error:
        if len(rows) == 1:
            await offends(rows[0], error)
            return
    middle = len(rows) // 2
    await apart(rows[:middle], act, offends)
    await apart(rows[middle:], act, offends)
