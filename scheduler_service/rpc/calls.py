"""Around every call: who calls (decided once), and what a refusal or a fault becomes.

Handlers take the caller from `caller()` and raise the domain's refusals; they catch nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from scheduler_service.domain.access import ANONYMOUS, Origin, Principal, require
from scheduler_service.domain.errors import InvalidInput, Refusal, Violation
from scheduler_service.domain.fields import is_storable
from scheduler_service.identity.credentials import Connection, Credentials
from scheduler_service.rpc.degraded import DEGRADED_TRAILER, empty_list_of
from scheduler_service.rpc.errors import code_of, status_of
from scheduler_service.rpc.methods import ACTIONS, PUBLIC
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.store.errors import SchemaMissing, translate

log = structlog.get_logger()

_REQUEST_ID = "x-request-id"
_MAX_REQUEST_ID = 64
_caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)

Context = grpc.aio.ServicerContext[Any, Any]
# The library's types describe the synchronous handlers; what an aio server holds are coroutine functions.
Handler = Any
Metadata = Iterable[tuple[str, str | bytes]]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


def caller() -> Principal:
    """Who makes the call that is being handled."""
    return _caller.get()


class Calls(grpc.aio.ServerInterceptor):
    """Authenticates each call, and turns what its handler raises into a status."""

    def __init__(self, credentials: Credentials, metrics: CallMetrics) -> None:
        self._credentials = credentials
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(PUBLIC):
            return handler
        call = _Call(method, handler_call_details.invocation_metadata, self._credentials, self._metrics)
        decode = _decoder(handler.request_deserializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                call.answering(handler.unary_unary), decode, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                call.streaming(handler.unary_stream), decode, handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            call.conversing(handler.stream_stream), decode, handler.response_serializer
        )


class _Undecodable:
    """Stands in for a message whose bytes are none: gRPC itself would answer UNKNOWN to what a decoder raises."""

    def __init__(self, error: DecodeError) -> None:
        self.refusal = InvalidInput(Violation("request", f"its bytes are no message of this method: {error}"))


def _decoder(decode: Callable[[bytes], Message]) -> Callable[[bytes], Message | _Undecodable]:
    def decoded(body: bytes) -> Message | _Undecodable:
        try:
            return decode(body)
        except DecodeError as error:
            return _Undecodable(error)

    return decoded


def _sound(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise request.refusal
    return request


async def _all_sound(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _sound(request)


class _Call:
    """One call of one method."""

    def __init__(self, method: str, metadata: Metadata, credentials: Credentials, metrics: CallMetrics) -> None:
        self._method = method
        self._metadata = metadata
        self._credentials = credentials
        self._metrics = metrics

    def answering(self, handler: Callable[[Any, Context], Awaitable[Message]]) -> Any:
        async def answer(request: Any, context: Context) -> Message:
            with self._metrics.timed(self._method) as outcome:
                try:
                    _caller.set(await self._principal(context))
                    return await handler(_sound(request), context)
                except Exception as error:
                    refusal = self._refusal(error)
                    empty = empty_list_of(self._method) if isinstance(refusal, SchemaMissing) else None
                    if empty is not None:
                        context.set_trailing_metadata(((DEGRADED_TRAILER, refusal.message),))
                        return empty
                    outcome.code = code_of(refusal)
                    await _abort(context, refusal)

        return answer

    def streaming(self, handler: Callable[[Any, Context], AsyncIterator[Message]]) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Message]:
            with self._metrics.timed(self._method) as outcome:
                try:
                    _caller.set(await self._principal(context))
                    async for message in handler(_sound(request), context):
                        yield message
                except Exception as error:
                    refusal = self._refusal(error)
                    outcome.code = code_of(refusal)
                    await _abort(context, refusal)

        return stream

    def conversing(self, handler: Callable[[Any, Context], AsyncIterator[Message]]) -> Any:
        return self.streaming(lambda requests, context: handler(_all_sound(requests), context))

    async def _principal(self, context: Context) -> Principal:
        """Who calls, if it may call this method at all."""
        principal = await self._credentials.principal(self._metadata, _connection(context))
        require(principal, ACTIONS[self._method])
        return replace(principal, origin=self._origin(context))

    def _origin(self, context: Context) -> Origin:
        sent = next((str(value) for key, value in self._metadata if key == _REQUEST_ID), "")
        request_id = sent[:_MAX_REQUEST_ID] if is_storable(sent) else ""
        method = self._method.removeprefix("/carillon.v1.")
        return Origin(context.peer(), request_id or secrets.token_hex(8), method)

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)):
            raise error
        if isinstance(error, Refusal):
            return error
        if (translated := translate(error)) is not None:
            log.warning("call failed on the database", method=self._method, reason=str(error).splitlines()[0])
            return translated
        incident = secrets.token_hex(6)
        log.exception("call failed", method=self._method, incident=incident)
        return Refusal(
            f"this is a fault in Carillon; its log has it as incident {incident}", reason="INTERNAL", incident=incident
        )


def _connection(context: Context) -> Connection:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return Connection(context.peer(), tuple(name.decode(errors="replace") for name in names))


async def _abort(context: Context, refusal: Refusal) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(status_of(refusal)))
    raise AssertionError("abort_with_status returns never")
