"""One call of any method, by its name, and everything that came back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
from carillon.v1 import work_pb2, worker_service_pb2, worker_service_pb2_grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

_PATIENCE = 20.0
_STATUS_KEY = "grpc-status-details-bin"
# What gRPC's own client says, with INTERNAL, of a call that ends just while it is written to.
_OVERTAKEN = "Internal error from Core"
_TRIES = 5


@dataclass(frozen=True)
class Answer:
    """`message`: the first or only one. `trailers`: every trailer, the status's details among them."""

    code: grpc.StatusCode
    details: str
    message: Message | None
    trailers: tuple[tuple[str, str | bytes], ...]

    @property
    def is_empty_list(self) -> bool:
        """Whether it is a page without entries."""
        if self.message is None or not type(self.message).__name__.startswith("List"):
            return False
        return not any(field.is_repeated for field, _ in self.message.ListFields())

    @property
    def status(self) -> Status:
        """The status with its details; an empty one for OK."""
        raw = dict(self.trailers).get(_STATUS_KEY, b"")
        return Status.FromString(raw if isinstance(raw, bytes) else raw.encode())

    def said(self) -> bytes:
        """Everything in it, as bytes to be searched."""
        trailers = b"".join(
            key.encode() + (value if isinstance(value, bytes) else value.encode()) for key, value in self.trailers
        )
        return self.details.encode() + trailers + (self.message.SerializeToString() if self.message else b"")


@cache
def descriptor(method: str) -> MethodDescriptor:
    """Of a method's full name, such as `/carillon.v1.JobService/GetJob`."""
    service, _, name = method.lstrip("/").partition("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


@cache
def input_of(method: str) -> type[Message]:
    return message_factory.GetMessageClass(descriptor(method).input_type)


@cache
def output_of(method: str) -> type[Message]:
    return message_factory.GetMessageClass(descriptor(method).output_type)


async def ask(
    channel: grpc.aio.Channel,
    method: str,
    request: Message | bytes,
    metadata: tuple[tuple[str, str], ...] = (),
    *,
    patience: float = _PATIENCE,
) -> Answer:
    """Calls a method with one request. A stream is left after its first message, or after `patience` seconds without
    one, which is then an answer without a message."""
    body = request if isinstance(request, bytes) else request.SerializeToString()
    for _ in range(_TRIES):
        answer = await _ask(channel, method, body, metadata, patience)
        if (answer.code, answer.details) != (grpc.StatusCode.INTERNAL, _OVERTAKEN):
            break
    return answer


async def _ask(
    channel: grpc.aio.Channel, method: str, body: bytes, metadata: tuple[tuple[str, str], ...], patience: float
) -> Answer:
    kind = descriptor(method)
    read = output_of(method).FromString
    if kind.client_streaming:
        call: Any = channel.stream_stream(method, response_deserializer=read)(metadata=metadata)
        await _write(call, body)
    elif kind.server_streaming:
        stream: Any = channel.unary_stream(method, response_deserializer=read)
        call = stream(body, metadata=metadata)
    else:
        unary: Any = channel.unary_unary(method, response_deserializer=read)
        call = unary(body, metadata=metadata)
        return await _answer(call, await _outcome(call))
    message = await _first(call, patience)
    if message is not None:
        call.cancel()
        return Answer(grpc.StatusCode.OK, "", message, ())
    return await _answer(call, None)


async def work_stream(
    channel: grpc.aio.Channel, hello: work_pb2.Hello, metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[str, str]:
    """What a work stream that begins so comes to: WELCOME, or its status and sentence. It stays open as long as its
    channel."""
    for _ in range(_TRIES):
        found = await _work_stream(channel, hello, metadata)
        if found != (grpc.StatusCode.INTERNAL.name, _OVERTAKEN):
            break
    return found


async def _work_stream(
    channel: grpc.aio.Channel, hello: work_pb2.Hello, metadata: tuple[tuple[str, str], ...]
) -> tuple[str, str]:
    call: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work(metadata=metadata)
    async with asyncio.timeout(_PATIENCE):
        # The second where the call has ended before it was written to.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(worker_service_pb2.WorkRequest(hello=hello))
            first = await call.read()
            if first is not grpc.aio.EOF:
                assert first.WhichOneof("message") == "welcome"
                return "WELCOME", ""
        return (await call.code()).name, await call.details()


async def _write(call: Any, body: bytes) -> None:
    try:
        await call.write(body)
    except grpc.aio.AioRpcError:
        return  # refused meanwhile: its status says why


async def _outcome(call: Any) -> Message | None:
    try:
        async with asyncio.timeout(_PATIENCE):
            message: Message = await call
            return message
    except grpc.aio.AioRpcError:
        return None


async def _first(call: Any, patience: float) -> Message | None:
    try:
        async with asyncio.timeout(patience):
            message = await call.read()
    except TimeoutError:
        call.cancel()
        return None
    except grpc.aio.AioRpcError:
        return None
    return message if isinstance(message, Message) else None


async def _answer(call: Any, message: Message | None) -> Answer:
    trailers = await call.trailing_metadata()
    return Answer(await call.code(), await call.details() or "", message, tuple(trailers or ()))
