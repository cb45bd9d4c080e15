"""How PostgreSQL carries a claim out, where the wrong way is right until there is a backlog."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from scheduler_service.store import claim


async def plan_of(hot: psycopg.AsyncConnection[Any], statement: str) -> str:
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    query = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
    rows = await (await hot.execute(f"explain (generic_plan, costs off) {query}".encode())).fetchall()
    return "\n".join(line for (line,) in rows)


@pytest.mark.parametrize("statement", [claim._CLAIM_FEW, claim._CLAIM_MANY], ids=["few", "many"])
async def test_a_claim_finds_its_runs_by_their_place_whatever_the_table_was_like(
    hot: psycopg.AsyncConnection[Any], statement: str
) -> None:
    # A plan that was made while the table was empty stays in use while a backlog builds up.
    plan = await plan_of(hot, statement)
    assert "Tid Scan on live_runs" in plan
    assert "Index Scan using live_runs_pkey" not in plan
    assert re.search(
        r"Index Scan using live_runs_claimable.*\n\s+Index Cond: .*route = .*priority = .*run_after <=", plan
    )


@pytest.mark.parametrize("statement", [claim._CLAIM_ALONE, claim._ALONE_WAITING], ids=["claim", "look"])
async def test_runs_that_are_to_be_alone_are_found_without_a_look_at_any_other(
    hot: psycopg.AsyncConnection[Any], statement: str
) -> None:
    plan = await plan_of(hot, statement)
    assert "Seq Scan on live_runs" not in plan
    assert set(re.findall(r"using (\w+) on live_runs", plan)) <= {"live_runs_alone", "live_runs_held"}
    # PostgreSQL 16 looks at the routes after the index, which has next to nothing.
    routes = ".*route = ANY" if hot.info.server_version >= 170_000 else ""
    assert re.search(rf"using live_runs_alone on live_runs.*\n\s+Index Cond: .*session_id IS NULL{routes}", plan)
