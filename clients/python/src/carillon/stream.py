"""One work stream: the handshake, then reading, writing and heartbeats until it ends.

The stream knows nothing of runs. It asks its session for the next message whenever it is woken, and hands over
what arrives.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc
import grpc.aio

from carillon.channel import Connection
from carillon.ending import Ending
from carillon.v1 import work_pb2, worker_service_pb2, worker_service_pb2_grpc

HANDSHAKE_SECONDS = 20.0
CLOSING_SECONDS = 5.0
SHORTEST_INTERVAL = 0.01

_CLOSED = "the scheduler closed the stream"


class StreamBroke(Exception):
    """The stream came to an end that gRPC does not know of; the text says which."""


class StreamOwner(Protocol):
    """The session, as its streams see it."""

    def is_in_time(self, stream: WorkStream) -> bool:
        """Whether the session of the stream goes on, and on this stream. Asked before anything is sent: its lease may
        have run out while the process stood still, and then its runs are given up here and now."""

    def patience(self) -> float:
        """How long to wait for `Welcome`, in seconds."""

    def hello(self, stream: WorkStream) -> work_pb2.Hello:
        """The first message."""

    def welcomed(self, stream: WorkStream, welcome: work_pb2.Welcome) -> None:
        """The scheduler took the stream."""

    def next_message(self, stream: WorkStream) -> worker_service_pb2.WorkRequest | None:
        """What to send now, or None."""

    def heartbeat(self, stream: WorkStream) -> work_pb2.Heartbeat:
        """The next heartbeat. Raises `StreamBroke` if earlier ones had no answer for too long."""

    def received(self, stream: WorkStream, response: worker_service_pb2.WorkResponse) -> None:
        """A message arrived."""


class WorkStream:
    """One stream. `serve` it once."""

    def __init__(self, connection: Connection, owner: StreamOwner, session_id: bytes) -> None:
        self.session_id = session_id
        self.successor_wanted = asyncio.Event()
        self._connection = connection
        self._owner = owner
        self._wake = asyncio.Event()
        self._outgoing: list[worker_service_pb2.WorkRequest] = []  # goes before what the session has
        self._finishing = False
        self._dropped = asyncio.Event()
        self._interval = 0.0
        self._lasted = False

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def finish(self, last: worker_service_pb2.WorkRequest | None = None) -> None:
        """Sends `last`, closes the sending side and lets the scheduler end the stream, for at most 5 s."""
        if last is not None:
            self._outgoing.append(last)
        self._finishing = True
        self._wake.set()
        asyncio.get_running_loop().call_later(CLOSING_SECONDS, self.drop)

    def drop(self) -> None:
        """Ends the stream at once."""
        self._dropped.set()

    @property
    def is_dropped(self) -> bool:
        """Whether nothing more may pass on it."""
        return self._dropped.is_set()

    @property
    def is_finishing(self) -> bool:
        """Whether this side has had enough of it."""
        return self._finishing or self._dropped.is_set()

    @property
    def has_lasted(self) -> bool:
        """Whether it was good for longer than one heartbeat interval."""
        return self._lasted

    async def serve(self) -> None:
        """Runs the stream until it ends.

        Raises `grpc.aio.AioRpcError` with the scheduler's status, or `StreamBroke`. Returns if it was finished
        or dropped from this side.
        """
        self._check_time()
        channel = self._connection.open(for_work=True)
        try:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            call = stub.Work(metadata=self._connection.metadata())
            ending = Ending(call)
            try:
                await self._serve_call(call)
            except grpc.aio.AioRpcError as error:
                sent = await ending.sent(error)
                if sent.code() is grpc.StatusCode.OK:
                    raise StreamBroke(_CLOSED) from None
                raise sent from None
            finally:
                call.cancel()
        finally:
            await channel.close()

    async def _serve_call(self, call: Any) -> None:
        welcome = await self._welcome(call)
        if welcome is None:
            return
        self._interval = max(SHORTEST_INTERVAL, welcome.heartbeat_interval.ToTimedelta().total_seconds())
        parts = [
            asyncio.ensure_future(part)
            for part in (self._read(call), self._write(call), self._beat(), self._dropped.wait())
        ]
        try:
            self._owner.welcomed(self, welcome)
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _welcome(self, call: Any) -> work_pb2.Welcome | None:
        """What the scheduler answers to `Hello`, or None if the stream was dropped meanwhile."""
        patience = self._owner.patience()
        shaking = asyncio.ensure_future(self._shake_hands(call))
        dropped = asyncio.ensure_future(self._dropped.wait())
        try:
            await asyncio.wait({shaking, dropped}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if shaking.done():
                return shaking.result()
            if dropped.done():
                return None
            raise StreamBroke(f"no answer to Hello within {patience:.3g} s")
        finally:
            for task in (shaking, dropped):
                task.cancel()
            await asyncio.gather(shaking, dropped, return_exceptions=True)

    async def _shake_hands(self, call: Any) -> work_pb2.Welcome:
        self._check_time()
        # Read from the start: gRPC takes a status in only where somebody reads.
        reading = asyncio.ensure_future(call.read())
        try:
            await call.write(worker_service_pb2.WorkRequest(hello=self._owner.hello(self)))
            response = await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if response is grpc.aio.EOF:
            raise StreamBroke("the scheduler closed the stream before Welcome")
        if response.WhichOneof("message") != "welcome":
            raise StreamBroke(f"the scheduler sent {response.WhichOneof('message')} before Welcome")
        welcome: work_pb2.Welcome = response.welcome
        return welcome

    def _check_time(self) -> None:
        if not self._owner.is_in_time(self):
            raise StreamBroke("the session was lost before its stream was there")

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            self._owner.received(self, response)
        if not self._finishing:
            raise StreamBroke(_CLOSED)

    async def _write(self, call: Any) -> None:
        try:
            while not self._finishing:
                self._wake.clear()
                await self._write_pending(call)
                if not self._finishing:
                    await self._wake.wait()
            for message in self._outgoing:
                if self._owner.is_in_time(self):
                    await call.write(message)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is over; the reader has the status. This part must not end before the reader does.
            pass
        await self._dropped.wait()

    async def _write_pending(self, call: Any) -> None:
        while not self._finishing and self._owner.is_in_time(self):
            if self._outgoing:
                message = self._outgoing.pop(0)
            elif (pending := self._owner.next_message(self)) is not None:
                message = pending
            else:
                return
            await call.write(message)

    async def _beat(self) -> None:
        while True:
            self._outgoing.append(worker_service_pb2.WorkRequest(heartbeat=self._owner.heartbeat(self)))
            self._wake.set()
            await asyncio.sleep(self._interval)
            self._lasted = True
