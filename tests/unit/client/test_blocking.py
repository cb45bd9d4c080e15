"""The blocking client's calls over gRPC's testing channel and clock: what it sends, and what comes of the answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import grpc
import grpc_testing
import pytest
from carillon import CarillonError, InvalidRequest, NotFound, SchedulerUnavailable, Violation, blocking
from carillon.v1 import (
    audit_service_pb2,
    job_service_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
    schedule_service_pb2,
)
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.unit.client import audit_call_cases, call_cases, schedule_call_cases
from tests.unit.client.call_cases import RUN, SINCE, Case
from tests.unit.client.test_calls import described

SERVICES = {
    service.name: service
    for file in (registry_service_pb2, job_service_pb2, schedule_service_pb2, run_service_pb2, audit_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
UNARY = [*call_cases.UNARY, *schedule_call_cases.UNARY, *audit_call_cases.UNARY]
PAGES = [*call_cases.PAGES, *schedule_call_cases.PAGES, *audit_call_cases.PAGES]
SAFETY_SECONDS = 60.0
TIMEOUT = 5.0


def in_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
    """Calls it in a daemon thread, so that one that waits for ever fails its test, and ends with the test run."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*args, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


class FakeChannel:
    """gRPC's testing channel, which heeds no deadline by itself: it is kept here for the test to see."""

    def __init__(self) -> None:
        self.clock = grpc_testing.strict_fake_time(0)
        self.timeouts: queue.Queue[float | None] = queue.Queue()
        self._fake = grpc_testing.channel(SERVICES.values(), self.clock)

    def unary_unary(self, path: str, **_serializers: Any) -> Any:
        return self._keeping(self._fake.unary_unary(path))

    def unary_stream(self, path: str, **_serializers: Any) -> Any:
        return self._keeping(self._fake.unary_stream(path))

    def take(self, service: str, method: str) -> tuple[dict[str, str], Any, Any]:
        """The metadata, the request and the server's end of a call that the client has made, or is about to make."""
        described = SERVICES[service].methods_by_name[method]
        taken = self._fake.take_unary_stream if described.server_streaming else self._fake.take_unary_unary
        metadata, request, rpc = in_thread(taken, described).result(SAFETY_SECONDS)
        return dict(metadata), request, rpc

    def _keeping(self, method: Any) -> Any:
        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            self.timeouts.put(timeout)
            return method(request, timeout=timeout, metadata=metadata)

        return call


@pytest.fixture
def channel() -> FakeChannel:
    return FakeChannel()


@pytest.fixture
def client(channel: FakeChannel) -> blocking.Client:
    opened = blocking.Client(token="a.b.c", timeout=TIMEOUT, channel=cast(grpc.Channel, channel))
    return opened.__enter__()


def test_every_call_is_tried_here() -> None:
    assert {case.name for case in [*UNARY, *PAGES]} | {"watch_runs"} == set(described())


@pytest.mark.parametrize("case", UNARY, ids=lambda case: case.name)
def test_a_call_sends_its_request_and_returns_what_is_asked_for(
    channel: FakeChannel, client: blocking.Client, case: Case
) -> None:
    asked = in_thread(getattr(client, case.name), *case.args, **case.options)
    metadata, request, rpc = channel.take(*case.rpc)
    assert request == case.request
    assert metadata["authorization"] == "Bearer a.b.c"
    assert channel.timeouts.get_nowait() == TIMEOUT
    rpc.terminate(case.answer, (), grpc.StatusCode.OK, "")
    assert asked.result(SAFETY_SECONDS) == case.result


@pytest.mark.parametrize("case", PAGES, ids=lambda case: case.name)
def test_a_list_runs_over_all_pages_each_with_the_whole_timeout(
    channel: FakeChannel, client: blocking.Client, case: Case
) -> None:
    asked = in_thread(lambda: list(getattr(client, case.name)(*case.args, **case.options)))
    for token, following in (("", "2"), ("2", "")):
        _, request, rpc = channel.take(*case.rpc)
        assert request.page_token == token
        request.page_token = ""
        assert request == case.request
        assert channel.timeouts.get_nowait() == TIMEOUT
        answer = type(case.answer)()
        answer.CopyFrom(case.answer)
        answer.next_page_token = following
        rpc.terminate(answer, (), grpc.StatusCode.OK, "")
    assert asked.result(SAFETY_SECONDS) == case.result * 2


def test_a_page_is_asked_for_when_it_is_needed(channel: FakeChannel, client: blocking.Client) -> None:
    runs = client.list_runs()
    first = in_thread(next, runs)
    _, _, rpc = channel.take("RunService", "ListRuns")
    answer = run_service_pb2.ListRunsResponse(runs=[RUN], next_page_token="2")
    rpc.terminate(answer, (), grpc.StatusCode.OK, "")
    assert first.result(SAFETY_SECONDS) == RUN
    runs.close()
    assert channel.timeouts.qsize() == 1


def test_a_call_that_makes_runs_can_be_repeated_safely_unless_it_is_told_how(
    channel: FakeChannel, client: blocking.Client
) -> None:
    calls: list[tuple[tuple[str, str], Callable[[], Any]]] = [
        (("JobService", "TriggerJob"), lambda: client.trigger_job("kpi/sync")),
        (("JobService", "BackfillJob"), lambda: client.backfill_job("kpi/sync", SINCE, SINCE)),
        (("ScheduleService", "RunSchedule"), lambda: client.run_schedule("kpi/sync")),
        (("RunService", "RetryRun"), lambda: client.retry_run("1")),
    ]
    seen = set()
    for rpc, call in calls * 2:
        asked = in_thread(call)
        _, request, answering = channel.take(*rpc)
        answering.terminate(None, (), grpc.StatusCode.UNAVAILABLE, "")
        assert isinstance(asked.exception(SAFETY_SECONDS), SchedulerUnavailable)
        seen.add(request.request_id)
    assert len(seen) == 8
    assert "" not in seen


def test_a_watch_gives_each_answer_as_it_comes_and_has_no_deadline(
    channel: FakeChannel, client: blocking.Client
) -> None:
    watch = client.watch_runs(run="1")
    states = [run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING]
    seen = in_thread(next, watch)
    _, request, rpc = channel.take("RunService", "WatchRuns")
    assert request == run_service_pb2.WatchRunsRequest(run="runs/1")
    assert channel.timeouts.get_nowait() is None
    for state in states:
        rpc.send_response(run_service_pb2.WatchRunsResponse(run=run_pb2.Run(name="runs/1", state=state)))
        assert seen.result(SAFETY_SECONDS).state == state
        seen = in_thread(next, watch, "the end")
    rpc.terminate((), grpc.StatusCode.OK, "")
    assert seen.result(SAFETY_SECONDS) == "the end"


def test_a_watch_that_is_left_early_is_cancelled(channel: FakeChannel, client: blocking.Client) -> None:
    watch = client.watch_runs(job="kpi/sync")
    seen = in_thread(next, watch)
    _, _, rpc = channel.take("RunService", "WatchRuns")
    rpc.send_response(run_service_pb2.WatchRunsResponse(run=RUN))
    seen.result(SAFETY_SECONDS)
    watch.close()
    in_thread(rpc.cancelled).result(SAFETY_SECONDS)


def test_a_watch_that_breaks_raises_as_calls_do(channel: FakeChannel, client: blocking.Client) -> None:
    seen = in_thread(next, client.watch_runs(job="kpi/sync"))
    _, _, rpc = channel.take("RunService", "WatchRuns")
    rpc.terminate((), grpc.StatusCode.NOT_FOUND, "there is no such job")
    with pytest.raises(NotFound, match="there is no such job"):
        seen.result(SAFETY_SECONDS)


def test_an_error_brings_the_details_that_the_scheduler_attached(channel: FakeChannel, client: blocking.Client) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="one field is wrong")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INVALID_FIELDS", metadata={"run": "runs/1"}))
    status.details.add().Pack(
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="cron", description="is none")]
        )
    )
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2)))
    asked = in_thread(client.update_job, "kpi/sync", cron="x")
    _, _, rpc = channel.take("JobService", "UpdateJob")
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    rpc.terminate(None, trailing, grpc.StatusCode.INVALID_ARGUMENT, status.message)
    with pytest.raises(InvalidRequest) as raised:
        asked.result(SAFETY_SECONDS)
    error = raised.value
    assert (error.code, error.reason, error.message) == ("INVALID_ARGUMENT", "INVALID_FIELDS", "one field is wrong")
    assert (error.violations, error.metadata) == ((Violation("cron", "is none"),), {"run": "runs/1"})
    assert error.retry_after == 2


def test_a_code_that_has_no_error_of_its_own_is_still_carillons(channel: FakeChannel, client: blocking.Client) -> None:
    asked = in_thread(client.get_job, "kpi/sync")
    _, _, rpc = channel.take("JobService", "GetJob")
    rpc.terminate(None, (), grpc.StatusCode.DATA_LOSS, "")
    with pytest.raises(CarillonError, match="DATA_LOSS: the scheduler gave no reason"):
        asked.result(SAFETY_SECONDS)


def test_a_call_ends_at_its_deadline(channel: FakeChannel, client: blocking.Client) -> None:
    asked = in_thread(client.get_job, "kpi/sync")
    _, _, rpc = channel.take("JobService", "GetJob")
    expire = (None, (), grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    channel.clock.call_in(lambda: rpc.terminate(*expire), channel.timeouts.get_nowait())
    channel.clock.sleep_for(TIMEOUT - 0.1)
    assert not asked.done()
    channel.clock.sleep_for(0.2)
    with pytest.raises(SchedulerUnavailable, match="DEADLINE_EXCEEDED: Deadline Exceeded"):
        asked.result(SAFETY_SECONDS)


def test_what_is_wrong_is_said_before_anything_is_sent(channel: FakeChannel, client: blocking.Client) -> None:
    with pytest.raises(ValueError, match="'sync' names no job; write 'email-service/weekly-digest'"):
        client.get_job("sync")
    with pytest.raises(ValueError, match="'broken' is none of PENDING"):
        client.list_runs(states=["broken"])
    with pytest.raises(ValueError, match="watch_runs needs a job, a schedule or a run"):
        client.watch_runs()
    with pytest.raises(ValueError, match="needs a job, or a timing such as cron='0 9"):
        client.preview_occurrences()
    with pytest.raises(ValueError, match="tenant and id, or a proposed timing, not both"):
        client.preview_occurrences("kpi/sync", tenant="acme", cron="@daily")
    with pytest.raises(TypeError, match="preview_occurrences has no option 'crn'"):
        client.preview_occurrences("kpi/sync", crn="@daily")  # type: ignore[call-arg] # as a slip would have it
    with pytest.raises(ValueError, match="resume_job: catch_up must be 'none', 'latest' or 'all', not 'newest'"):
        client.resume_job("kpi/sync", catch_up="newest")  # type: ignore[arg-type] # the same
    with pytest.raises(ValueError, match="'lost' is none of COMPLETED"):
        client.list_ledger("kpi/sync", outcomes=["lost"])
    with pytest.raises(ValueError, match="since must say its time zone"):
        client.backfill_job("kpi/sync", SINCE.replace(tzinfo=None), SINCE)
    assert channel.timeouts.empty()
