"""Tenant B and another service look for what is tenant A's, and find nothing; where there is a leak, they find it."""

from __future__ import annotations

from uuid import UUID

import pytest

from scheduler_service.domain.access import Kind
from scheduler_service.domain.errors import Forbidden, NotFound
from scheduler_service.domain.record import Run
from scheduler_service.store import runs as store
from scheduler_service.store.database import Transaction
from scheduler_service.usecases import runs
from tests.security.canaries import TENANT, a
from tests.security.probes import Probes, probing
from tests.security.world import World

_SEED = 5


async def test_nothing_of_tenant_as_is_found(world: World) -> None:
    tally = await (await probing(world, _SEED)).run(500)
    assert tally.leaks == []
    assert tally.codes["OK"] > 20
    assert tally.codes["INTERNAL"] == 0


async def finds(probes: Probes, words: str) -> bool:
    """Whether a leak of which it says this is found before long."""
    for _ in range(30):
        if any(words in leak for leak in (await probes.run(100)).leaks):
            return True
    return False


async def test_a_policy_that_lets_everybody_read_is_found(world: World) -> None:
    world.admin.execute("create policy planted on carillon.runs for select to carillon_api using (true)")
    assert await finds(await probing(world, _SEED), "SQL shows")


@pytest.mark.parametrize("how", ["in its words", "by its code"])
async def test_a_refusal_that_knows_more_than_it_should_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def found(tx: Transaction, run_id: UUID) -> Run:
        if (run := await store.get_run(tx, run_id)) is not None:
            return run
        there = world.admin.execute("select tenant_id from carillon.runs where run_id = %s", [run_id]).fetchone()
        if there == (TENANT,) and tx.principal.kind is not Kind.ADMIN:
            raise NotFound(f"it is of {a('origin')}") if how == "in its words" else Forbidden("there is no such run")
        raise NotFound("there is no such run")

    monkeypatch.setattr(runs, "_found", found)
    assert await finds(await probing(world, _SEED), ".RunService/")
