"""Names become addresses, off the event loop, within a time, and once for all calls of a service at the moment.

A service whose names are never answered holds up its own calls only: it has few questions at a time, and what it waits
for is not what others wait for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from worker_service.targets.hosts import Address

RESOLVE_SECONDS = 5.0
# How long an answer is used for further calls. Those are checked again, and connect to the addresses of the answer.
KEEP_SECONDS = 10.0
# How long a failure is the answer to the same service's further calls.
KEEP_FAILURE_SECONDS = 2.0
MOST_KEPT = 1_000
QUESTIONS_OF_A_SERVICE = 4
_THREADS = 64

# Blocks until a name has become addresses. Errors: OSError.
AskSystem = Callable[[str], Sequence[Address]]

Addresses = tuple[Address, ...]
Key = TypeVar("Key")
Value = TypeVar("Value")
# Who asks for which name.
_Question = tuple[str, str]


class NotResolved(OSError):
    """A name has no address, or none was found in time; says so as the end of a sentence."""


def ask_system(name: str) -> Sequence[Address]:
    """As the machine is configured to: /etc/hosts, DNS and what else it asks."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


class Names:
    """Finds addresses of names. An async context manager.

    ask, seconds, clock: for tests. Calls of a service that ask for the same name at the same time share one question.
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
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(QUESTIONS_OF_A_SERVICE)
        )
        self._asked: dict[_Question, asyncio.Task[Addresses]] = {}
        self._kept: dict[str, tuple[float, Addresses]] = {}
        self._failed: dict[_Question, tuple[float, NotResolved]] = {}

    async def __aenter__(self) -> Names:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, name: str, service: str) -> Addresses:
        """The name's addresses, at least one, each once. Errors: NotResolved."""
        until, addresses = self._kept.get(name, (0.0, ()))
        if addresses and self._clock() < until:
            return addresses
        question = service, name
        if (failed := self._failed.get(question)) is not None and self._clock() < failed[0]:
            raise NotResolved(*failed[1].args)
        asked = self._asked.get(question)
        if asked is None:
            asked = self._asked[question] = asyncio.create_task(self._find(question), name=f"resolve {name}")
            asked.add_done_callback(lambda task: self._answered(question, task))
        return await asyncio.shield(asked)  # it is the others' question too

    async def _find(self, question: _Question) -> Addresses:
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._answer(question)
        except TimeoutError:
            raise NotResolved(f"the host name was not resolved within {self._seconds:g} s") from None
        except (OSError, UnicodeError):
            raise NotResolved("the host name is not known") from None
        if not found:
            raise NotResolved("the host name has no address")
        return tuple(dict.fromkeys(found))

    async def _answer(self, question: _Question) -> Sequence[Address]:
        service, name = question
        turn = self._turns[service]
        await turn.acquire()
        asking = self._threads.submit(self._ask, name)
        loop = asyncio.get_running_loop()
        # When the system has answered, and not when nobody waits any more: its thread is taken until then.
        asking.add_done_callback(lambda _asking: _soon(loop, turn.release))
        return await asyncio.wrap_future(asking)

    def _answered(self, question: _Question, task: asyncio.Task[Addresses]) -> None:
        del self._asked[question]
        if task.cancelled():
            return
        if isinstance(failure := task.exception(), NotResolved):
            _keep(self._failed, question, (self._clock() + KEEP_FAILURE_SECONDS, failure))
        elif failure is None:
            _keep(self._kept, question[1], (self._clock() + KEEP_SECONDS, task.result()))


def _keep(kept: dict[Key, Value], key: Key, value: Value) -> None:
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: the process ends
        loop.call_soon_threadsafe(call)
