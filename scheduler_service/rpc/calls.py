"""Around every call: who calls (decided once), and what a refusal or a fault becomes.

Handlers take the caller from `caller()` and raise the domain's refusals; they catch nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from scheduler_service.domain.access import ANONYMOUS, Origin, Principal, require
from scheduler_service.domain.errors import InvalidInput, NothingToSee, Refusal, Violation
from scheduler_service.domain.fields import is_storable
from scheduler_service.identity.credentials import Connection, Credentials
from scheduler_service.rpc.degraded import DEGRADED_TRAILER, empty_list_of
from scheduler_service.rpc.errors import code_of, status_of
from scheduler_service.rpc.expiry import ending_with
from scheduler_service.rpc.limits import Limits
from scheduler_service.rpc.methods import ACTIONS, PUBLIC
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.open_streams import OpenStreams
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


@dataclass(frozen=True, slots=True)
class _Around:
    """What every call meets."""

    credentials: Credentials
    metrics: CallMetrics
    limits: Limits
    streams: OpenStreams


class Calls(grpc.aio.ServerInterceptor):
    """Authenticates each call, and turns what its handler raises into a status."""

    def __init__(
        self,
        credentials: Credentials,
        metrics: CallMetrics,
        limits: Limits | None = None,
        streams: OpenStreams | None = None,
    ) -> None:
        self._around = _Around(credentials, metrics, limits or Limits(CollectorRegistry()), streams or OpenStreams())

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(PUBLIC):
            return handler
        call = _Call(method, handler_call_details.invocation_metadata, self._around)
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

    def __init__(self, method: str, metadata: Metadata, around: _Around) -> None:
        self._method = method
        self._metadata = metadata
        self._around = around

    def answering(self, handler: Callable[[Any, Context], Awaitable[Message]]) -> Any:
        async def answer(request: Any, context: Context) -> Message:
            with self._around.metrics.timed(self._method) as outcome:
                try:
                    _caller.set(await self._principal(context))
                    return await handler(_sound(request), context)
                except Exception as error:
                    refusal = self._refusal(error)
                    shows_nothing = isinstance(refusal, (SchemaMissing, NothingToSee))
                    if shows_nothing and (empty := empty_list_of(self._method)) is not None:
                        if isinstance(refusal, SchemaMissing):
                            context.set_trailing_metadata(((DEGRADED_TRAILER, refusal.message),))
                        return empty
                    outcome.code = code_of(refusal)
                    await _abort(context, refusal)

        return answer

    def streaming(self, handler: Callable[[Any, Context], AsyncIterator[Message]]) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Message]:
            with self._around.metrics.timed(self._method) as outcome:
                try:
                    principal = await self._principal(context)
                    _caller.set(principal)
                    with self._around.streams.one(self._method, principal):
                        async with ending_with(
                            principal, self._around.credentials.holds, partial(_abort, context)
                        ) as watch:
                            async for message in handler(_sound(request), context):
                                watch.is_sending = True
                                yield message
                                watch.is_sending = False
                except Exception as error:
                    refusal = self._refusal(error)
                    outcome.code = code_of(refusal)
                    await _abort(context, refusal)

        return stream

    def conversing(self, handler: Callable[[Any, Context], AsyncIterator[Message]]) -> Any:
        return self.streaming(lambda requests, context: handler(_all_sound(requests), context))

    async def _principal(self, context: Context) -> Principal:
        """Who calls, if it may call this method at all."""
        action = ACTIONS[self._method]
        principal = await self._around.limits.principal(
            self._around.credentials, self._metadata, _connection(context), action
        )
        require(principal, action)
        self._around.limits.admit(principal, self._method)
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
    known = context.auth_context()
    if "x509_pem_cert" not in known:
        return Connection(context.peer())
    # Addresses and mail boxes, which x509_subject_alternative_name has too, name no worker.
    names = (*known.get("peer_dns", ()), *known.get("peer_uri", ()))
    return Connection(context.peer(), tuple(name.decode(errors="replace") for name in names))


async def _abort(context: Context, refusal: Refusal) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(status_of(refusal)))
    raise AssertionError("abort_with_status returns never")
