"""Reads and steers jobs, schedules and runs: what an operator or another program does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc.aio

from carillon import audit_calls, calls, schedule_calls
from carillon.errors import from_rpc
from carillon.rpc import Call, Caller, Page, Pages, Stream, as_method

P = ParamSpec("P")
R = TypeVar("R")


def _call(
    describe: Callable[P, Call[R]],
) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, R]]:
    async def method(self: Client, /, *args: P.args, **options: P.kwargs) -> R:
        return await self._ask(describe(*args, **options))

    as_method(method, describe, "R")
    return method


def _pages(
    describe: Callable[P, Pages[R]],
) -> Callable[Concatenate[Client, P], AsyncGenerator[R, None]]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> AsyncGenerator[R, None]:
        return self._read_on(describe(*args, **options))

    as_method(method, describe, "AsyncGenerator[R, None]")
    return method


def _stream(
    describe: Callable[P, Stream[R]],
) -> Callable[Concatenate[Client, P], AsyncGenerator[R, None]]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> AsyncGenerator[R, None]:
        return self._follow(describe(*args, **options))

    as_method(method, describe, "AsyncGenerator[R, None]")
    return method


class Client(Caller[grpc.aio.Channel]):
    """A connection for admin and read calls, for use as `async with Client(...) as client:`.

    target: default `CARILLON_TARGET`, else `127.0.0.1:7007`. token: a JWT; or service_token (default:
    `CARILLON_SERVICE_TOKEN`). tls: True, or the files to use (default: `CARILLON_TLS...`, else none).
    plaintext: whether a token may go to another machine without TLS (default: `CARILLON_PLAINTEXT`, else not).
    timeout: seconds for a call. channel: one of your own instead, which the client does not close.

    Jobs are named `email-service/weekly-digest`, or by their resource names; runs by id or name. Each method returns
    the generated messages, and raises `CarillonError`. `carillon.blocking.Client` has the same methods without asyncio.
    """

    _opened_by = "async with"

    async def __aenter__(self) -> Client:
        self._open(self._connection.open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        if (channel := self._leave()) is not None:
            await channel.close()

    register_jobs = _call(calls.register_jobs)

    get_job = _call(calls.get_job)
    list_jobs = _pages(calls.list_jobs)
    update_job = _call(calls.update_job)
    reset_job_overrides = _call(calls.reset_job_overrides)
    pause_job = _call(calls.pause_job)
    resume_job = _call(calls.resume_job)
    trigger_job = _call(calls.trigger_job)
    get_job_stats = _call(calls.get_job_stats)

    backfill_job = _call(calls.backfill_job)
    get_backfill = _call(calls.get_backfill)
    list_backfills = _pages(calls.list_backfills)
    cancel_backfill = _call(calls.cancel_backfill)

    get_schedule = _call(schedule_calls.get_schedule)
    list_schedules = _pages(schedule_calls.list_schedules)
    put_schedule = _call(schedule_calls.put_schedule)
    delete_schedule = _call(schedule_calls.delete_schedule)
    pause_schedule = _call(schedule_calls.pause_schedule)
    resume_schedule = _call(schedule_calls.resume_schedule)
    run_schedule = _call(schedule_calls.run_schedule)
    preview_occurrences = _call(schedule_calls.preview_occurrences)
    list_ledger = _pages(schedule_calls.list_ledger)

    get_tenant = _call(schedule_calls.get_tenant)
    put_tenant = _call(schedule_calls.put_tenant)
    remove_tenant = _call(schedule_calls.remove_tenant)

    get_run = _call(calls.get_run)
    list_runs = _pages(calls.list_runs)
    watch_runs = _stream(calls.watch_runs)
    list_attempts = _call(calls.list_attempts)
    list_items = _pages(calls.list_items)
    cancel_run = _call(calls.cancel_run)
    retry_run = _call(calls.retry_run)

    list_audit_events = _pages(audit_calls.list_audit_events)
    get_audit_head = _call(audit_calls.get_audit_head)
    verify_audit_trail = _call(audit_calls.verify_audit_trail)

    async def _ask(self, call: Call[R]) -> R:
        try:
            answer = await self._start(call, self._timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return call.read(answer)

    async def _read_on(self, pages: Pages[R]) -> AsyncGenerator[R, None]:
        call: Call[Page[R]] | None = pages.first
        while call is not None:
            page = await self._ask(call)
            for found in page.found:
                yield found
            call = page.following

    async def _follow(self, stream: Stream[R]) -> AsyncGenerator[R, None]:
        answers = self._start(stream, None)
        try:
            async for answer in answers:
                yield stream.read(answer)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            answers.cancel()
