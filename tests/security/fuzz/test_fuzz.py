"""A short part of `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import grpc
import pytest

from scheduler_service.domain.access import Kind
from scheduler_service.domain.errors import Unauthenticated
from tests.conftest import DatabaseUrls
from tests.security.calling import ask
from tests.security.fuzz.campaign import Report, fuzz
from tests.security.fuzz.forgeries import TOKEN, Forger, Scheme, schemes, try_forgeries
from tests.security.http2 import END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, connected, grpc_call
from tests.security.world import ADMIN, World

_BASE64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


async def test_no_forgery_is_accepted_and_each_is_refused_in_the_same_way() -> None:
    verdicts = await try_forgeries(5_000, seed=3)
    assert (verdicts.tried, verdicts.accepted, verdicts.odd) == (5_000, [], [])


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.algorithm)
async def test_what_was_given_out_is_accepted_as_it_was_given_out_and_in_no_other_spelling(scheme: Scheme) -> None:
    good = Forger(scheme, random.Random(1)).good

    async def accepted(jwt: str) -> bool:
        try:
            return (await scheme.credentials.principal([("authorization", f"Bearer {jwt}")])).is_admin
        except Unauthenticated:
            return False

    # The last character of a signature may have bits that stand for nothing.
    assert [last for last in _BASE64URL if await accepted(good[:-1] + last)] == [good[-1]]
    service = await scheme.credentials.principal([("x-service-token", TOKEN)])
    assert service.kind is Kind.SERVICE


async def test_malformed_calls_leave_a_scheduler_as_it_was(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    report = await fuzz(database_urls, tmp_path, calls=3_000, seed=11)
    assert report.faults == []
    assert (report.crashes, report.internal, report.tracebacks) == (0, 0, 0)
    assert report.requests >= 3_000
    assert report.codes["INVALID_ARGUMENT"] > 100


async def test_a_path_or_a_header_that_is_no_text_does_not_end_a_scheduler(world: World) -> None:
    for path, more in ((b"/carillon.v1.JobService/\xff", ()), (b"/x", ((b"authorization", b"Bearer \xff"),))):
        async with connected(world.port) as http2:
            await http2.greet()
            headers = [(b":path", path), *(each for each in grpc_call("/x") if each[0] != b":path"), *more]
            await http2.send(HEADERS, END_HEADERS | END_STREAM, 1, block(headers))
            await http2.until(HEADERS, RST_STREAM, GOAWAY)
    answer = await ask(world.channel, "/carillon.v1.JobService/ListJobs", b"", ADMIN)
    assert answer.code is grpc.StatusCode.OK


def test_an_answer_that_tells_of_the_inside_is_a_fault() -> None:
    report = Report()
    report.look_for_traceback("a call", b'\x00Traceback (most recent call last):\n  File "/srv/x.py", line 1')
    assert report.tracebacks == 1
    report.look_for_traceback("a call", b"there is no job services/a/jobs/b, or it is not yours to see")
    assert report.tracebacks == 1
