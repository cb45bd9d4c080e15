"""Anything, in any order: definitions change, runs are asked for and cancelled, time passes, replicas tick, hand out,
commit and reap at once, and workers report, repeat themselves, lie, vanish and come back. What DESIGN section 4 says
holds all the while; and when all is whole again, nothing stays live and everything owed has its one outcome."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import DatabaseUrls
from tests.store.model_machine import Machine
from tests.store.model_world import World

STEPS = 10_000
EXAMPLES, LENGTH = 44, 300
PHASES = (Phase.generate, Phase.shrink)
RARE = ("finish", "repeat", "report_late", "report_anothers", "cancel", "delete_schedule", "wait", "reap_both")


@pytest.fixture
def world(database_urls: DatabaseUrls) -> Iterator[World]:
    world = World(database_urls)
    yield world
    world.close()


def test_what_must_hold_holds_whatever_happens(world: World, request: pytest.FixtureRequest) -> None:
    """The same steps each time; others with `--hypothesis-seed`."""
    did = Counter[str]()
    given = request.config.getoption("--hypothesis-seed", None) is not None
    run_state_machine_as_test(
        type("Machine", (Machine,), {"world": world, "did": did}),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=LENGTH,
            derandomize=not given,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )
    came_of_it = {what: did.pop(what) for what in ("occurrences", "retried", "filled", "alone")}
    sys.stdout.write(f"{did.total()} steps, {came_of_it}: {dict(did.most_common())}\n")
    if not given:  # by a seed of somebody's choice, chance may choose a step less often
        assert did.total() >= STEPS
        assert all(did[name] > 20 for name in RARE), did
        assert all(number > 10 for number in came_of_it.values()), came_of_it
