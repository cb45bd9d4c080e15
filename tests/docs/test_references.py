"""The references of settings and metrics are what the code says."""

from __future__ import annotations

import re

from docs import generate
from tests.e2e.cluster import ROOT

CLIENT = ROOT / "clients" / "python" / "src" / "carillon"


def test_nothing_has_drifted() -> None:
    assert generate.stale() == [], "run `make docs`"


def test_every_metric_is_explained_and_its_labels_are_named() -> None:
    families = [
        (family, labels)
        for registry in (generate.scheduler_registry(), generate.worker_registry())
        for family, labels in generate.described(registry)
    ]
    assert {family.name for family, _ in families if not family.name.startswith("carillon_")} == set()
    assert [family.name for family, _ in families if not re.match(r"[A-Z1].*\.$", family.documentation)] == []
    assert {family.name: tuple(labels) for family, labels in families}["carillon_pending_runs"] == ("route",)


def test_alerts_name_metrics_that_exist() -> None:
    registries = (generate.scheduler_registry(), generate.worker_registry())
    known = {family.name for registry in registries for family, _ in generate.described(registry)}
    for expression, _ in generate.ALERTS:
        (*named,) = set(re.findall(r"carillon_\w+", expression))
        assert named
        assert {re.sub(r"_(total|count|bucket|sum)$", "", name) for name in named} <= known


def test_every_variable_that_the_client_reads_is_documented() -> None:
    read = {
        variable
        for file in CLIENT.rglob("*.py")
        if "v1" not in file.parts
        for variable in re.findall(r'environ[^"\n]*"(CARILLON_\w+)"', file.read_text())
    }
    client = generate.configuration().partition("## Client")[2]
    assert read == set(re.findall(r"^\| `(CARILLON_\w+)`", client, re.MULTILINE))
