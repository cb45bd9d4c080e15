"""Around every call: who calls (decided once), and what a refusal or a fault becomes.

Handlers take the caller from `caller()` and raise the domain's refusals; they catch nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import grpc
import structlog
from cryptography import x509
from google.protobuf.message import Message
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from scheduler_service.domain.access import ANONYMOUS, Origin, Principal, require
from scheduler_service.domain.errors import NothingToSee, Refusal
from scheduler_service.identity.credentials import Connection, Credentials
from scheduler_service.rpc.addresses import address_of
from scheduler_service.rpc.degraded import DEGRADED_TRAILER, empty_list_of
from scheduler_service.rpc.errors import code_of, status_of
from scheduler_service.rpc.expiry import ending_with
from scheduler_service.rpc.limits import Limits
from scheduler_service.rpc.methods import ACTIONS, is_public
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.open_calls import OpenCalls
from scheduler_service.rpc.requests import Requests
from scheduler_service.store.errors import SchemaMissing, lost_a_race, translate

log = structlog.get_logger()

_REQUEST_ID = "x-request-id"
_ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,64}")
# How often a call is carried out that gives way to others, and for how long (in seconds, at most) it waits in between.
_TRIES = 4
_PAUSE = 0.05
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
    open: OpenCalls


class Calls(grpc.aio.ServerInterceptor):
    """Authenticates each call, and turns what its handler raises into a status."""

    def __init__(
        self,
        credentials: Credentials,
        metrics: CallMetrics,
        limits: Limits | None = None,
        open_calls: OpenCalls | None = None,
    ) -> None:
        self._around = _Around(credentials, metrics, limits or Limits(CollectorRegistry()), open_calls or OpenCalls())

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        requests = Requests(method, handler.request_deserializer)
        call = _Call(method, handler_call_details.invocation_metadata, self._around, requests)
        # All of them as streams of bytes: of a call with a single request gRPC reads that (8 MiB of it, unpacked and
        # decoded) before its handler may say a word.
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(
                call.answering(handler.unary_unary), None, handler.response_serializer
            )
        streaming = (
            call.streaming(handler.unary_stream, requests.one)
            if handler.unary_stream
            else call.streaming(handler.stream_stream, requests.stream)
        )
        return grpc.stream_stream_rpc_method_handler(streaming, None, handler.response_serializer)


class _Call:
    """One call of one method."""

    def __init__(self, method: str, metadata: Metadata, around: _Around, requests: Requests) -> None:
        self._method = method
        self._metadata = metadata
        self._around = around
        self._requests = requests

    def answering(self, handler: Callable[[Any, Context], Awaitable[Message]]) -> Any:
        async def answer(_: object, context: Context) -> Message:
            with self._around.metrics.timed(self._method) as outcome:
                try:
                    principal = await self._principal(context)
                    _caller.set(principal)
                    with self._place(principal):
                        return await _patiently(handler, await self._requests.one(context), context)
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

    def streaming(
        self, handler: Callable[[Any, Context], AsyncIterator[Message]], read: Callable[[Context], Awaitable[Any]]
    ) -> Any:
        async def stream(_: object, context: Context) -> AsyncIterator[Message]:
            with self._around.metrics.timed(self._method) as outcome:
                try:
                    principal = await self._principal(context)
                    _caller.set(principal)
                    with self._place(principal, is_stream=True):
                        request = await read(context)
                        async with ending_with(principal, self._holds, partial(_abort, context)) as watch:
                            async for message in _messages(handler(request, context)):
                                watch.is_sending = True
                                yield message
                                watch.is_sending = False
                except Exception as error:
                    refusal = self._refusal(error)
                    outcome.code = code_of(refusal)
                    await _abort(context, refusal)

        return stream

    @contextmanager
    def _place(self, principal: Principal, *, is_stream: bool = False) -> Iterator[None]:
        opened = self._around.open
        if is_public(self._method):
            place = opened.public(self._method, principal.name)
        else:
            place = opened.stream(self._method, principal) if is_stream else opened.call(principal)
        with place:
            yield

    def _holds(self, principal: Principal) -> bool:
        return is_public(self._method) or self._around.credentials.holds(principal)

    async def _principal(self, context: Context) -> Principal:
        """Who calls, if it may call this method at all."""
        if is_public(self._method):
            return replace(ANONYMOUS, name=address_of(context.peer()))
        action = ACTIONS[self._method]
        principal = await self._around.credentials.principal(self._metadata, _connection(context), action)
        require(principal, action)
        self._around.limits.admit(principal, self._method)
        return replace(principal, origin=self._origin(context))

    def _origin(self, context: Context) -> Origin:
        sent = next((str(value) for key, value in self._metadata if key == _REQUEST_ID), "")
        request_id = sent if _ACCEPTABLE_ID.fullmatch(sent) else secrets.token_hex(8)
        return Origin(context.peer(), request_id, self._method.removeprefix("/carillon.v1."))

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)):
            raise error
        if isinstance(error, Refusal):
            return error
        if (translated := translate(error)) is not None:
            log.warning("call failed on the database", method=self._method, reason=str(error).partition("\n")[0])
            return translated
        incident = secrets.token_hex(6)
        log.exception("call failed", method=self._method, incident=incident)
        return Refusal(
            f"this is a fault in Carillon; its log has it as incident {incident}", reason="INTERNAL", incident=incident
        )


async def _patiently(handler: Callable[[Any, Context], Awaitable[Message]], request: Any, context: Context) -> Message:
    """Carries out a call; again, where its transaction gave way to another and nothing of it was kept."""
    for earlier in range(_TRIES - 1):
        try:
            return await handler(request, context)
        except Exception as error:
            if not lost_a_race(error):
                raise
        await asyncio.sleep(random.uniform(0, _PAUSE * 2**earlier))
    return await handler(request, context)


async def _messages(answers: Any) -> AsyncIterator[Message]:
    if inspect.iscoroutine(answers):
        await answers  # as the library's health service does, which sends by itself
        return
    async for message in answers:
        yield message


def _connection(context: Context) -> Connection:
    known = context.auth_context()
    if "x509_pem_cert" not in known:
        return Connection(context.peer())
    # Addresses and mail boxes, which x509_subject_alternative_name has too, name no worker.
    names = (*known.get("peer_dns", ()), *known.get("peer_uri", ()))
    shown = x509.load_pem_x509_certificate(next(iter(known["x509_pem_cert"])))
    decoded = tuple(name.decode(errors="replace") for name in names)
    return Connection(context.peer(), decoded, shown.not_valid_after_utc)


async def _abort(context: Context, refusal: Refusal) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(status_of(refusal)))
    raise AssertionError("abort_with_status returns never")
