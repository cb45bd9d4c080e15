"""The queries of docs/security.md answer what the page says they do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import ROOT
from tests.security.sql_case import AUDITOR, Caller, Connection, acting, logins

SECTION = (
    (ROOT / "docs" / "security.md").read_text(encoding="utf-8").partition("\n## The database\n")[2].split("\n## ")[0]
)
QUERIES = re.findall(r"^```sql\n(.*?)^```\n\n```text\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[Connection]:
    with connect(database_urls.admin) as connection, logins(connection):
        yield connection


def shown(admin: Connection, query: str) -> list[str]:
    """As psql shows rows."""
    with acting(admin, Caller(AUDITOR)):
        rows = admin.execute(query.encode()).fetchall()
    return [" | ".join({True: "t", False: "f"}.get(value, str(value)) for value in row) for row in rows]


def test_every_query_has_its_rows() -> None:
    assert len(QUERIES) == SECTION.count("```sql") == SECTION.count("```text") > 5


@pytest.mark.parametrize(("query", "rows"), QUERIES)
def test_a_query_answers_what_the_page_says(admin: Connection, query: str, rows: str) -> None:
    assert shown(admin, query) == rows.splitlines()
