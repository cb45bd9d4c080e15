"""Route `http`: a run is a POST to an endpoint of the service that owns the job."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from types import SimpleNamespace, TracebackType

import aiohttp
from carillon.execution import Assignment, Completed, Failed, Run
from carillon.version import __version__
from yarl import URL

from worker_service.targets import addresses, answer, connecting, request
from worker_service.targets.addresses import AddressError, shown
from worker_service.targets.allowed import TARGET_NOT_ALLOWED, Gate
from worker_service.targets.exchange import RAW_BYTES, AnswerTooLong
from worker_service.targets.following import asked_by
from worker_service.targets.hosts import Address
from worker_service.targets.resolving import NotResolved
from worker_service.targets.signing import Signer

DETAIL_BYTES = 4 * 1024
# Of the status line and of each header of an answer; aiohttp takes at most 128 headers.
HEADER_BYTES = 8 * 1024
CONNECT_TIMEOUT = 10.0
USER_AGENT = f"carillon-worker/{__version__}"
# Below the 5 s after which uvicorn and Node hang up on an idle connection.
KEEPALIVE_TIMEOUT = 4.0

_HUNG_UP = frozenset({errno.ECONNRESET, errno.EPIPE})

# Told of each call: its status, None if there was no answer, and how many seconds it took.
ObserveCall = Callable[[int | None, float], None]


class HttpExecutor:
    """Carries out runs of route `http`. An async context manager, to be entered in the loop that runs it.

    `gate` says where calls may go, `signer` signs them; `base_urls` replaces scheme, authority and path prefix of
    every endpoint of the services it names. The attempt's timeout is the session's to keep: cancelling `execute`
    closes the connection.
    """

    def __init__(self, gate: Gate, signer: Signer, base_urls: Mapping[str, URL], observe_call: ObserveCall) -> None:
        self._gate = gate
        self._signer = signer
        self._base_urls = base_urls
        self._observe_call = observe_call
        self._client: aiohttp.ClientSession | None = None

    @property
    def routes(self) -> Sequence[str]:
        return ("http",)

    async def __aenter__(self) -> HttpExecutor:
        self._client = aiohttp.ClientSession(
            connector=connecting.connector(KEEPALIVE_TIMEOUT),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,  # nothing packed was asked for, and BODY_BYTES is to bound what is unpacked too
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            trust_env=False,  # or a proxy would connect to what it likes
            trace_configs=[_tell_of_reuse()],
        )
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def execute(self, assignment: Assignment, run: Run) -> Completed:  # noqa: ARG002 - the port has it
        """POSTs the run. Any 2xx status completes it, whatever the body says.

        Errors: Failed with the status, such as `HTTP_503` (redirects too: none is followed), and what the answer's
        headers ask to follow; with `HTTP_UNREACHABLE`, `TARGET_NOT_ALLOWED` or `SIGNING_KEY_MISSING`.
        """
        self._signer.require_key(assignment.service)
        url = self._address(assignment)
        with connecting.to(await self._admitted(url, assignment.service)):
            call = _Call()
            try:
                return await self._post(url, assignment, call)
            except (aiohttp.ClientError, OSError) as error:
                if not _was_closed_while_idle(call, error):
                    raise _unreachable(url, error) from error
            try:
                return await self._post(url, assignment, _Call())
            except (aiohttp.ClientError, OSError) as error:
                raise _unreachable(url, error) from error

    def _address(self, assignment: Assignment) -> URL:
        try:
            endpoint = addresses.parse(assignment.endpoint)
        except AddressError as error:
            raise Failed(TARGET_NOT_ALLOWED, f"the endpoint {error}") from None
        base = self._base_urls.get(assignment.service)
        try:
            return addresses.rebase(endpoint, base) if base else endpoint
        except AddressError as error:
            raise Failed(TARGET_NOT_ALLOWED, f"the endpoint {error}") from None

    async def _admitted(self, url: URL, service: str) -> tuple[Address, ...]:
        host, port = addresses.place(url)
        try:
            return await self._gate.admit(f"POST {shown(url)}", service, host, port, listed=service in self._base_urls)
        except NotResolved as error:
            raise Failed("HTTP_UNREACHABLE", f"POST {shown(url)} got no answer: {error}") from None

    async def _post(self, url: URL, assignment: Assignment, call: _Call) -> Completed:
        assert self._client is not None
        body = request.body(assignment)
        signature = self._signer.headers(assignment.service, str(assignment.run_id), body)
        began = time.monotonic()
        try:
            async with self._client.post(
                url,
                data=body,
                headers={**request.headers(assignment), **signature},
                allow_redirects=False,
                trace_request_ctx=call,
            ) as response:
                call.status = response.status
                return await _outcome(url, response)
        finally:
            self._observe_call(call.status, time.monotonic() - began)


@dataclass
class _Call:
    """What is known of one POST: whether its connection had served others before; its status, once there."""

    reused: bool = False
    status: int | None = None


def _was_closed_while_idle(call: _Call, error: Exception) -> bool:
    """Whether the service hung up on an idle connection just when it was used again, so that nothing began.

    It is the only failure after which the same attempt calls again: idle connections end all the time, and a
    service that was restarted should not wait for the retry delay.
    """
    hung_up = isinstance(error, aiohttp.ServerDisconnectedError) or (
        isinstance(error, OSError) and (isinstance(error, ConnectionError) or error.errno in _HUNG_UP)
    )
    return call.reused and call.status is None and hung_up


async def _outcome(url: URL, response: aiohttp.ClientResponse) -> Completed:
    if not 200 <= response.status < 300:
        raise await _refusal(url, response)
    body = bytearray()
    await _read_up_to(response, answer.BODY_BYTES + 1, body)
    if len(body) > answer.BODY_BYTES:
        response.close()
        return answer.too_long()
    return answer.completed(response.content_type, bytes(body))


async def _refusal(url: URL, response: aiohttp.ClientResponse) -> Failed:
    asked = asked_by(response.headers, datetime.now(timezone.utc))
    return Failed(
        f"HTTP_{response.status}",
        _sentence(url, response) + asked.problem,
        await _first_part(response),
        retry=asked.retry,
        retry_after=asked.retry_after,
    )


def _sentence(url: URL, response: aiohttp.ClientResponse) -> str:
    sentence = f"POST {shown(url)} answered {response.status} {_reason(response)}".rstrip()
    location = response.headers.get("Location")
    if not 300 <= response.status < 400 or not location:
        return sentence
    with suppress(ValueError):
        return f"{sentence}, to {shown(url.join(URL(location)))}; redirects are not followed"
    return f"{sentence}; redirects are not followed"


def _reason(response: aiohttp.ClientResponse) -> str:
    with suppress(ValueError):  # a number that has no standard meaning
        return HTTPStatus(response.status).phrase
    return "".join(filter(str.isprintable, response.reason or ""))[:100]


async def _first_part(response: aiohttp.ClientResponse) -> str:
    body = bytearray()
    with suppress(aiohttp.ClientError):  # the status is known: a body that breaks off changes nothing
        await _read_up_to(response, DETAIL_BYTES, body)
    return body.decode(errors="replace")


async def _read_up_to(response: aiohttp.ClientResponse, limit: int, body: bytearray) -> None:
    """Adds to `body` until it has `limit` bytes."""
    while len(body) < limit and (part := await response.content.read(limit - len(body))):
        body += part


def _unreachable(url: URL, error: Exception) -> Failed:
    return Failed("HTTP_UNREACHABLE", f"POST {shown(url)} got no answer: {_cause(error)}")


def _cause(error: Exception) -> str:
    """For people. An exception's own text is not used: it may repeat the URL with a password."""
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "the TLS connection was refused (is the certificate valid for this host?)"
        case aiohttp.ServerTimeoutError():
            return f"no connection within {CONNECT_TIMEOUT:g} s"
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return "the connection was closed before an answer came"
        case AnswerTooLong():
            return f"the answer has over {RAW_BYTES // 1024**2} MiB of interim answers or chunks"
        case aiohttp.ClientPayloadError():
            return "the connection broke in the middle of the answer"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case aiohttp.ClientConnectorError():
            return "no connection could be made"
        case _:
            return f"the answer was not understood ({type(error).__name__})"


def _tell_of_reuse() -> aiohttp.TraceConfig:
    """Notes on each request's `_Call` whether its connection had served others before."""
    tracing = aiohttp.TraceConfig()

    async def reused(
        _client: aiohttp.ClientSession,
        context: SimpleNamespace,
        _params: aiohttp.TraceConnectionReuseconnParams,
    ) -> None:
        context.trace_request_ctx.reused = True

    tracing.on_connection_reuseconn.append(reused)
    return tracing
