"""`python -m scheduler_service audit` as an operator gives it, with no scheduler and the API's login alone."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from scheduler_service.__main__ import cli
from scheduler_service.domain.audit import made
from scheduler_service.store.database import Database
from tests import canary
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, ROOT, environment_without_carillon
from tests.store.audit_case import record, record_many, seal_all, tampering


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    out: str
    errors: str
    code: int | None


async def audit(urls: DatabaseUrls, *arguments: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler_service", "audit", *arguments),
        cwd=ROOT,
        env={**environment_without_carillon(), "CARILLON_DATABASE_URL": urls.api},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    return Said(out.decode(), errors.decode(), process.returncode)


@pytest.fixture
async def sealed(database: Database) -> Database:
    await record_many(database, 3)
    async with await database.hot_connection() as hot:
        assert await seal_all(hot) == 3
    return database


async def test_a_head_is_one_line_that_verify_takes(sealed: Database, database_urls: DatabaseUrls) -> None:
    head = await audit(database_urls, "head")
    position, _, written = head.out.rstrip("\n").partition(":")
    assert (head.code, position, len(bytes.fromhex(written))) == (0, "3", 32)
    verdict = await audit(database_urls, "verify", "--head", head.out.strip(), "--head", "0:")
    assert (verdict.code, verdict.out) == (0, f"holds: {head.out}")
    await record_many(sealed, 1)
    verdict = await audit(database_urls, "verify")
    assert verdict.out.endswith("; 1 event waits for its seal\n")


async def test_a_broken_link_is_a_line_and_ends_with_1(sealed: Database, database_urls: DatabaseUrls) -> None:
    head = (await audit(database_urls, "head")).out.strip()
    with connect(database_urls.admin) as admin:
        _tamper(admin, "delete from carillon.audit_events where event_id = (select max(event_id) from {seals})")
        verdict = await audit(database_urls, "verify")
        assert verdict.code == 1
        assert verdict.out.startswith("broken at position 3: EVENT_MISSING: event ")
        assert verdict.out.count("\n") == 1
        _tamper(admin, "delete from {seals} where position = 3")
    assert (await audit(database_urls, "verify")).code == 0
    verdict = await audit(database_urls, "verify", "--head", head)
    assert verdict.code == 1
    assert "its tail was removed" in verdict.out


def _tamper(admin: psycopg.Connection[Any], statement: str) -> None:
    with tampering(admin):
        admin.execute(statement.format(seals="carillon.audit_seals").encode())


async def test_events_are_listed_for_people_and_programs(sealed: Database, database_urls: DatabaseUrls) -> None:
    await record(sealed, made("tenants/acme", {"time_zone": "Asia/Tokyo"}, tenant="acme"))
    table = (await audit(database_urls, "list", "--principal", "admin:alice")).out
    assert [line.split()[-2] for line in table.splitlines()[1:]] == [
        "tenants/acme",
        *(f"services/email-service/jobs/weekly-digest-{place}" for place in (2, 1, 0)),
    ]
    await record(sealed, made("tenants/[red]\x1b[2J", {}))
    assert "tenants/[red]\ufffd[2J" in (await audit(database_urls, "list", "--limit", "1")).out
    (line,) = (await audit(database_urls, "list", "--tenant", "acme", "--json")).out.splitlines()
    event = json.loads(line)
    assert (event["resource"], event["after"], event["position"]) == ("tenants/acme", {"time_zone": "Asia/Tokyo"}, 0)
    assert len((await audit(database_urls, "list", "--limit", "2", "--json")).out.splitlines()) == 2
    assert (await audit(database_urls, "list", "--until", "2020-01-01", "--json")).out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("verify", "--head", "12"), "position:hash"),
        (("verify", "--head", "12:abcd"), "position:hash"),
        (("list", "--since", "yesterday"), "2026-03-01T12:00:00Z"),
        (("list", "--resource", "services/"), "resource: it ends with `/`"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.setenv("CARILLON_DATABASE_URL", database_urls.api)
    refused = CliRunner().invoke(cli, ["audit", *arguments])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert isinstance(refused.exception, SystemExit)
    assert says in refused.stderr
    canary.check(canary.leaks(refused.stderr), "what was said")
