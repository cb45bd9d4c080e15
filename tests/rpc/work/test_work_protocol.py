"""Who may work, and what a stream ends with that breaks the protocol."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
import psycopg
import pytest
from carillon.v1 import work_pb2

from scheduler_service.store.database import Database
from tests import canary
from tests.builders import MadeJob, make_live_run, make_session
from tests.credentials import accepting
from tests.rpc.work.rig import (
    EMAIL_TOKEN,
    LIVE,
    WORKER_TOKEN,
    RawWorker,
    Replica,
    a_result,
    a_worker,
    one,
    ref,
    serving,
)


@pytest.mark.parametrize(
    ("routes", "allowed"),
    [
        (["handler/email-service/weekly-digest"], True),
        (["handler/kpi-service/meta"], False),
        (["http"], False),
        (["grpc"], False),
        (["handler/email-service/weekly-digest", "http"], False),
    ],
)
async def test_a_token_of_one_service_serves_only_its_handlers(
    replica: Replica, routes: list[str], allowed: bool
) -> None:
    async with a_worker(replica, token=EMAIL_TOKEN) as worker:
        await worker.hello(routes=routes)
        if allowed:
            await worker.expect("welcome")
        else:
            assert (await worker.status())[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_nobody_anonymous_works(replica: Replica) -> None:
    async with a_worker(replica, token="") as worker:
        await worker.hello()
        assert (await worker.status())[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_another_principal_cannot_take_over_a_session(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    async with a_worker(replica, token=EMAIL_TOKEN, session_id=worker.session_id) as thief:
        await thief.hello(routes=["handler/email-service/weekly-digest"])
        assert (await thief.status())[0] is grpc.StatusCode.FAILED_PRECONDITION
    await worker.beat(1)
    await worker.expect("heartbeat_ack")


async def test_a_session_goes_on_with_the_token_that_took_its_tokens_place(
    database: Database, admin: psycopg.Connection[Any]
) -> None:
    rotated = canary.token("worker-rotated")
    both = accepting(f"*={WORKER_TOKEN},*={rotated}")
    async with serving(Replica(database), both) as replica, a_worker(replica) as worker:
        await worker.welcomed()
        async with a_worker(replica, token=rotated, session_id=worker.session_id) as later:
            await later.welcomed(held=[7])
            assert (await worker.status())[0] is grpc.StatusCode.ABORTED
            assert one(admin, "select stream from carillon.sessions") == 2


HELLO = {"session_id": bytes(range(16)), "worker": "w", "routes": ["http"]}
REF = {"run_id": bytes(range(16)), "attempt": 1, "claim_id": 1}


@pytest.mark.parametrize(
    ("hello", "names"),
    [
        ({"session_id": b"short"}, "hello.session_id"),
        ({"routes": []}, "hello.routes"),
        ({"routes": ["http"] * 1001}, "hello.routes"),
        ({"routes": ["http", "handler/kpi"]}, "hello.routes[1]"),
        ({"routes": ["handler/kpi/a b"]}, "hello.routes[0]"),
        ({"worker": ""}, "hello.worker"),
        ({"worker": "x" * 201}, "hello.worker"),
    ],
)
async def test_a_malformed_hello_is_refused(worker: RawWorker, hello: dict[str, Any], names: str) -> None:
    await worker.send(hello=work_pb2.Hello(**(HELLO | hello)))
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(names)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ({"hello": HELLO}, "hello"),
        ({"credit": -1}, "credit"),
        ({"credit": 100_001}, "credit"),
        ({"starts": {"starts": [{"attempt": REF | {"run_id": b"1"}}]}}, "attempt"),
        ({"progress": {"reports": [{"attempt": REF | {"claim_id": 0}}]}}, "attempt"),
        ({"items": {"results": [{"attempt": REF | {"attempt": 0}, "key": "a"}]}}, "attempt"),
        ({"results": {"results": [{"attempt": REF}]}}, "results.outcome"),
        ({"results": {"results": [{"attempt": REF, "outcome": 9}]}}, "results.outcome"),
    ],
)
async def test_a_message_against_the_protocol_ends_the_stream(
    worker: RawWorker, message: dict[str, Any], names: str
) -> None:
    await worker.welcomed()
    await worker.send(**message)
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(names)


async def test_the_first_message_must_be_hello(worker: RawWorker) -> None:
    await worker.beat(1)
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "hello: must be the first message of a stream"


async def test_hello_must_come_in_time(database: Database) -> None:
    async with serving(Replica(database, hello_timeout=0.0)) as replica, a_worker(replica) as worker:
        with suppress(grpc.aio.AioRpcError):  # ended by then: `status` says how
            await worker.call.wait_for_connection()
        code, details = await worker.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("hello: did not come within 0 s")


async def test_a_worker_cannot_report_for_another_session(
    worker: RawWorker, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = make_live_run(admin, job)
    other = make_session(admin)
    admin.execute(
        "update carillon.live_runs set session_id = %s, claim_id = 5, claimed_at = now(), deadline = now()", [other]
    )
    await worker.welcomed()
    assert await worker.verdict(a_result(ref(run_id.bytes, 5))) == work_pb2.RESULT_VERDICT_STALE
    assert one(admin, LIVE) == 1
