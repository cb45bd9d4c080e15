"""What a call sends: read when its handler asks for it, and measured before it is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message

from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.rpc.methods import most_bytes
from scheduler_service.rpc.wire import Plan, has_more_fields, plan_of

REQUEST_SECONDS = 30.0
MOST_FIELDS = 300_000
"""Of one message. A document of 256 KiB, the largest that is stored, has at most 262,150."""

# What is shorter becomes 20 MiB at most, and is not counted: nearly all requests, and a worker's batches.
_SHORT = 256 * 1024
# Counting takes up to 0.1 s: beside the loop, and one at a time.
_ASIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="counting")

Context = grpc.aio.ServicerContext[Any, Any]


class Requests:
    """Of one call of one method. `within`: how many seconds a single request may take to come."""

    def __init__(self, method: str, decode: Callable[[bytes], Message], within: float = REQUEST_SECONDS) -> None:
        self._method = method
        self._decode = decode
        self._most_bytes = most_bytes(method)
        self._within = within

    async def one(self, context: Context) -> Message:
        """The request of a call that has one. Errors: InvalidInput."""
        try:
            async with asyncio.timeout(self._within):
                body = await context.read()
        except TimeoutError:
            raise _wrong(f"it did not come within {self._within:g} s") from None
        if body is grpc.aio.EOF:
            raise _wrong("it did not come")
        return await self._sound(body)

    async def stream(self, context: Context) -> AsyncIterator[Message]:
        """The requests of a call that has many. Errors, of each: InvalidInput."""
        return self._each(context)

    async def _each(self, context: Context) -> AsyncIterator[Message]:
        while (body := await context.read()) is not grpc.aio.EOF:
            yield await self._sound(body)

    async def _sound(self, body: bytes) -> Message:
        if len(body) > self._most_bytes:
            name = self._method.rpartition("/")[2]
            raise _wrong(f"it has {len(body):,} bytes; {name} takes at most {self._most_bytes:,}")
        try:
            if len(body) > _SHORT and await self._has_too_many_fields(body):
                raise _wrong(f"it has more than {MOST_FIELDS:,} fields; send less at once")
            return self._decode(body)
        except DecodeError as error:
            # gRPC itself would answer UNKNOWN to what a decoder raises.
            raise _wrong(f"its bytes are no message of this method: {error}") from None

    async def _has_too_many_fields(self, body: bytes) -> bool:
        plan = _plan(self._method)
        return await asyncio.get_running_loop().run_in_executor(_ASIDE, has_more_fields, body, plan, MOST_FIELDS)


@cache
def _plan(method: str) -> Plan:
    service, _, name = method.removeprefix("/").partition("/")
    return plan_of(descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type)


def _wrong(problem: str) -> InvalidInput:
    return InvalidInput(Violation("request", problem))
