"""A stream ends when its caller's credential stops to count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import grpc
import pytest
import time_machine
from carillon.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from prometheus_client import CollectorRegistry

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.credentials import JwtRules, ServiceToken, parse_service_tokens
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.domain.jwts import LEEWAY_SECONDS
from scheduler_service.domain.user import Role, User
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.identity.users import UserDirectory
from scheduler_service.rpc.calls import Calls, Context
from scheduler_service.rpc.expiry import ending_with
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.runs import RunService
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import builders, canary
from tests.conftest import DatabaseUrls
from tests.jwts import SECRET, signed
from tests.rpc.work import rig

PATIENCE = 60.0
TOKEN = canary.token("t1")
RULES = JwtRules(secret=SECRET)
WatchRunsRequest = run_service_pb2.WatchRunsRequest
Call = grpc.aio.UnaryStreamCall[WatchRunsRequest, run_service_pb2.WatchRunsResponse]


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def job(database_urls: DatabaseUrls) -> str:
    """A job with a run, which a watch shows as soon as it is open."""
    with builders.connect(database_urls.admin) as admin:
        made = builders.make_job(admin)
        builders.make_live_run(admin, made)
        return made.name


@asynccontextmanager
async def serving(
    service: run_service_pb2_grpc.RunServiceServicer, credentials: Credentials
) -> AsyncIterator[run_service_pb2_grpc.RunServiceAsyncStub]:
    server = grpc.aio.server(interceptors=(Calls(credentials, CallMetrics(CollectorRegistry())),))
    run_service_pb2_grpc.add_RunServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield run_service_pb2_grpc.RunServiceStub(channel)
    finally:
        await server.stop(None)


async def end_of(
    call: Call,
) -> tuple[str, str]:
    async with asyncio.timeout(PATIENCE):
        code, details = await call.code(), await call.details()
    return code.name, details or ""


async def read_all(call: Call) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_watch_ends_when_its_jwt_expires(database: Database, job: str) -> None:
    now = datetime.now(UTC)
    soon = signed(SECRET, "HS256", role="admin", exp=now.timestamp() + 60)
    async with serving(RunService(database, Wakeups()), Credentials(ServiceTokens([]), JwtVerifier(RULES))) as runs:
        short = runs.WatchRuns(WatchRunsRequest(job=job), metadata=bearer(soon))
        long = runs.WatchRuns(WatchRunsRequest(job=job), metadata=bearer(signed(SECRET, "HS256", role="admin")))
        await short.read()
        await long.read()
        with time_machine.travel(now + timedelta(seconds=60 + LEEWAY_SECONDS)):
            code, details = await end_of(short)
        assert (code, "has expired" in details) == ("UNAUTHENTICATED", True)
        assert not long.done()
        long.cancel()


class Revocable(ServiceTokens):
    """The configured tokens, of which a test can take away all."""

    def __init__(self, tokens: list[ServiceToken]) -> None:
        super().__init__(tokens)
        self.known = self._configured
        self.revoke: Callable[[], None] = self.known.clear


async def test_a_watch_ends_when_its_token_is_revoked(database: Database, job: str) -> None:
    tokens = Revocable(parse_service_tokens(f"email-service={TOKEN}"))
    async with serving(RunService(database, Wakeups()), Credentials(tokens, JwtVerifier(RULES))) as runs:
        watch = runs.WatchRuns(WatchRunsRequest(job=job), metadata=(("x-service-token", TOKEN),))
        await watch.read()
        tokens.revoke()
        code, details = await end_of(watch)
        assert (code, "was revoked" in details) == ("UNAUTHENTICATED", True)


async def test_a_watch_ends_when_its_caller_is_no_admin_any_more(database: Database, job: str) -> None:
    known = {"alice": User("alice", Role.ADMIN)}
    clock = asyncio.get_running_loop().time

    async def ask(subject: str) -> User | None:
        return known.get(subject)

    quick = UserDirectory(ask, clock=lambda: clock() * 10)
    credentials = Credentials(ServiceTokens([]), JwtVerifier(RULES, users=quick))
    async with serving(RunService(database, Wakeups()), credentials) as runs:
        watch = runs.WatchRuns(WatchRunsRequest(job=job), metadata=bearer(signed(SECRET, "HS256")))
        await watch.read()
        known.clear()
        assert (await end_of(watch))[0] == "UNAUTHENTICATED"


async def test_a_work_stream_ends_and_its_session_may_come_back(database: Database) -> None:
    tokens = Revocable(parse_service_tokens(rig.TOKENS))
    credentials = Credentials(tokens, JwtVerifier(RULES))
    async with rig.serving(rig.Replica(database), credentials) as replica, rig.a_worker(replica) as worker:
        await worker.welcomed()
        known = dict(tokens.known)
        tokens.revoke()
        code, details = await worker.status()
        assert (code, "was revoked" in details) == (grpc.StatusCode.UNAUTHENTICATED, True)
        tokens.known.update(known)
        async with rig.a_worker(replica, session_id=worker.session_id) as again:
            await again.welcomed()


class Endless(RunService):
    """Sends more than any window takes."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, Wakeups())
        self.ended = asyncio.Event()

    async def WatchRuns(
        self, request: WatchRunsRequest, context: Context
    ) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        try:
            while True:
                yield run_service_pb2.WatchRunsResponse(run=run_pb2.Run(name="x" * 100_000))
        finally:
            self.ended.set()


async def test_a_stream_that_nobody_reads_ends_too_and_says_why(database: Database) -> None:
    tokens = Revocable(parse_service_tokens(f"email-service={TOKEN}"))
    service = Endless(database)
    async with serving(service, Credentials(tokens, JwtVerifier(RULES))) as runs:
        watch = runs.WatchRuns(WatchRunsRequest(), metadata=(("x-service-token", TOKEN),))
        await watch.read()
        tokens.revoke()
        await asyncio.wait_for(service.ended.wait(), PATIENCE)
        with pytest.raises(grpc.aio.AioRpcError, match="was revoked"):
            await asyncio.wait_for(read_all(watch), PATIENCE)


async def not_sending(_: Unauthenticated) -> NoReturn:
    raise AssertionError("nothing is being sent")


async def test_what_waits_is_interrupted() -> None:
    holds = True
    began = asyncio.Event()

    async def wait() -> None:
        async with ending_with(Principal(Kind.WORKER, name="w"), lambda _: holds, not_sending, every=0.001):
            began.set()
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await began.wait()
    await asyncio.sleep(0)
    assert not waiting.done()
    holds = False
    with pytest.raises(Unauthenticated):
        await asyncio.wait_for(waiting, PATIENCE)


async def test_what_ends_by_itself_is_left_alone() -> None:
    looked = 0

    def holds(_: Principal) -> bool:
        nonlocal looked
        looked += 1
        return False

    async with ending_with(Principal(Kind.WORKER, name="w"), holds, not_sending, every=60):
        pass
    with pytest.raises(TimeoutError, match="its own"):
        async with ending_with(Principal(Kind.WORKER, name="w"), holds, not_sending, every=60):
            raise TimeoutError("its own")
    assert looked == 0


async def test_a_credential_that_has_expired_ends_it_whatever_holds() -> None:
    principal = Principal(Kind.ADMIN, name="a", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(Unauthenticated, match="has expired"):
        async with ending_with(principal, lambda _: True, not_sending, every=0.001):
            await asyncio.wait_for(asyncio.Event().wait(), PATIENCE)
