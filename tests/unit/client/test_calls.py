"""The clients' methods as people and type checkers see them: derived from one description, with nothing lost."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Generator
from typing import assert_type

import pytest
from carillon import Client, audit_calls, blocking, calls, schedule_calls
from carillon.v1 import backfill_pb2, job_pb2, ledger_pb2, registry_service_pb2, run_pb2, schedule_pb2

MODULES = (calls, schedule_calls, audit_calls)


def described() -> list[str]:
    return [
        name
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


@pytest.mark.parametrize("kind", [Client, blocking.Client])
def test_both_clients_offer_every_call_with_its_arguments_and_documentation(
    kind: type[Client] | type[blocking.Client],
) -> None:
    assert len(described()) > 30
    for name in described():
        description = next(found for module in MODULES if (found := getattr(module, name, None)))
        method = getattr(kind, name)
        assert method.__doc__ == description.__doc__
        assert method.__qualname__ == f"Client.{name}"
        parameters = list(inspect.signature(method).parameters.values())
        assert parameters[1:] == list(inspect.signature(description).parameters.values()), name


def test_signatures_say_what_comes_back() -> None:
    assert str(inspect.signature(blocking.Client("x").get_job)) == "(job: 'str') -> 'job_pb2.Job'"
    assert str(inspect.signature(Client("x").list_attempts)).endswith("-> 'list[run_pb2.Attempt]'")
    assert str(inspect.signature(Client("x").watch_runs)).endswith("-> 'AsyncGenerator[run_pb2.Run, None]'")
    assert inspect.iscoroutinefunction(Client("x").get_job)


# The rest is read by mypy, which runs over the tests: an ignore that is not needed is an error too.


async def the_async_client_is_typed(client: Client) -> None:
    assert_type(await client.get_job("a/b"), job_pb2.Job)
    assert_type(await client.update_job("a/b", cron="@daily", retries=3), job_pb2.Job)
    assert_type(await client.trigger_job("a/b", {"x": 1}, tenants=["t"]), list[run_pb2.Run])
    assert_type(await client.put_schedule("a/b", tenant="t", cron="@daily"), schedule_pb2.Schedule)
    assert_type((await client.resume_job("a/b", catch_up="all")).catch_up, schedule_pb2.CatchUpPlan)
    assert_type((await client.preview_occurrences(cron="@daily")).description, str)
    assert_type(client.list_ledger("a/b"), AsyncGenerator[ledger_pb2.LedgerEntry, None])
    assert_type(client.list_backfills("a/b"), AsyncGenerator[backfill_pb2.Backfill, None])
    assert_type(client.list_jobs("a"), AsyncGenerator[job_pb2.Job, None])
    assert_type(client.watch_runs(run="1"), AsyncGenerator[run_pb2.Run, None])
    async with client as opened:
        assert_type(opened, Client)
    client.get_job(1)  # type: ignore[arg-type, unused-coroutine]
    client.update_job("a/b", crom="@daily")  # type: ignore[call-arg, unused-coroutine]
    client.update_job("a/b", overlap="sometimes")  # type: ignore[arg-type, unused-coroutine]
    client.put_schedule("a/b")  # type: ignore[call-arg, unused-coroutine]


def the_blocking_client_is_typed(client: blocking.Client) -> None:
    assert_type(client.get_job("a/b"), job_pb2.Job)
    assert_type(client.update_job("a/b", cron="@daily", retries=3), job_pb2.Job)
    assert_type(client.trigger_job("a/b", {"x": 1}, tenants=["t"]), list[run_pb2.Run])
    assert_type(client.put_schedule("a/b", tenant="t", cron="@daily"), schedule_pb2.Schedule)
    assert_type(
        client.register_jobs(registry_service_pb2.RegisterJobsRequest()), registry_service_pb2.RegisterJobsResponse
    )
    assert_type(client.resume_job("a/b", catch_up="all").catch_up, schedule_pb2.CatchUpPlan)
    assert_type(client.run_schedule("a/b", tenant="t"), run_pb2.Run)
    assert_type(client.list_ledger("a/b"), Generator[ledger_pb2.LedgerEntry, None, None])
    assert_type(client.list_jobs("a"), Generator[job_pb2.Job, None, None])
    assert_type(client.watch_runs(run="1"), Generator[run_pb2.Run, None, None])
    with client as opened:
        assert_type(opened, blocking.Client)
    client.get_job(1)  # type: ignore[arg-type]
    client.update_job("a/b", crom="@daily")  # type: ignore[call-arg]
    client.update_job("a/b", overlap="sometimes")  # type: ignore[arg-type]
    client.put_schedule("a/b")  # type: ignore[call-arg]
