"""Route `http`: what the service receives, and what its answers come to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.ports import silent_port
from tests.unit.worker_service.conftest import A_RUN, Caller, Handler, Serve
from worker_service.targets.answer import BODY_BYTES
from worker_service.targets.http import DETAIL_BYTES


def answering(status: int = 200, **answer: Any) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=status, **answer)

    return handler


async def test_the_service_receives_the_run_as_json(caller: Caller, serve: Serve) -> None:
    received: list[tuple[str, str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        received.append((request.method, request.path_qs, await request.json()))
        return web.Response()

    await caller.execute(await serve(handler) + "/api/jobs/weekly-digest?dry=1")
    [(method, path, body)] = received
    assert (method, path) == ("POST", "/api/jobs/weekly-digest?dry=1")
    assert body == {
        "run": str(A_RUN.run_id),
        "service": "email-service",
        "job": "weekly-digest",
        "tenant": "acme-in",
        "attempt": 2,
        "claim": 77,
        "max_attempts": 3,
        "scheduled_time": "2026-11-23T14:00:00Z",
        "trigger_source": "SCHEDULE",
        "labels": {"job_type": "digest"},
        "payload": {"batchSize": 100},
    }


async def test_headers_let_the_service_do_it_once_and_in_time(caller: Caller, serve: Serve) -> None:
    seen: dict[str, str] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(request.headers)
        return web.Response()

    await caller.execute(await serve(handler))
    assert seen["Idempotency-Key"] == str(A_RUN.run_id)
    assert seen["Carillon-Attempt"] == "2"
    assert seen["Carillon-Claim"] == "77"
    assert seen["Carillon-Timeout"] == "90.5"
    assert seen["Content-Type"] == "application/json"
    assert seen["User-Agent"].startswith("carillon-worker/")
    assert "Authorization" not in seen


async def test_an_empty_payload_is_an_empty_object(caller: Caller, serve: Serve) -> None:
    bodies: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.Response()

    await caller.execute(await serve(handler), payload_json="")
    assert bodies[0]["payload"] == {}


async def test_a_2xx_answer_completes_with_what_it_reports(caller: Caller, serve: Serve) -> None:
    answer = {
        "items": {"processed": 12, "succeeded": 11, "failed": 1},
        "metrics": {"seconds": 1.5},
        "metadata": {"batch": "b-7"},
    }
    completed = await caller.execute(
        await serve(answering(202, text=json.dumps(answer), content_type="application/json"))
    )
    assert completed.items is not None
    assert (completed.items.processed, completed.items.succeeded, completed.items.failed) == (12, 11, 1)
    assert completed.metrics == {"seconds": 1.5}
    assert completed.metadata == {"batch": "b-7"}
    assert caller.calls == [202]


async def test_a_2xx_answer_with_no_body_completes(caller: Caller, serve: Serve) -> None:
    completed = await caller.execute(await serve(answering(204)))
    assert completed.items is None
    assert not completed.metadata


async def test_another_status_fails_with_the_first_part_of_the_body(caller: Caller, serve: Serve) -> None:
    failed = await caller.failure(await serve(answering(503, text="overloaded " * 1000)) + "/jobs/a?key=secret")
    assert failed.code == "HTTP_503"
    assert failed.message.startswith("POST http://127.0.0.1:")
    assert failed.message.endswith("/jobs/a answered 503 Service Unavailable")
    assert failed.detail == ("overloaded " * 1000)[:DETAIL_BYTES]
    assert caller.calls == [503]


async def test_retry_after_says_when_the_next_attempt_is_due(caller: Caller, serve: Serve) -> None:
    for status in (429, 503, 500):
        failed = await caller.failure(await serve(answering(status, headers={"Retry-After": "120"})))
        assert (failed.code, failed.retry, failed.retry_after) == (f"HTTP_{status}", True, 120)


async def test_a_service_may_say_that_a_failure_is_final(caller: Caller, serve: Serve) -> None:
    headers = {"Carillon-Retry": "false", "Retry-After": "120"}
    failed = await caller.failure(await serve(answering(422, text="no such brand", headers=headers)))
    assert (failed.code, failed.detail, failed.retry, failed.retry_after) == ("HTTP_422", "no such brand", False, None)


async def test_a_wish_that_is_not_understood_is_told(caller: Caller, serve: Serve) -> None:
    failed = await caller.failure(await serve(answering(503, headers={"Carillon-Retry": "no", "Retry-After": "5m"})))
    assert (failed.retry, failed.retry_after) == (True, None)
    assert failed.message.endswith(
        " answered 503 Service Unavailable; its Carillon-Retry 'no' is neither true nor false; "
        "its Retry-After '5m' is neither seconds nor a date"
    )


async def test_a_redirect_is_not_followed_and_says_so(caller: Caller, serve: Serve) -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    failed = await caller.failure(await serve(handler) + "/here")
    assert failed.code == "HTTP_307"
    assert "/elsewhere; redirects are not followed" in failed.message
    assert paths == ["/here"]


async def test_nobody_listening_is_said_in_words(caller: Caller) -> None:
    with silent_port() as port:
        failed = await caller.failure(f"http://user:password@127.0.0.1:{port}/jobs/a")
    assert failed.code == "HTTP_UNREACHABLE"
    assert failed.message == f"POST http://127.0.0.1:{port}/jobs/a got no answer: connection refused"
    assert caller.calls == [None]


async def test_a_name_with_several_addresses_where_nobody_listens_is_said_in_words(caller: Caller) -> None:
    with silent_port() as port:
        failed = await caller.failure(f"http://localhost:{port}/jobs/a")
    assert failed.message.endswith("got no answer: connection refused")


async def test_a_host_that_does_not_exist_is_said_in_words(caller: Caller) -> None:
    failed = await caller.failure("http://no-such-host.invalid/jobs/a")
    assert failed.code == "HTTP_UNREACHABLE"
    assert failed.message.endswith("the host name is not known")


@pytest.mark.parametrize("endpoint", ["ftp://host/x", "http:///x", "/relative", "http://u:secret@host:99999/x"])
async def test_an_endpoint_that_is_no_address_fails(caller: Caller, endpoint: str) -> None:
    failed = await caller.failure(endpoint)
    assert failed.code == "TARGET_NOT_ALLOWED"
    assert "secret" not in failed.message


async def test_a_service_that_hangs_up_instead_of_answering_fails(caller: Caller, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    failed = await caller.failure(await serve(handler))
    assert failed.code == "HTTP_UNREACHABLE"
    assert failed.message.endswith("the connection was closed before an answer came")
    assert caller.calls == [None]


async def test_an_answer_that_breaks_off_fails(caller: Caller, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    failed = await caller.failure(await serve(handler))
    assert failed.code == "HTTP_UNREACHABLE"
    assert failed.message.endswith("the connection broke in the middle of the answer")
    assert caller.calls == [200]


async def test_cancelling_closes_the_connection(caller: Caller, serve: Serve) -> None:
    began, aborted = asyncio.Event(), asyncio.Event()

    async def handler(_request: web.Request) -> web.Response:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            aborted.set()
        return web.Response()

    call = asyncio.create_task(caller.execute(await serve(handler)))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(aborted.wait(), 60)


async def test_cancelling_in_the_middle_of_the_answer_closes_the_connection(caller: Caller, serve: Serve) -> None:
    answered, aborted = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        answered.set()
        try:
            await asyncio.Event().wait()
        finally:
            aborted.set()
        return response

    call = asyncio.create_task(caller.execute(await serve(handler)))
    await answered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(aborted.wait(), 60)


@pytest.mark.parametrize("status", [200, 500])
async def test_an_endless_body_is_read_in_part_only(caller: Caller, serve: Serve, status: int) -> None:
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
        finally:
            ended.set()

    url = await serve(handler)
    if status == 200:
        completed = await caller.execute(url)
        assert completed.metadata["answer_problem"] == "the answer is longer than 256 KiB and was not read"
    else:
        assert len((await caller.failure(url)).detail) == DETAIL_BYTES
    await asyncio.wait_for(ended.wait(), 60)


async def test_an_answer_of_just_the_limit_is_read(caller: Caller, serve: Serve) -> None:
    text = '{"items": {"succeeded": 1}}'.ljust(BODY_BYTES)
    completed = await caller.execute(await serve(answering(text=text, content_type="application/json")))
    assert completed.items is not None
    assert completed.items.processed == 1


class HangsUpOnReuse:
    """A service that closes each connection when a second request comes over it, without an answer."""

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer_once(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the caller closed the connection: all is well
        finally:
            writer.close()
            await writer.wait_closed()

    async def _answer_once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            self.requests += 1
            if number == 0:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()


@pytest.fixture
async def hangs_up_on_reuse() -> AsyncIterator[tuple[HangsUpOnReuse, str]]:
    service = HangsUpOnReuse()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    async with server:
        yield service, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.usefixtures("patient")
async def test_an_idle_connection_that_was_closed_costs_no_attempt(
    caller: Caller, hangs_up_on_reuse: tuple[HangsUpOnReuse, str]
) -> None:
    service, url = hangs_up_on_reuse
    await caller.execute(url)
    await caller.execute(url)
    assert caller.calls == [204, None, 204]
    assert service.requests == 3
