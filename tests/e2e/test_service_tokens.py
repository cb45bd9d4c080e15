"""Service tokens by the command line, on two replicas that are processes of their own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import carillon
import grpc
import pytest
from carillon.v1 import work_pb2, worker_service_pb2, worker_service_pb2_grpc
from typer.testing import CliRunner

from scheduler_service.__main__ import cli
from tests import canary
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, ROOT, Cluster, Scheduler, environment_without_carillon, eventually


async def tokens(urls: DatabaseUrls, *arguments: str) -> tuple[int, str, str]:
    """`python -m scheduler_service tokens ...` with the database's URL and no other setting: exit code, stdout and
    stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "scheduler_service", "tokens", *arguments),
        cwd=ROOT,
        env=environment_without_carillon() | {"CARILLON_DATABASE_URL": urls.api, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def created(urls: DatabaseUrls, *arguments: str) -> str:
    code, out, err = await tokens(urls, *arguments)
    assert code == 0, err
    token = out.removesuffix("\n")
    assert len(token.split()) == 1
    assert token.partition(".")[2] not in err
    return token


async def is_accepted(scheduler: Scheduler, token: str) -> bool:
    async with carillon.Client(scheduler.target, service_token=token) as client:
        try:
            async for _ in client.list_jobs():
                pass
        except carillon.NotAuthenticated:
            return False
        return True


async def everywhere(cluster: Cluster, token: str, *, accepted: bool, what: str) -> None:
    """Waits until every replica accepts or refuses the token, and says how long that took."""
    began = time.monotonic()
    for scheduler in cluster.schedulers.values():
        await eventually(lambda at=scheduler: is_accepted(at, token), lambda is_so: is_so is accepted)  # type: ignore[misc]
    sys.stderr.write(f"\n{what}: known on {len(cluster.schedulers)} replicas after {time.monotonic() - began:.2f} s\n")


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls) as cluster:
        await asyncio.gather(cluster.start_scheduler("one"), cluster.start_scheduler("two"))
        yield cluster


async def test_what_is_done_with_a_token_is_known_on_every_replica(cluster: Cluster) -> None:
    urls = cluster.urls
    first = await created(urls, "create", "email-service", "--scopes", "read", "--description", "for a test")
    await everywhere(cluster, first, accepted=True, what="created")
    second = await created(urls, "rotate", first.partition(".")[0], "--overlap", "2s")
    await everywhere(cluster, second, accepted=True, what="rotated")
    await everywhere(cluster, first, accepted=False, what="expired after 2 s")
    code, out, err = await tokens(urls, "revoke", second.partition(".")[0])
    assert (code, out) == (0, ""), err
    await everywhere(cluster, second, accepted=False, what="revoked")

    async def listed() -> str:
        return (await tokens(urls, "list", "--json"))[1]

    # Replicas write down each few seconds what was used.
    shown = await eventually(listed, lambda shown: json.loads(shown)[0]["last_used_at"] is not None)
    old, new = json.loads(shown)
    assert (old["id"], new["id"], new["replaces"]) == (first.partition(".")[0], second.partition(".")[0], old["id"])
    assert new["revoked_at"] is not None
    assert old["scopes"] == ["read"]
    _, table, _ = await tokens(urls, "list")
    for token in (first, second):
        token_id, _, secret = token.partition(".")
        assert token_id in table
        assert secret not in table + shown


async def test_the_work_stream_of_a_revoked_token_ends_on_its_replica(cluster: Cluster) -> None:
    token = await created(cluster.urls, "create", "*")
    one = cluster.schedulers["one"]
    async with grpc.aio.insecure_channel(one.target) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)

        async def open_stream() -> Any:
            call = stub.Work(metadata=(("x-service-token", token),))
            hello = work_pb2.Hello(session_id=uuid4().bytes, worker="w", routes=["http"])
            try:
                await call.write(worker_service_pb2.WorkRequest(hello=hello))
                answer = await call.read()
            except grpc.aio.AioRpcError:
                return None
            return call if answer else None

        call: Any = await eventually(open_stream, lambda opened: opened is not None)
        began = time.monotonic()
        await tokens(cluster.urls, "revoke", token.partition(".")[0])
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    if await call.read() is grpc.aio.EOF:
                        break
                except grpc.aio.AioRpcError:
                    break
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        sys.stderr.write(f"\na revoked token's stream ended {time.monotonic() - began:.2f} s after the command began\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "Email Service"], "cannot name the service"),
        (["create", "email-service", "--scopes", "read,steer"], "'steer' is none; write some of register, trigger"),
        (["create", "*", "--scopes", "read,work"], "a token for every service (`*`) may only work"),
        (["create", "email-service", "--expires", "soon"], "'soon' is no duration"),
        (["create", "email-service", "--expires", "0d"], "more than 0 and at most 3650d"),
        (["create", "email-service", "--expires", "999999w"], "more than 0 and at most 3650d"),
        (["revoke", "nobody"], "there is no service token with the id 'nobody'"),
        (["rotate", "nobody"], "there is no service token with the id 'nobody'"),
        (["rotate", "nobody", "--overlap", "60d"], "there is no service token with the id 'nobody'"),
    ],
)
def test_wrong_input_is_a_sentence_and_2(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, arguments: list[str], says: str
) -> None:
    monkeypatch.setenv("CARILLON_DATABASE_URL", database_urls.api)
    monkeypatch.setenv("COLUMNS", "200")
    refused = CliRunner().invoke(cli, ["tokens", *arguments])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert isinstance(refused.exception, SystemExit)
    assert says in " ".join(refused.stderr.replace("│", " ").split())
    canary.check(canary.leaks(refused.stderr), "what was said")


async def test_without_its_database_a_command_says_what_it_needs(database_urls: DatabaseUrls) -> None:
    nowhere = DatabaseUrls(api="postgresql://a:hidden-password@127.0.0.1:1/x", engine="", admin="")
    code, _, err = await tokens(nowhere, "list")
    assert (code, "cannot be reached" in err, "hidden-password" in err) == (2, True, False)
    code, _, err = await tokens(DatabaseUrls("", "", ""), "list")
    assert (code, err) == (2, "CARILLON_DATABASE_URL is empty; write postgresql://...\n")
