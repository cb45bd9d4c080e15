"""One call of any method, by its name, and everything that came back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
from carillon.ending import Ending
from carillon.v1 import work_pb2, worker_service_pb2, worker_service_pb2_grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

_PATIENCE = 60.0
_STATUS_KEY = "grpc-status-details-bin"


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
    kind = descriptor(method)
    read = output_of(method).FromString
    if kind.client_streaming or kind.server_streaming:
        if kind.client_streaming:
            stream: Any = channel.stream_stream(method, response_deserializer=read)(metadata=metadata)
            answer = await _first_of(stream, body, patience)
        else:
            start: Any = channel.unary_stream(method, response_deserializer=read)
            stream = start(body, metadata=metadata)
            answer = await _first_of(stream, None, patience)
        stream.cancel()
        return answer
    unary: Any = channel.unary_unary(method, response_deserializer=read)
    call = unary(body, metadata=metadata)
    try:
        async with asyncio.timeout(_PATIENCE):
            message: Message = await call
    except grpc.aio.AioRpcError as error:
        return _refusal(error)
    return Answer(grpc.StatusCode.OK, "", message, tuple(await call.trailing_metadata() or ()))


async def work_stream(
    channel: grpc.aio.Channel, hello: work_pb2.Hello, metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[str, str]:
    """What a work stream that begins so comes to: WELCOME, or its status and sentence. It stays open as long as its
    channel."""
    call: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work(metadata=metadata)
    answer = await _first_of(call, worker_service_pb2.WorkRequest(hello=hello), _PATIENCE)
    if answer.message is None:
        return answer.code.name, answer.details
    assert isinstance(answer.message, worker_service_pb2.WorkResponse)
    assert answer.message.WhichOneof("message") == "welcome"
    return "WELCOME", ""


async def _first_of(call: Any, request: Message | bytes | None, patience: float) -> Answer:
    """The first message of a stream, or how it ended. `request`: what to write to it, if it is one to be written to."""
    ending = Ending(call)
    reading = asyncio.ensure_future(call.read())
    if request is not None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # refused meanwhile: the reader knows
            await call.write(request)
    try:
        async with asyncio.timeout(patience):
            message = await reading
    except TimeoutError:
        return Answer(grpc.StatusCode.CANCELLED, "", None, ())
    except grpc.aio.AioRpcError as error:
        return _refusal(await ending.sent(error))
    return Answer(grpc.StatusCode.OK, "", message if isinstance(message, Message) else None, ())


def _refusal(error: grpc.aio.AioRpcError) -> Answer:
    return Answer(error.code(), error.details() or "", None, tuple(error.trailing_metadata() or ()))
