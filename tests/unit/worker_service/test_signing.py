"""Calls are signed with the keys of the service that is called."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from carillon import Jobs, SignatureInvalid
from carillon.signing import SigningKeys
from structlog.testing import capture_logs

from tests.signed import KEY
from tests.unit.worker_service.conftest import A_RUN, Caller, Serve
from worker_service.targets.signing import Signer

NEXT = "whsec_" + "bmV4dCBrZXkgb2YgdHdlbnR5LWZvdXIgYnl0ZXMu"


class Service:
    """Verifies each call with its own keys, and keeps the headers and bodies."""

    def __init__(self, *keys: str) -> None:
        self._jobs = Jobs("email-service", signing_keys=keys)
        self.seen: list[dict[str, str]] = []
        self.refused: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        try:
            self._jobs.verify(request.headers, await request.read())
        except SignatureInvalid as invalid:
            self.refused.append(str(invalid))
        return web.Response()


class TestWithTwoKeys:
    @pytest.fixture
    def signer(self) -> Signer:
        return Signer({"email-service": SigningKeys([KEY, NEXT])}, required=True)

    async def test_a_service_that_has_either_of_them_verifies_the_call(self, caller: Caller, serve: Serve) -> None:
        old, new = Service(KEY), Service(NEXT)
        for service in (old, new):
            await caller.execute(await serve(service.answer), payload_json='{"name": "Zo\\u00eb \u00eb"}')
        assert (old.refused, new.refused) == ([], [])
        assert len(old.seen[0]["webhook-signature"].split(" ")) == 2

    async def test_the_message_is_the_run_whichever_attempt(self, caller: Caller, serve: Serve) -> None:
        service = Service(KEY)
        url = await serve(service.answer)
        await caller.execute(url, attempt=1)
        await caller.execute(url, attempt=2)
        assert [seen["webhook-id"] for seen in service.seen] == [str(A_RUN.run_id)] * 2
        assert [seen["idempotency-key"] for seen in service.seen] == [str(A_RUN.run_id)] * 2
        assert service.seen[0]["webhook-signature"] != service.seen[1]["webhook-signature"]

    async def test_a_service_with_another_key_refuses(self, caller: Caller, serve: Serve) -> None:
        service = Service("whsec_" + "B" * 32)
        await caller.execute(await serve(service.answer))
        assert service.refused[0].startswith("the signature is wrong")

    async def test_a_service_without_one_is_not_called_where_signing_is_required(
        self, caller: Caller, serve: Serve
    ) -> None:
        service = Service(KEY)
        failed = await caller.failure(await serve(service.answer), service="kpi-service")
        assert (failed.code, failed.message) == (
            "SIGNING_KEY_MISSING",
            "the call must be signed (CARILLON_REQUIRE_SIGNING), and the worker service has no key for kpi-service in "
            "CARILLON_SIGNING_KEYS",
        )
        assert (service.seen, caller.calls) == ([], [])


async def test_calls_to_a_service_without_a_key_are_not_signed_with_one_warning(caller: Caller, serve: Serve) -> None:
    service = Service(KEY)
    url = await serve(service.answer)
    with capture_logs() as logs:
        for _ in range(3):
            await caller.execute(url)
    assert not any(name.startswith("webhook-") for seen in service.seen for name in seen)
    assert [(each["log_level"], each["service"]) for each in logs] == [("warning", "email-service")]


def test_a_call_that_is_sent_again_is_signed_anew() -> None:
    clock = iter([1_800_000_000.9, 1_800_000_400.0])
    signer = Signer({"email-service": SigningKeys([KEY])}, clock=lambda: next(clock))
    headers: list[Any] = [signer.headers("email-service", "r-1", b"{}") for _ in range(2)]
    assert [each["webhook-timestamp"] for each in headers] == ["1800000000", "1800000400"]
    assert headers[0]["webhook-signature"] != headers[1]["webhook-signature"]
