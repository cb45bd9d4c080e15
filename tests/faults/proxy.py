"""A TCP proxy that breaks: what stands between two processes, until it does not.

It runs in a thread of its own with its own event loop, so that a test in any loop, or in none, steers it by plain
calls. Every mode can be changed while connections are open, and `heal` undoes all of them. Connections that were cut,
reset or left half-open stay so: it is for their ends to find out.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from tests.serving import close_server

T = TypeVar("T")

LOCALHOST = "127.0.0.1"
_CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Direction(Enum):
    """Which half of a connection: what the client sends, or what the server does."""

    UP = "from client to server"
    DOWN = "from server to client"


BOTH = (Direction.UP, Direction.DOWN)


@dataclass(slots=True)
class _Mode:
    """How one direction fares now. `seconds`: how late each piece arrives. `rate`: bytes a second, None: as they come.
    `swallow`: what arrives is taken and not passed on. `held`: nothing is even taken, so that senders fill up."""

    seconds: float = 0.0
    rate: float | None = None
    swallow: bool = False
    held: bool = False


@dataclass(eq=False, slots=True)
class _Link:
    """One client's connection, and ours to the server for it. `half_open`: the server's side is closed, and the client
    does not know. `forgotten`: whoever sends next is answered with RST."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    half_open: bool = False
    forgotten: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class FaultProxy:
    """Listens on `port` of `host` (a free one of the loopback) and passes on to `target`, (host, port).

    Used as a context manager, or by `start` and `stop`.
    """

    def __init__(self, target: tuple[str, int], *, port: int = 0, host: str = LOCALHOST) -> None:
        self.target = target
        self.host = host
        self.port = port
        self.accepted = 0
        """Connections that were ever made through it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._modes = {direction: _Mode() for direction in BOTH}
        self._changed = asyncio.Event()
        self._links: set[_Link] = set()
        self._clients: WeakSet[asyncio.StreamWriter] = WeakSet()
        self._connecting: set[asyncio.Task[None]] = set()
        self._refusing = False
        self.refused = 0
        """Connections that were asked for while it refused them, or had nobody to pass them on to."""
        self._cut_after: tuple[Direction, int, bytes] | None = None
        self._server: asyncio.Server | None = None

    def __enter__(self) -> FaultProxy:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """In gRPC's and everybody's syntax."""
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """That are open through it now."""
        return len(self._links)

    def start(self) -> FaultProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def stop(self) -> None:
        """Cuts everything and ends the thread."""
        if not self._thread.is_alive():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, *, refuse: bool = True) -> None:
        """Closes every connection on both sides, as a process that ends does, and refuses new ones until `heal`."""
        self._run(self._drop(reset=False, refuse=refuse))

    def reset(self, *, refuse: bool = False) -> None:
        """Ends every connection on both sides with RST, in the middle of whatever it carries."""
        self._run(self._drop(reset=True, refuse=refuse))

    def cut_idle(self) -> int:
        """What an impatient load balancer does: forgets every connection without a word to either side; what is sent
        later is answered with RST. Answers how many there were."""
        return self._run(self._forget())

    def half_open(self) -> None:
        """Closes the connections to the server, and tells the clients nothing: what they send is taken and lost."""
        self._run(self._close_servers())

    def blackhole(self, *directions: Direction) -> None:
        """Takes what is sent and passes nothing on; connections stay open, and new ones are accepted. Default: both
        directions. What was swallowed is lost for good: heal by `reset` or `cut` if a stream would be corrupted."""
        self._set(directions, swallow=True)

    def hold(self, *directions: Direction) -> None:
        """Stops reading: nothing is lost, and nothing passes, until `heal`. As a host that is frozen."""
        self._set(directions, held=True)

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Each piece arrives so much later."""
        self._set(directions, seconds=seconds)

    def throttle(self, bytes_per_second: float, *directions: Direction) -> None:
        """At most so much passes, of all connections each."""
        self._set(directions, rate=bytes_per_second)

    def cut_after(self, direction: Direction, count: int = 1, *, containing: bytes = b"") -> None:
        """Resets a connection instead of passing on its next piece of that direction that has these bytes, so many
        times: with DOWN, a server has done what it was asked, and the client never hears of it."""
        self._run(self._arm(direction, count, containing))

    @property
    def is_to_cut(self) -> bool:
        """Whether what `cut_after` asked for has not all been done."""
        return self._cut_after is not None

    def heal(self) -> None:
        """Everything passes again, and new connections are accepted."""
        self._run(self._heal())

    def _set(self, directions: tuple[Direction, ...], **what: Any) -> None:
        self._run(self._change(directions or BOTH, what))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)  # before anything can be cancelled, so that each is closed
        task = self._loop.create_task(self._connect(reader, writer))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.refused += 1
            _abort(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
        except (OSError, asyncio.CancelledError):
            self.refused += 1
            _abort(writer)
            return
        self.accepted += 1
        link = _Link(writer, server_writer)
        self._links.add(link)
        link.tasks = [
            asyncio.create_task(self._pass_on(link, Direction.UP, reader, server_writer)),
            asyncio.create_task(self._pass_on(link, Direction.DOWN, server_reader, writer)),
        ]

    async def _pass_on(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                await self._until_passing(direction)
                data = await reader.read(_CHUNK)
                await self._until_passing(direction)
                if not data:
                    break
                if link.half_open:
                    continue
                if link.forgotten or self._takes_cut(direction, data):
                    self._drop_link(link, reset=True)
                    return
                await self._carry(direction, data, writer)
            with suppress(OSError, RuntimeError):
                writer.write_eof()
        except OSError:
            # A process that is killed with something unread ends with RST: the other side is to hear of it.
            self._drop_link(link, reset=True)
            return
        if all(task.done() or task is asyncio.current_task() for task in link.tasks):
            self._drop_link(link, reset=False)

    async def _carry(self, direction: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        mode = self._modes[direction]
        if mode.swallow:
            return
        if mode.seconds:
            await asyncio.sleep(mode.seconds)
        if mode.rate:
            await asyncio.sleep(len(data) / mode.rate)
        writer.write(data)
        await writer.drain()

    async def _until_passing(self, direction: Direction) -> None:
        while self._modes[direction].held:
            self._changed.clear()
            await self._changed.wait()

    def _takes_cut(self, direction: Direction, data: bytes) -> bool:
        if self._cut_after is None:
            return False
        wanted, count, containing = self._cut_after
        if wanted is not direction or containing not in data:
            return False
        self._cut_after = (direction, count - 1, containing) if count > 1 else None
        return True

    async def _arm(self, direction: Direction, count: int, containing: bytes) -> None:
        self._cut_after = (direction, count, containing)

    async def _change(self, directions: tuple[Direction, ...], what: dict[str, Any]) -> None:
        for direction in directions:
            for name, value in what.items():
                setattr(self._modes[direction], name, value)
        self._changed.set()

    async def _heal(self) -> None:
        self._refusing = False
        self._cut_after = None
        self._modes = {direction: _Mode() for direction in BOTH}
        self._changed.set()

    async def _drop(self, *, reset: bool, refuse: bool) -> None:
        self._refusing = refuse
        for link in list(self._links):
            self._drop_link(link, reset=reset)

    async def _forget(self) -> int:
        links = list(self._links)
        for link in links:
            link.forgotten = True
        return len(links)

    async def _close_servers(self) -> None:
        for link in self._links:
            link.half_open = True
            link.tasks[1].cancel()
            link.server.close()

    def _drop_link(self, link: _Link, *, reset: bool) -> None:
        self._links.discard(link)
        for task in link.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for writer in (link.client, link.server):
            if reset:
                _abort(writer)
            else:
                writer.close()

    async def _end(self) -> None:
        assert self._server is not None
        self._refusing = True
        await close_server(self._server)
        await self._drop(reset=False, refuse=True)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in list(self._clients):
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
