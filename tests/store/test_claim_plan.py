"""How PostgreSQL carries a claim out, where the wrong way is right until there is a backlog."""

from __future__ import annotations

import re
from typing import Any

import psycopg

from scheduler_service.store import claim


async def test_a_claim_finds_its_runs_by_their_place_whatever_the_table_was_like(
    hot: psycopg.AsyncConnection[Any],
) -> None:
    # A plan that was made while the table was empty stays in use while a backlog builds up.
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", claim._CLAIM)))
    query = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", claim._CLAIM)
    rows = await (await hot.execute(f"explain (generic_plan, costs off) {query}".encode())).fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert "Tid Scan on live_runs" in plan
    assert "Index Scan using live_runs_pkey" not in plan
    assert re.search(
        r"Index Scan using live_runs_claimable.*\n\s+Index Cond: .*route = .*priority = .*run_after <=", plan
    )
