"""Carillon for programs without asyncio: the calls of `carillon.Client`, and registering."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import grpc

from carillon import audit_calls, calls, schedule_calls
from carillon.errors import from_rpc
from carillon.rpc import CALL_SECONDS, Call, Caller, Page, Pages, Stream, as_method

if TYPE_CHECKING:
    from carillon.jobs import Jobs
    from carillon.v1 import registry_service_pb2

P = ParamSpec("P")
R = TypeVar("R")


def _call(describe: Callable[P, Call[R]]) -> Callable[Concatenate[Client, P], R]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> R:
        return self._ask(describe(*args, **options))

    as_method(method, describe, "R")
    return method


def _pages(describe: Callable[P, Pages[R]]) -> Callable[Concatenate[Client, P], Generator[R, None, None]]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Generator[R, None, None]:
        return self._read_on(describe(*args, **options))

    as_method(method, describe, "Generator[R, None, None]")
    return method


def _stream(describe: Callable[P, Stream[R]]) -> Callable[Concatenate[Client, P], Generator[R, None, None]]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Generator[R, None, None]:
        return self._follow(describe(*args, **options))

    as_method(method, describe, "Generator[R, None, None]")
    return method


class Client(Caller[grpc.Channel]):
    """`carillon.Client` without asyncio, for use as `with blocking.Client(...) as client:`.

    The arguments and errors are the same; each method waits and returns what the other's awaits. Threads may share
    one. A watch that is left early is ended with `close()`.
    """

    _opened_by = "with"

    def __enter__(self) -> Client:
        self._open(self._connection.open_blocking)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        if (channel := self._leave()) is not None:
            channel.close()

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

    def _ask(self, call: Call[R]) -> R:
        try:
            answer = self._start(call, self._timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return call.read(answer)

    def _read_on(self, pages: Pages[R]) -> Generator[R, None, None]:
        call: Call[Page[R]] | None = pages.first
        while call is not None:
            page = self._ask(call)
            yield from page.found
            call = page.following

    def _follow(self, stream: Stream[R]) -> Generator[R, None, None]:
        answers = self._start(stream, None)
        try:
            for answer in answers:
                yield stream.read(answer)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            answers.cancel()


def register(
    jobs: Jobs, *, validate_only: bool = False, allow_mass_removal: bool = False, timeout: float = CALL_SECONDS
) -> registry_service_pb2.RegisterJobsResponse:
    """`jobs.register(...)` without asyncio: registers all jobs at once, and answers what changed."""
    manifest = jobs.manifest(validate_only=validate_only, allow_mass_removal=allow_mass_removal)
    with Client.through(jobs.connection, timeout=timeout) as client:
        return client.register_jobs(manifest)
