"""The session's streams, one after the other: connecting, reconnecting, and leaving a replica that goes.

While a replica drains, two streams are open: the old one counts until the new one is welcomed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Protocol

import grpc
import grpc.aio

from carillon.address import Turns
from carillon.backoff import Backoff, spread
from carillon.channel import Connection
from carillon.errors import CarillonError, from_rpc
from carillon.stream import StreamBroke, StreamOwner, WorkStream
from carillon.v1 import worker_service_pb2

_log = logging.getLogger("carillon")

REFUSED_SECONDS = 30.0

# Trying again soon will not help: somebody has to change a token or a setting first.
_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT")


class SessionOwner(StreamOwner, Protocol):
    """The session, as this part sees it."""

    @property
    def session_id(self) -> bytes:
        """Under which id the next stream says `Hello`."""

    def lost(self, why: str) -> None:
        """The scheduler does not know the session any more."""

    def streams_changed(self) -> None:
        """A stream ended."""


class Streams:
    """Keeps one stream open, for ever."""

    def __init__(self, connection: Connection, owner: SessionOwner) -> None:
        self.current: WorkStream | None = None
        self.last_error = ""
        self._connection = connection
        self._turns = Turns(connection.target)
        self._owner = owner
        self._backoff = Backoff(0.2, 10.0)
        self._serving: dict[WorkStream, asyncio.Task[float]] = {}
        self._closing = asyncio.Event()

    async def stay_connected(self) -> None:
        """Returns once `close` was called and the last stream has ended."""
        while not self._closing.is_set():
            connection = replace(self._connection, target=self._turns.next())
            stream = WorkStream(connection, self._owner, self._owner.session_id)
            serving = asyncio.ensure_future(self._serve(stream))
            self._serving[stream] = serving
            wanted = asyncio.ensure_future(stream.successor_wanted.wait())
            try:
                await asyncio.wait({serving, wanted}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wanted.cancel()
            if serving.done():
                await self._pause(serving.result())
            elif not stream.has_lasted:  # replicas that send it away as soon as it comes are not to be hurried
                await self._pause(self._next_wait())
        if self._serving:  # an earlier one may be saying Goodbye, where its successor was not welcomed yet
            await asyncio.wait(self._serving.values())

    def welcomed(self, stream: WorkStream) -> None:
        """From here on this stream is the one that counts."""
        if self.current is not None:
            self.current.finish()
        self.current = stream
        self.last_error = ""

    def drop_all(self) -> None:
        """Ends all streams at once; the next one begins anew."""
        self.current = None
        for stream in self._serving:
            stream.drop()

    def close(self, last: worker_service_pb2.WorkRequest) -> None:
        """Sends `last` on the current stream, and opens no other."""
        self._closing.set()
        for stream in self._serving:
            if stream is self.current:
                stream.finish(last)
            else:
                stream.drop()

    async def cancel(self) -> None:
        """Ends everything without a word."""
        self._closing.set()
        serving = list(self._serving.values())
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, stream: WorkStream) -> float:
        """Serves one stream to its end. Returns how long to wait before the next, in seconds."""
        try:
            try:
                await stream.serve()
            finally:
                if stream.has_lasted:
                    self._backoff.reset()
        except grpc.aio.AioRpcError as error:
            return self._broke(stream, from_rpc(error))
        except StreamBroke as error:
            return self._broke(stream, CarillonError(str(error), code="UNAVAILABLE"))
        except Exception as error:
            # Of one stream, whatever it was: the session goes on, and a new stream gets all that is owed.
            _log.exception("a fault in the client ended the stream")
            return self._broke(stream, CarillonError(f"{type(error).__name__}: {error}", code="INTERNAL"))
        finally:
            del self._serving[stream]
            if self.current is stream:
                self.current = None
            self._owner.streams_changed()
        return 0.0

    def _broke(self, stream: WorkStream, error: CarillonError) -> float:
        """Decides what the end of a stream means."""
        # The successor's Hello ends a stream that was to be left, perhaps before the successor's Welcome is here.
        if stream.is_finishing or (stream.successor_wanted.is_set() and error.code == "ABORTED"):
            return 0.0
        if error.reason == "SESSION_LOST" and stream.session_id == self._owner.session_id:
            self._owner.lost("the scheduler does not know it any more")
            return self._next_wait()
        refused = error.code in _REFUSALS
        level = logging.ERROR if refused else logging.WARNING
        if str(error) == self.last_error:
            level = logging.DEBUG
        self.last_error = str(error)
        _log.log(level, "no stream to %s: %s", self._connection.target, error)
        return spread(REFUSED_SECONDS) if refused else self._next_wait()

    def _next_wait(self) -> float:
        """Shorter than the backoff says where a lease would run out meanwhile."""
        return min(self._backoff.next(), spread(self._owner.patience()))

    async def _pause(self, seconds: float) -> None:
        if not seconds:
            return
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except asyncio.TimeoutError:
            return
