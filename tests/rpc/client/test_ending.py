"""What a scheduler said last is known, also where gRPC's own client covers it with an error of its own making."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from carillon.ending import Ending
from carillon.v1 import worker_service_pb2, worker_service_pb2_grpc

STREAMS = 100


class EndsWhileWrittenTo(worker_service_pb2_grpc.WorkerServiceServicer):
    """Ends each stream in the middle of what is written to it."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK

    async def Work(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in request_iterator:
            yield worker_service_pb2.WorkResponse()
            if self.code is not grpc.StatusCode.OK:
                await context.abort(self.code, "this is the reason", (("told", "in the trailers"),))
            return


async def write_until_it_ends(call: Any) -> None:
    while True:
        await call.write(worker_service_pb2.WorkRequest(credit=1))


async def read_until_it_ends(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


class RefusesAtOnce(worker_service_pb2_grpc.WorkerServiceServicer):
    """Refuses each stream without looking at what is written to it, as a scheduler does that does not know a token."""

    async def Work(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token is not known")
        yield


@asynccontextmanager
async def serving(servicer: worker_service_pb2_grpc.WorkerServiceServicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OK], ids=lambda code: code.name)
async def test_what_was_sent_is_told_and_not_what_grpc_makes_up(code: grpc.StatusCode) -> None:
    servicer = EndsWhileWrittenTo()
    servicer.code = code
    made_up = 0
    async with serving(servicer) as target, grpc.aio.insecure_channel(target) as channel:
        for _ in range(STREAMS):
            call: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work()
            ending = Ending(call)
            found = await asyncio.gather(write_until_it_ends(call), read_until_it_ends(call), return_exceptions=True)
            for error in (error for error in found if isinstance(error, grpc.aio.AioRpcError)):
                made_up += error.code() is grpc.StatusCode.INTERNAL
                sent = await ending.sent(error)
                assert sent.code() is code
                if code is not grpc.StatusCode.OK:
                    assert sent.details() == "this is the reason"
                    assert ("told", "in the trailers") in tuple(sent.trailing_metadata())
    assert made_up, "gRPC told the truth by itself each time: nothing was shown, and carillon.ending may go"


async def test_an_error_that_grpc_did_not_make_up_stays() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        call: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work()
        ending = Ending(call)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert await ending.sent(refused.value) is refused.value


async def test_a_worker_that_is_refused_before_its_hello_knows_why(start_session: Any) -> None:
    async with serving(RefusesAtOnce()) as target:
        sessions = [start_session(target=target) for _ in range(STREAMS)]
        for session in sessions:
            assert await session.wait_until(lambda state: bool(state.last_error), 60)
        assert {session.state().last_error for session in sessions} == {"UNAUTHENTICATED: this token is not known"}
