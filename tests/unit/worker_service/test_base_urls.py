"""A deployment may say where a service is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from aiohttp import web
from yarl import URL

from tests.unit.worker_service.conftest import Caller, Serve
from worker_service.targets.addresses import AddressError, rebase, shown


@pytest.mark.parametrize(
    ("endpoint", "base", "expected"),
    [
        ("http://a/jobs/x", "http://b:81", "http://b:81/jobs/x"),
        ("http://a:80/jobs/x?y=%261", "https://b/pre/", "https://b/pre/jobs/x?y=%261"),
        ("http://a", "http://b/pre", "http://b/pre/"),
        ("https://u:p@a/jobs/%C3%A4", "http://b", "http://b/jobs/%C3%A4"),
        ("http://a/jobs/x", "http://u:p@b", "http://u:p@b/jobs/x"),
        ("http://a/jobs/x", "http://[::1]:81", "http://[::1]:81/jobs/x"),
    ],
)
def test_a_base_replaces_all_up_to_the_path(endpoint: str, base: str, expected: str) -> None:
    assert str(rebase(URL(endpoint), URL(base))) == expected


@pytest.mark.parametrize(
    "path",
    ["/..%2fadmin", "/..%2Fadmin", "/a/..%5cadmin", "/..%252fadmin", "/..;/admin", "/%252e%252e/admin", "/a%2fb"],
)
def test_a_path_leads_nowhere_beside_the_bases_own(path: str) -> None:
    with pytest.raises(AddressError, match="has an encoded slash or dot in its path"):
        rebase(URL(f"http://a{path}", encoded=True), URL("http://b/pre"))
    rebase(URL(f"http://a{path}", encoded=True), URL("http://b"))  # nothing to lead out of


def test_dots_and_percent_signs_that_lead_nowhere_stay() -> None:
    for path in ("/a..b/.c/x..", "/100%25", "/a/.well-known"):
        assert rebase(URL(f"http://a{path}", encoded=True), URL("http://b/pre")).raw_path == f"/pre{path}"


def test_a_shown_address_has_nothing_secret() -> None:
    assert shown(URL("http://user:password@host:81/jobs?token=x#y")) == "http://host:81/jobs"


class TestAnOverriddenService:
    @pytest.fixture
    def base_urls(self) -> Mapping[str, URL]:
        self.overrides: dict[str, URL] = {}
        return self.overrides

    async def test_is_called_at_its_other_address(self, caller: Caller, serve: Serve) -> None:
        seen: list[tuple[str, str | None]] = []

        async def handler(request: web.Request) -> web.Response:
            seen.append((request.path, request.headers.get("Authorization")))
            return web.Response()

        base = URL(await serve(handler)) / "behind"
        self.overrides["email-service"] = base.with_user("worker").with_password("s3cret")
        await caller.execute("http://unknown.invalid/jobs/x")
        assert seen == [("/behind/jobs/x", "Basic d29ya2VyOnMzY3JldA==")]

    async def test_is_not_called_beside_its_path(self, caller: Caller) -> None:
        self.overrides["email-service"] = URL("http://127.0.0.1:9/pre")
        failed = await caller.failure("http://unknown.invalid/..%2fadmin")
        assert failed.code == "TARGET_NOT_ALLOWED"

    async def test_leaves_others_where_they_are(self, caller: Caller, serve: Serve) -> None:
        async def handler(_request: web.Request) -> web.Response:
            return web.Response()

        self.overrides["other"] = URL("http://unknown.invalid")
        await caller.execute(await serve(handler))
        assert caller.calls == [200]
