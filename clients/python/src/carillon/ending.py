"""How the other side ended a call that is written to.

`grpc.aio` gives a call the status INTERNAL, "Internal error from Core", of its own making when a message cannot be
written any more. The status that the other side sent comes as well, before that one or right after it, and whichever
came last stays. What the scheduler said (SESSION_LOST, a token that is not known, a time to wait) would then be lost.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

# How long to wait for the status that was sent; seen to come within a millisecond of the other.
PATIENCE_SECONDS = 1.0

_MADE_UP = (grpc.StatusCode.INTERNAL, "Internal error from Core")


class Ending:
    """Watches a call, from before it is first written to. Somebody has to read from it meanwhile: gRPC takes a status
    in only where it is read for."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._sent: grpc.aio.AioRpcError | None = None
        self._arrived = asyncio.Event()
        call.add_done_callback(self._look)  # called for each of the statuses that the call is given

    async def sent(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The error with the status that the other side sent, or `error` itself if that is it or none came."""
        if not _is_made_up(error):
            return error
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), PATIENCE_SECONDS)
        return self._sent or error  # also where both came while nobody looked

    def _look(self, call: Any) -> None:
        error = grpc.aio.AioRpcError(
            _at_once(call.code()),
            _at_once(call.initial_metadata()),
            _at_once(call.trailing_metadata()),
            details=_at_once(call.details()),
        )
        if not _is_made_up(error):
            self._sent = error
            self._arrived.set()


def _is_made_up(error: grpc.aio.AioRpcError) -> bool:
    return (error.code(), error.details()) == _MADE_UP


def _at_once(known: Any) -> Any:
    """What a coroutine returns that has nothing to wait for: of a call that is done, its status is at hand."""
    try:
        known.send(None)
    except StopIteration as returned:
        return returned.value
    raise RuntimeError("the call is not done")
