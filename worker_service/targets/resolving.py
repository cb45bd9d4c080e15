"""Names become addresses, off the event loop, within a time, and once for all calls of the moment."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from worker_service.targets.hosts import Address

RESOLVE_SECONDS = 5.0
# How long an answer is used for further calls. Those are checked again, and connect to the addresses of the answer.
KEEP_SECONDS = 10.0
MOST_KEPT = 1_000
_THREADS = 32

# Blocks until a name has become addresses. Errors: OSError.
AskSystem = Callable[[str], Sequence[Address]]


class NotResolved(OSError):
    """A name has no address, or none was found in time; says so as the end of a sentence."""


def ask_system(name: str) -> Sequence[Address]:
    """As the machine is configured to: /etc/hosts, DNS and what else it asks."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


class Names:
    """Finds addresses of names. An async context manager.

    ask, seconds, clock: for tests. Calls that ask for the same name at the same time share one question.
    """

    def __init__(
        self,
        ask: AskSystem = ask_system,
        seconds: float = RESOLVE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="names")
        self._asked: dict[str, asyncio.Task[tuple[Address, ...]]] = {}
        self._kept: dict[str, tuple[float, tuple[Address, ...]]] = {}

    async def __aenter__(self) -> Names:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, name: str) -> tuple[Address, ...]:
        """The name's addresses, at least one, each once. Errors: NotResolved."""
        until, addresses = self._kept.get(name, (0.0, ()))
        if addresses and self._clock() < until:
            return addresses
        asked = self._asked.get(name)
        if asked is None:
            asked = self._asked[name] = asyncio.create_task(self._find(name), name=f"resolve {name}")
            asked.add_done_callback(lambda task: self._answered(name, task))
        return await asyncio.shield(asked)  # it is the others' question too

    async def _find(self, name: str) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout(self._seconds):
                found = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, name)
        except TimeoutError:
            raise NotResolved(f"the host name was not resolved within {self._seconds:g} s") from None
        except (OSError, UnicodeError):
            raise NotResolved("the host name is not known") from None
        if not found:
            raise NotResolved("the host name has no address")
        return tuple(dict.fromkeys(found))

    def _answered(self, name: str, task: asyncio.Task[tuple[Address, ...]]) -> None:
        del self._asked[name]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept.pop(name, None)
        self._kept[name] = (self._clock() + KEEP_SECONDS, task.result())
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
